"""Codec ``text`` of unit ``tokens``: UTF-8, cut anywhere, to the tokens of a Hugging Face tokenizer.

``flush`` in the contract says what becomes of a record's last word, which the next record might go on with:

- ``boundary``: it waits in the row until a cut follows it, or it is longer than ``hold_bytes``: then it is cut there.
  Cutting one stream's bytes differently gives the same steps; what waits when the stream ends makes its last steps.
- ``record``: a record is a text of its own, and all its tokens are its steps: for prompts, for messages, and where no
  cut leaves the tokens as they are. Only an unfinished character waits.

The special tokens that a tokenizer would put around a text are never added: a stream is no sentence.

A long record is tokenized ahead of its poll, between its first cut and its last one: what stands there is the same
whatever the record before it left, and the one behind it brings.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from pipeline.beside import NOTHING_BESIDE, Beside
from pipeline.codecs.base import AheadCodec, Steps
from pipeline.codecs.text import token_dtype
from pipeline.codecs.tokenizer import NO_WORD, KnownWords, Tokenization
from pipeline.codecs.utf8 import whole_characters
from pipeline.columns import I64, U8, AnyArray
from pipeline.contract import Contract
from pipeline.errors import RecordError

AHEAD_FROM = 4096
"""Bytes of a record that is worth a thread."""
POLL_STEPS = 8192
"""New words take about 2 us a step, on the event loop where they come in short records."""
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
    ready: dict[int, bytes] = field(default_factory=dict)
    """Tokens made ahead, in place of a word that is empty."""
    failed: dict[int, RecordError] = field(default_factory=dict)


class TokenCodec(AheadCodec):
    """See the module.

    Raises ContractError for a wrong setting, a tokenizer that is missing, changed or none, or unless the model has one
    step input, of int64 or int32 scalars.
    """

    ahead_from = AHEAD_FROM
    poll_steps = POLL_STEPS

    def __init__(self, contract: Contract, beside: Beside = NOTHING_BESIDE) -> None:
        self._tokenization = Tokenization.of(contract, beside)
        self._dtype = token_dtype(contract)
        self._known = KnownWords(self._tokenization, self._dtype)
        self._holds = self._tokenization.flush == "boundary"
        self.memory_bytes = COUNT_BYTES + self._tokenization.hold_bytes + 3
        self.step_bytes = 3

    def ahead(self, value: bytes) -> AnyArray | None:
        """``[2 + n]``: the bytes before the first cut and those behind the last one, and the tokens between.

        Where a record is a text of its own it has no other beginning, and no other end, than half a character. None
        for a record that must be seen whole. Fails a word without tokens (reason ``vocabulary``).
        """
        half = next((i for i, byte in enumerate(value[:4]) if byte & 0xC0 != 0x80), 4)
        try:
            text, used = utf_8_decode(value[half:], "strict", False)
        except UnicodeDecodeError:
            return None
        words = self._tokenization.words
        begin = 0 if not half and not self._holds else words.cut_after(text, 0)
        if begin is None:
            return None
        before = half + len(text[:begin].encode()) if begin else 0
        behind = len(value) - half - used
        made: list[AnyArray] = []
        *stretches, last = words.stretches(text, begin)
        made = [self._tokens(words.of(stretch)) for stretch in stretches]
        end = words.of(last)
        if self._holds:
            behind += len(end.pop().encode())
        return np.concatenate([np.array([before, behind], self._dtype), *made, self._tokens(end)])

    def _tokens(self, words: list[str]) -> AnyArray:
        """Raises RecordError."""
        different = list(dict.fromkeys(words))
        known: dict[str, list[int]] = {}
        for word, ids in zip(different, self._tokenization.encode(different)):
            if ids is None:
                raise self._tokenization.refusal(word)
            known[word] = ids
        return np.fromiter(chain.from_iterable([known[word] for word in words]), self._dtype)

    def ahead_bytes(self, value_bytes: int) -> int:
        return value_bytes // self.step_bytes * self._dtype.itemsize if value_bytes >= self.ahead_from else 0

    def decode_ahead(
        self, values: list[bytes], slots: I64, memory: U8, ahead: Sequence[AnyArray | RecordError | None]
    ) -> Steps:
        """Fails what can never become UTF-8 (reason ``utf-8``), and a word without tokens (``vocabulary``)."""
        touched, whose = np.unique(slots, return_inverse=True)
        rows = memory[touched]
        before = _held(rows)
        cut = self._cut(values, whose.tolist(), before, ahead)
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

    def _cut(
        self,
        values: list[bytes],
        whose: list[int],
        before: list[bytes],
        ahead: Sequence[AnyArray | RecordError | None],
    ) -> _Cut:
        """The records' words, all of them known; ``whose[i]`` is the place of record ``i``'s stream in ``before``."""
        self._known.trim()
        cut = self._cut_once(values, whose, before, ahead, one_by_one=False)
        # A record that fails changes what its stream's next ones are: with new strangers, all is cut again, and each
        # record's words are asked for before the next one is looked at.
        return self._cut_once(values, whose, before, ahead, one_by_one=True) if self._known.learn(cut.words) else cut

    def _cut_once(
        self,
        values: list[bytes],
        whose: list[int],
        before: list[bytes],
        ahead: Sequence[AnyArray | RecordError | None],
        *,
        one_by_one: bool,
    ) -> _Cut:
        cut = _Cut(list(before))
        for i, (value, stream, done) in enumerate(zip(values, whose, ahead)):
            try:
                words, tokens, rest = self._one(cut.held[stream], value, done)
                if one_by_one:
                    self._known.learn(words)
                self._refuse_strangers(words)
            except _Failed as failure:
                cut.failed[i], cut.held[stream] = failure.error, failure.held
                cut.counts.append(0)
                continue
            cut.held[stream] = rest
            cut.words += words
            cut.counts.append(len(words))
            if tokens is not None:
                cut.ready[len(cut.words) - 1] = tokens
        return cut

    def _one(
        self, held: bytes, value: bytes, done: AnyArray | RecordError | None
    ) -> tuple[list[str], bytes | None, bytes]:
        """One record's words, the tokens that the last of them, NO_WORD, stands for, and what waits after it. Raises
        _Failed."""
        if isinstance(done, np.ndarray) and (done[0] or not held):
            begin, end = int(done[0]), len(value) - int(done[1])
            # What fails here fails below, where the whole record is seen.
            with suppress(_Failed):
                words, last = self._words(held, value[:begin])
                _, rest = self._words(b"", value[end:])
                return [*words, *([last.decode()] if last else []), NO_WORD], done[2:].tobytes(), rest
        words, rest = self._words(held, value)
        if isinstance(done, RecordError):
            raise _Failed(done, b"")
        return words, None, rest

    def _words(self, held: bytes, value: bytes) -> tuple[list[str], bytes]:
        """A text's words and what waits after it. Raises _Failed."""
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
        return words, half

    def _refuse_strangers(self, words: list[str]) -> None:
        """Raises _Failed."""
        strangers = self._known.strangers
        if strangers and not strangers.isdisjoint(words):
            raise _Failed(self._tokenization.refusal(next(word for word in words if word in strangers)), b"")

    def _steps(self, cut: _Cut) -> Steps:
        found = self._known.tokens(cut.words)
        for place, made in cut.ready.items():
            found[place] = made
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
