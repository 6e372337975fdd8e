"""A Hugging Face tokenizer as streams need it: words that nothing before or after them can change, and their tokens.

No tokenizer can be asked for a stream's next token: what comes later may still change the last ones. So a text is cut
where it is certain that a cut changes nothing, and what lies between two cuts, a **word**, is given to the library by
itself. ``space`` cuts before every space that follows a visible character, ``whitespace`` before every white space
that does. A cut is told by the two characters around it, never by where a record ends: whatever the tokenizer, the
same text gives the same tokens however it was cut into records. That they are those of the whole text at once is
proven when a model is exported, which writes the cut that holds into the contract; null is none.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Tokenizer

from pipeline.beside import Beside
from pipeline.codecs.settings import Settings
from pipeline.codecs.utf8 import REPLACEMENT
from pipeline.contract import Contract
from pipeline.errors import RecordError

# One thread, the caller's: the cores are the engine's.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

VISIBLE = (
    r"[^\x00-\x20\x7f-\xa0\xad\u0300-\u036f\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u2581\u3000"
    r"\ufe00-\ufe0f\ufeff\ufff0-\uffff]"
)
"""Not white space, and nothing that a normaliser may drop or turn into white space. Written out: the tables of another
Python's Unicode would cut elsewhere."""
CUTS: dict[str, str] = {"whitespace": rf"(?<={VISIBLE})(?=[\t-\r ])", "space": rf"(?<={VISIBLE})(?= )"}
"""Kinds of cuts, the ones that hold back less first."""
FLUSHES = ("record", "boundary")
HOLD_BYTES = 128
HOLD_BYTES_MAX = 4000
STRETCH = 16_384
"""Characters that are cut and tokenized at a time, where a thread does it."""
KNOWN_MAX = 50_000
KNOWN_BYTES_MAX = 16_000_000
"""How much is kept of words met before, with or without tokens, and what these take."""
NO_WORD = ""
"""Stands among words for tokens that were made before."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Words:
    """How a text becomes words; ``hold_bytes`` bounds one, in UTF-8 (None: nothing does)."""

    cut: str | None
    hold_bytes: int | None = None

    def cut_after(self, text: str, at: int) -> int | None:
        """The first place at or behind ``at`` where the text is cut; None: there is none."""
        if self.cut is None:
            return None
        # Short looks: other threads wait while one lasts. The character behind each is seen, too.
        for start in range(at, len(text), STRETCH):
            found = _PATTERNS[self.cut].search(text, start, start + STRETCH + 1)
            if found is not None:
                return found.start()
        return None

    def stretches(self, text: str, at: int) -> Iterator[str]:
        """The text from there on, cut in few places."""
        while (end := self.cut_after(text, at + STRETCH)) is not None:
            yield text[at:end]
            at = end
        yield text[at:]

    def of(self, text: str) -> list[str]:
        """The words of a text, the last of which more text may go on with; none is longer than ``hold_bytes``."""
        words = _PATTERNS[self.cut].split(text) if self.cut is not None else [text]
        if self.hold_bytes is None:
            return words
        safe = self.hold_bytes if text.isascii() else self.hold_bytes // 4
        if max(map(len, words)) <= safe:
            return words
        return [part for word in words for part in ([word] if len(word) <= safe else _chopped(word, self.hold_bytes))]


def _chopped(word: str, limit: int) -> Iterable[str]:
    """At the last character that fits, counted from where the word begins: the same however it came."""
    data, begin = word.encode(), 0
    while len(data) - begin > limit:
        end = begin + limit
        while data[end] & 0xC0 == 0x80:
            end -= 1
        yield data[begin:end].decode()
        begin = end
    yield data[begin:].decode()


_PATTERNS = {name: re.compile(pattern) for name, pattern in CUTS.items()}


class Tokenization:
    """What a text model's contract says of its tokenizer (see ``of``), and the tokenizer itself, without its special
    tokens, truncation and padding."""

    def __init__(self, content: bytes, cut: str | None, flush: str, hold_bytes: int) -> None:
        """Raises ValueError saying why ``content`` is no tokenizer that can be served."""
        self.tokenizer = read_tokenizer(content)
        self.flush = flush
        self.words = Words(cut, hold_bytes if flush == "boundary" else None)
        self.hold_bytes = hold_bytes if flush == "boundary" else 0
        self.count = token_count(self.tokenizer)
        """Tokens lie below it."""

    @staticmethod
    def of(contract: Contract, beside: Beside) -> Tokenization:
        """``{"unit": "tokens", "tokenizer": {"file": ..., "sha256": ...}, "flush": "record" or "boundary", "cut":
        "whitespace", "space" or null, "hold_bytes": 128}``. Raises ContractError."""
        settings = Settings(contract, "codec", beside)
        settings.take("unit", None, "'tokens'", lambda v: v == "tokens")
        content = settings.file("tokenizer")
        flush = settings.take("flush", "record", "'record' or 'boundary'", lambda v: v in FLUSHES)
        cut = settings.take("cut", None, "'whitespace', 'space' or null", lambda v: v is None or v in CUTS)
        hold_bytes = settings.integer("hold_bytes", HOLD_BYTES, 4, HOLD_BYTES_MAX)
        settings.finish()
        if content is None:
            raise settings.error("setting 'tokenizer' is missing: expected the tokenizer.json beside the model")
        if flush == "boundary" and cut is None:
            raise settings.error("flush 'boundary' needs a cut: 'whitespace' or 'space', whichever is proven to hold")
        try:
            return Tokenization(content, cut, flush, hold_bytes)
        except ValueError as error:
            raise settings.error(f"setting 'tokenizer': {error}") from None

    def encode(self, words: Sequence[str]) -> list[list[int] | None]:
        """The tokens of each word by itself; None where the tokenizer has none for it. One call of the library, which
        lets other threads run."""
        if not words:
            return []
        try:
            return [e.ids for e in self.tokenizer.encode_batch_fast(list(words), add_special_tokens=False)]
        except Exception:  # noqa: BLE001 - the library raises nothing narrower
            if len(words) == 1:
                return [None]
            return [ids for word in words for ids in self.encode([word])]

    def refusal(self, word: str) -> RecordError:
        """That a word has no tokens."""
        shown = word if len(word) <= 40 else f"{word[:37]}..."
        return RecordError("vocabulary", f"the tokenizer has no token for {shown!r}, nor one for what it does not know")

    def texts(self) -> list[bytes]:
        """The bytes that each token adds to a text that has begun; none for special tokens, U+FFFD for numbers between
        that are no tokens."""
        return token_texts(self.tokenizer)


def read_tokenizer(content: bytes) -> Tokenizer:
    """Raises ValueError saying what is wrong with a ``tokenizer.json``."""
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise ValueError(
            f"no tokenizer.json that tokenizers {tokenizers.__version__} reads ({' '.join(str(error).split())[:200]})"
        ) from None
    if json.loads(content)["model"].get("dropout"):
        raise ValueError("its model drops merges at random (dropout): set that to null, it is for training only")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_count(tokenizer: Tokenizer) -> int:
    """Its tokens lie below it; not all numbers need be one."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def token_texts(tokenizer: Tokenizer) -> list[bytes]:
    """See ``Tokenization.texts``. Raises ValueError where a token's text depends on more than that others precede it.

    A token of a byte-level or byte-fallback tokenizer may be a part of a character, which the library's decoder shows
    only when it is whole: there the bytes are read off the token's name.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    kinds = _decoders(tokenizer)
    texts = [REPLACEMENT.encode()] * token_count(tokenizer)
    between = _Between(tokenizer)
    for name, token in vocabulary.items():
        byte = _BYTE_TOKEN.fullmatch(name) if "ByteFallback" in kinds else None
        if token in added:
            texts[token] = b"" if added[token].special else added[token].content.encode()
        elif byte is not None:
            texts[token] = bytes.fromhex(byte[1])
        elif kinds == ["ByteLevel"] and all(c in _BYTE_OF for c in name):
            texts[token] = bytes(_BYTE_OF[c] for c in name)
        else:
            texts[token] = between.text(name).encode()
    return texts


class _Between:
    """The text that a decoder gives a token between others."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decoder: Any = tokenizer.decoder
        self._before = self._decode(["a"])
        self._after = self._decode(["a", "a"])[len(self._before) :]

    def text(self, name: str) -> str:
        whole = self._decode(["a", name, "a"])
        if not (whole.startswith(self._before) and whole.endswith(self._after)):
            raise ValueError(f"its decoder makes {whole!r} of 'a', {name!r}, 'a': a token's text cannot be told alone")
        return whole[len(self._before) : len(whole) - len(self._after)]

    def _decode(self, names: list[str]) -> str:
        text: str = " ".join(names) if self._decoder is None else self._decoder.decode(names)
        return text


def _decoders(tokenizer: Tokenizer) -> list[str]:
    """The kinds of its decoders, in order."""
    decoder = json.loads(tokenizer.to_str())["decoder"]
    if decoder is None:
        return []
    return [d["type"] for d in decoder.get("decoders", [decoder])]


def _byte_names() -> dict[str, int]:
    """The character that names each byte in byte-level vocabularies: itself where Latin-1 can be seen, then from U+0100
    on in order (Radford et al. 2019, `bytes_to_unicode`)."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in seen]
    return {chr(b): b for b in seen} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_names()


class KnownWords:
    """Words met before and their tokens, as the bytes of an array of ``dtype``; None for those that have none."""

    def __init__(self, tokenization: Tokenization, dtype: np.dtype[Any]) -> None:
        self._tokenization, self._dtype = tokenization, dtype
        self._known: dict[str, bytes | None] = {NO_WORD: b""}
        self._bytes = 0
        self.strangers: set[str] = set()
        """Those that have none."""

    def trim(self) -> None:
        """To be called between polls: begins anew when there is too much."""
        if len(self._known) > KNOWN_MAX or self._bytes > KNOWN_BYTES_MAX:
            self._known, self._bytes, self.strangers = {NO_WORD: b""}, 0, set()

    def learn(self, words: Iterable[str]) -> bool:
        """Asks the tokenizer for the words that are new; whether one of those has no tokens."""
        known = self._known
        new = [word for word in set(words) if word not in known]
        strangers = len(self.strangers)
        for word, ids in zip(new, self._tokenization.encode(new)):
            self._bytes += len(word)
            if ids is None:
                self.strangers.add(word)
                self._known[word] = None
                continue
            tokens = self._known[word] = np.array(ids, self._dtype).tobytes()
            self._bytes += len(tokens)
        return len(self.strangers) > strangers

    def tokens(self, words: Iterable[str]) -> list[bytes]:
        """Of words that are known and have some."""
        return [self._known[word] for word in words]  # type: ignore[misc]  # none of them is None
