"""What each token that a model may draw adds to a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.beside import Beside
from pipeline.codecs.settings import Settings, is_integer
from pipeline.codecs.text import Vocabulary
from pipeline.codecs.tokenizer import Tokenization
from pipeline.codecs.utf8 import REPLACEMENT
from pipeline.columns import Bools
from pipeline.contract import Contract, Output


@dataclass(frozen=True)
class Tokens:
    """One entry for each logit."""

    unit: str
    """The codec's: ``characters``, ``bytes``, or ``tokens``, which may be parts of a character or several."""
    texts: list[bytes]
    """Empty for a token that says nothing (a tokenizer's special ones)."""
    end: int | None
    """The token that ends a text."""

    @staticmethod
    def of(contract: Contract, beside: Beside, settings: Settings, output: Output) -> Tokens:
        """Takes the head's setting ``end_token``. Raises ContractError unless ``output`` has a logit for each token."""
        size = output.shape[0]
        if contract.codec.settings.get("unit") == "tokens":
            return _of_tokenizer(contract, beside, settings, output)
        end = settings.take("end_token", None, f"a token below {size} or null", lambda v: _is_token(v, size))
        vocabulary = Vocabulary.of(contract)
        texts = vocabulary.texts()
        beyond = {vocabulary.unknown, end}
        if size < len(texts) or (vocabulary.characters and any(t not in beyond for t in range(len(texts), size))):
            raise settings.error(
                f"output {output.name!r} has {size} logits for {len(texts)} tokens of the vocabulary; only the unknown"
                " token and the end token may come on top"
            )
        unit = "characters" if vocabulary.characters is not None else "bytes"
        return Tokens(unit, texts + [REPLACEMENT.encode()] * (size - len(texts)), end)

    def whole(self) -> Bools:
        """bool ``[V]``: whose text is whole characters, one at least."""
        return np.array([bool(text) and _is_utf8(text) for text in self.texts])

    def holds(self) -> NDArray[np.bool_]:
        """bool ``[256, V]``: which byte is anywhere in which token's text."""
        held = np.zeros((256, len(self.texts)), np.bool_)
        for token, text in enumerate(self.texts):
            held[list(text), token] = True
        return held


def _of_tokenizer(contract: Contract, beside: Beside, settings: Settings, output: Output) -> Tokens:
    tokenization = Tokenization.of(contract, beside)
    if tokenization.flush != "record":
        raise settings.error(
            "needs the codec's flush 'record': with 'boundary' a prompt's last word would wait for the next prompt"
        )
    try:
        texts = tokenization.texts()
    except ValueError as error:
        raise settings.error(f"the tokenizer cannot be used to write: {error}") from None
    size = output.shape[0]
    if size < len(texts):
        raise settings.error(
            f"output {output.name!r} has {size} logits, the tokenizer {len(texts)} tokens: it is not this model's"
        )
    end = settings.take(
        "end_token",
        None,
        f"a token below {size}, the name of one, or null",
        lambda v: _is_token(v, size) or (isinstance(v, str) and tokenization.tokenizer.token_to_id(v) is not None),
    )
    if isinstance(end, str):
        end = tokenization.tokenizer.token_to_id(end)
    return Tokens("tokens", texts + [REPLACEMENT.encode()] * (size - len(texts)), end)


def _is_token(value: Any, size: int) -> bool:
    return value is None or (is_integer(value) and 0 <= value < size)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
