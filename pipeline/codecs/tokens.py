"""Codec ``text`` of unit ``tokens``: UTF-8, cut anywhere, to the tokens of a Hugging Face tokenizer.

``flush`` in the contract says what becomes of a record's last word, which the next record might go on with:

- ``boundary``: it waits in the row until a cut follows it, or it is longer than ``hold_bytes``: then it is cut there.
  Cutting one stream's bytes differently gives the same steps; what waits when the stream ends makes its last steps.
- ``record``: a record is a text of its own, and all its tokens are its steps: for prompts, for messages, and where no
  cut leaves the tokens as they are. Only an unfinished character waits.

The special tokens that a tokenizer would put around a text are never added: a stream is no sentence.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.beside import NOTHING_BESIDE, Beside
from pipeline.codecs.base import Codec, Steps
from pipeline.codecs.text import token_dtype
from pipeline.codecs.tokenizer import KnownWords, Tokenization
from pipeline.codecs.utf8 import whole_characters
from pipeline.columns import I64, U8
from pipeline.contract import Contract
from pipeline.errors import RecordError

COUNT_BYTES = 2
"""A row begins with how many bytes wait; then they follow: whole characters, and up to three bytes of one more."""


@dataclass(slots=True)
class _Cut:
    """The records of a poll as words."""

    held: list[bytes]
    """What waits of each stream after the poll."""
    words: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    """How many of ``words`` each record has."""
    failed: dict[int, RecordError] = field(default_factory=dict)


class TokenCodec(Codec):
    """See the module.

    Raises ContractError for a wrong setting, a tokenizer that is missing, changed or none, or unless the model has one
    step input, of int64 or int32 scalars.
    """

    def __init__(self, contract: Contract, beside: Beside = NOTHING_BESIDE) -> None:
        self._tokenization = Tokenization.of(contract, beside)
        self._dtype = token_dtype(contract)
        self._known = KnownWords(self._tokenization, self._dtype)
        self._holds = self._tokenization.flush == "boundary"
        self.memory_bytes = COUNT_BYTES + self._tokenization.hold_bytes + 3
        self.step_bytes = 3

    def decode(self, values: list[bytes], slots: I64, memory: U8) -> Steps:
        """Fails what can never become UTF-8 (reason ``utf-8``), and a word without tokens (``vocabulary``)."""
        touched, whose = np.unique(slots, return_inverse=True)
        rows = memory[touched]
        before = _held(rows)
        cut = self._cut(values, whose.tolist(), before)
        for row, was, now in zip(rows, before, cut.held):
            if was != now:
                row[:] = np.frombuffer(_row(now, len(row)), np.uint8)
        memory[touched] = rows
        return self._steps(cut)

    def end(self, slots: I64, memory: U8) -> Steps:
        """The steps of the word that waits; half a character is none, nor a word without tokens."""
        texts = [_apart(held)[0] for held in _held(memory[slots])] if self._holds else [""] * len(slots)
        words = [text for text in texts if text]
        self._known.learn(words)
        good = [bool(text) and text not in self._known.strangers for text in texts]
        words = [text for text, one in zip(texts, good) if one]
        return self._steps(_Cut([], words, [int(one) for one in good]))

    def _cut(self, values: list[bytes], whose: list[int], before: list[bytes]) -> _Cut:
        """The records' words, all of them known; ``whose[i]`` is the place of record ``i``'s stream in ``before``."""
        self._known.trim()
        while True:
            cut = _Cut(list(before))
            for i, (value, stream) in enumerate(zip(values, whose)):
                try:
                    words, cut.held[stream] = self._one(cut.held[stream], value)
                except _Failed as failure:
                    cut.failed[i], cut.held[stream] = failure.error, failure.held
                    words = []
                cut.words += words
                cut.counts.append(len(words))
            # A record that fails changes what its stream's next ones are: with new strangers, all is cut again.
            if not self._known.learn(cut.words):
                return cut

    def _one(self, held: bytes, value: bytes) -> tuple[list[str], bytes]:
        """One record's words and what waits after it. Raises _Failed."""
        waiting, half = _apart(held) if self._holds and held else ("", held)
        try:
            text, half, _ = whole_characters(half, value)
        except RecordError as error:
            raise _Failed(error, waiting.encode()) from None
        if not (waiting or text):
            return [], half
        words = self._tokenization.words.of(waiting + text)
        if self._holds:
            half = words.pop().encode() + half
        strangers = self._known.strangers
        if strangers and not strangers.isdisjoint(words):
            word = next(word for word in words if word in strangers)
            shown = word if len(word) <= 40 else f"{word[:37]}..."
            message = f"the tokenizer has no token for {shown!r}, nor one for what it does not know"
            raise _Failed(RecordError("vocabulary", message), b"")
        return words, half

    def _steps(self, cut: _Cut) -> Steps:
        found = self._known.tokens(cut.words)
        tokens = np.frombuffer(b"".join(found), self._dtype)
        ends = np.zeros(len(found) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, found), np.int64, len(found)) // self._dtype.itemsize, out=ends[1:])
        places = np.cumsum([0, *cut.counts])
        return Steps((tokens,), np.diff(ends[places]), cut.failed)


class _Failed(Exception):
    """A record that cannot be decoded, and what waits of its stream after it."""

    def __init__(self, error: RecordError, held: bytes) -> None:
        super().__init__(str(error))
        self.error, self.held = error, held


def _held(rows: U8) -> list[bytes]:
    """What waits in each row ``[k, memory_bytes]``."""
    counts = (rows[:, 0] + rows[:, 1].astype(np.int64) * 256).tolist()
    return [row[COUNT_BYTES : COUNT_BYTES + n].tobytes() if n else b"" for row, n in zip(rows, counts)]


def _row(held: bytes, width: int) -> bytes:
    return (len(held).to_bytes(COUNT_BYTES, "little") + held).ljust(width, b"\0")


def _apart(held: bytes) -> tuple[str, bytes]:
    """What waits as whole characters, and the half one after them."""
    text, half, _ = whole_characters(b"", held)
    return text, half
