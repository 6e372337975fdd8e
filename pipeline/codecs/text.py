"""Codec ``text``: UTF-8, cut anywhere, to tokens; one step is a character of the vocabulary, or a byte.
(Of tokens that a tokenizer makes: ``tokens.py``.)

A character that is unfinished at a record's end waits in the row, for both units: so a record that turns out to be no
UTF-8 has had no effect. What fails takes with it the bytes that waited for it, and the stream goes on with its next
record. Records of ASCII only, of streams in which nothing waits, are looked up all at once in a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.beside import NOTHING_BESIDE, Beside
from pipeline.codecs.base import Codec, Steps
from pipeline.codecs.settings import Settings, is_integer, is_text
from pipeline.codecs.utf8 import dropped, whole_characters
from pipeline.columns import I64, U8, AnyArray
from pipeline.contract import Contract
from pipeline.errors import RecordError

MEMORY_BYTES = 4
"""How many bytes wait (0 to 3), and the bytes."""
TOKEN_MAX = 2**31 - 1


@dataclass(frozen=True)
class Vocabulary:
    """What the tokens of a text model stand for.

    ``characters``: the character of each token, or None where the tokens are bytes. ``unknown``: the token of every
    other character, None where there is none.
    """

    characters: tuple[str, ...] | None
    unknown: int | None = None

    @staticmethod
    def of(contract: Contract) -> Vocabulary:
        """As the contract's ``text`` codec sets it: ``{"unit": "characters", "vocabulary": [...], "unknown": null}``
        or ``{"unit": "bytes"}``. Raises ContractError."""
        settings = Settings(contract, "codec")
        unit = settings.take("unit", None, "'characters', 'bytes' or 'tokens'", lambda v: v in ("characters", "bytes"))
        if unit == "bytes":
            settings.finish()
            return Vocabulary(None)
        characters = settings.take("vocabulary", None, "a list of different characters", _are_characters)
        unknown = settings.take(
            "unknown", None, "a token or null", lambda v: v is None or (is_integer(v) and 0 <= v <= TOKEN_MAX)
        )
        settings.finish()
        return Vocabulary(tuple(characters), unknown)

    def texts(self) -> list[bytes]:
        """The UTF-8 of each token; for bytes, the byte itself."""
        if self.characters is None:
            return [bytes([i]) for i in range(256)]
        return [c.encode() for c in self.characters]


class TextCodec(Codec):
    """See the module.

    Raises ContractError for a wrong setting, or unless the model has one step input, of int64 or int32 scalars.
    """

    memory_bytes = MEMORY_BYTES

    def __init__(self, contract: Contract, beside: Beside = NOTHING_BESIDE) -> None:
        vocabulary = Vocabulary.of(contract)
        self._dtype = token_dtype(contract)
        self._unknown = vocabulary.unknown
        self._by_character = vocabulary.characters is not None
        characters = vocabulary.characters if vocabulary.characters is not None else [chr(i) for i in range(256)]
        self._known = frozenset(characters)
        # By code point (or byte); the last entry stands for all that come after. -1: no token at all. Every byte has an
        # entry, so that bytes need no bound.
        points = np.fromiter(map(ord, characters), np.int64, len(characters))
        size = max(int(points.max()), 255) + 2
        self._table = np.full(size, -1 if self._unknown is None else self._unknown, self._dtype)
        self._table[points] = np.arange(len(characters))

    def decode(self, values: list[bytes], slots: I64, memory: U8) -> Steps:
        """Fails what can never become UTF-8 (reason ``utf-8``), and a character without token (``vocabulary``)."""
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        blob = b"".join(values)
        points: AnyArray = np.frombuffer(blob, np.uint8)
        failed: dict[int, RecordError] = {}
        if memory[slots, 0].any() or not blob.isascii():
            points, lengths, failed = self._with_characters(
                values, np.frombuffer(blob, np.uint8), lengths, slots, memory
            )
        if points.dtype != np.uint8:
            points = np.minimum(points, np.uint32(len(self._table) - 1))
        tokens = self._table[points]
        if self._unknown is None and (tokens < 0).any():
            tokens, lengths = self._without_strangers(tokens, values, lengths, failed)
        return Steps((tokens,), lengths, failed)

    def _with_characters(
        self, values: list[bytes], raw: U8, lengths: I64, slots: I64, memory: U8
    ) -> tuple[AnyArray, I64, dict[int, RecordError]]:
        """Code points (or bytes) of all records, how many each has, and what failed, of a poll not plain ASCII.

        All records of the streams concerned are taken one by one, in order; the others as they are.
        """
        ends = np.cumsum(lengths)
        high = np.concatenate([[0], np.cumsum(raw > 127)])
        special = (memory[slots, 0] != 0) | (high[ends] > high[ends - lengths])
        single = np.isin(slots, slots[special])
        touched = np.unique(slots[single])
        rows = memory[touched]
        held = {slot: row[1 : 1 + row[0]] for slot, row in zip(touched.tolist(), map(bytes, rows))}

        counts = lengths.copy()
        failed: dict[int, RecordError] = {}
        texts: list[Any] = []
        for i, slot in zip(np.flatnonzero(single).tolist(), slots[single].tolist()):
            try:
                text, held[slot] = self._decode_one(held[slot], values[i])
            except RecordError as error:
                failed[i], counts[i], held[slot] = error, 0, b""
                continue
            texts.append(text)
            counts[i] = len(text)

        for row, rest in zip(rows, held.values()):
            row[:] = np.frombuffer(bytes([len(rest)]) + rest.ljust(3, b"\0"), np.uint8)
        memory[touched] = rows

        if self._by_character:
            found: AnyArray = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
        else:
            found = np.frombuffer(b"".join(texts), np.uint8)
        points = np.empty(int(counts.sum()), found.dtype)
        from_single = np.repeat(single, counts)
        points[from_single] = found
        points[~from_single] = raw[~np.repeat(single, lengths)]
        return points, counts, failed

    def _decode_one(self, held: bytes, value: bytes) -> tuple[str | bytes, bytes]:
        """What became whole, and the unfinished rest. Raises RecordError."""
        text, rest, used = whole_characters(held, value)
        if not self._by_character:
            return (held + value)[:used], rest
        if self._unknown is None and not self._known.issuperset(text):
            raise self._stranger(text, held)
        return text, rest

    def _without_strangers(
        self, tokens: AnyArray, values: list[bytes], counts: I64, failed: dict[int, RecordError]
    ) -> tuple[AnyArray, I64]:
        """Takes out the records of plain ASCII that have a character without token; of the others none is left."""
        ends = np.cumsum(counts)
        wrong = np.unique(np.searchsorted(ends, np.flatnonzero(tokens < 0), side="right"))
        good = np.ones(len(values), np.bool_)
        good[wrong] = False
        for i in wrong.tolist():
            failed[i] = self._stranger(values[i].decode("ascii"), b"")
        return tokens[np.repeat(good, counts)], np.where(good, counts, 0)

    def _stranger(self, text: str, held: bytes) -> RecordError:
        at = next(i for i, c in enumerate(text) if c not in self._known)
        return RecordError(
            "vocabulary",
            f"character {text[at]!r} (U+{ord(text[at]):04X}, character {at} of the record) is not among the model's"
            f" {len(self._known)}, and it has no token for others{dropped(held)}",
        )


def token_dtype(contract: Contract) -> np.dtype[Any]:
    """The dtype of a text model's tokens. Raises ContractError unless it has one step input, int64[] or int32[]."""
    first = contract.steps[0]
    if len(contract.steps) != 1 or first.dtype not in ("int64", "int32") or first.shape != ():
        found = ", ".join(f"{s.name} {s.dtype}{list(s.shape)}" for s in contract.steps)
        raise Settings(contract, "codec").error(f"needs one step input of int64[] or int32[], the model has {found}")
    return np.dtype(first.dtype)


def _are_characters(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(is_text(c) and len(c) == 1 for c in value)
        and len(set(value)) == len(value)
    )
