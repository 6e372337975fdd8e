"""The likeliest label of every step, repeats and blanks taken out: the quickest decoding of a CTC model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.columns import U8, AnyArray
from pipeline.heads.frames import ROW, Frames, surprise_of
from pipeline.heads.transcript import MICRO, Answers, Labels, Limits


@dataclass(slots=True)
class _Utterance:
    """One that is going on, or none (``begun`` 0)."""

    begun: int
    text: str
    size: int
    """Of the text, bytes."""
    surprise: int
    characters: int

    def add(self, number: int, text: str, size: int, surprise: int) -> None:
        """The label of step ``number``."""
        self.begun = self.begun or number + 1
        self.text += text
        self.size += size
        self.surprise += surprise
        self.characters += 1

    def clear(self) -> None:
        self.begun, self.text, self.size, self.surprise, self.characters = 0, "", 0, 0, 0


class Greedy:
    """See the module. Python runs for new characters and ends of utterances only, numpy for all steps."""

    def __init__(self, labels: Labels, limits: Limits, *, partial: bool, confidence: bool) -> None:
        self._labels, self._limits = labels, limits
        self._partial, self._confidence = partial, confidence
        self._sizes = [len(text.encode()) for text in labels.texts]
        self._full = limits.bytes - labels.bytes_max
        self.memory_bytes = ROW.itemsize + limits.bytes

    def decode(self, frames: Frames, outputs: AnyArray, memory: U8, answers: Answers) -> None:
        """Changes the rows of ``frames``, and the text behind them in ``memory``."""
        rows, limits = frames.rows, self._limits
        silent = frames.number + 1 - frames.heard == limits.silence
        events = np.flatnonzero(frames.new | silent)
        # A space is silence, too: where it completes it, the end point matters more.
        labels = np.where(silent[events], -1, frames.label[events])
        surprise = np.zeros(len(events), np.int64)
        if self._confidence:
            said = np.flatnonzero(labels >= 0)
            surprise[said] = surprise_of(outputs[frames.where[events[said]]], labels[said])
        of_stream = np.searchsorted(events, frames.first)
        # Streams without an event have work only where an utterance becomes too long, or the stream ends.
        busy = (np.diff(of_stream) > 0) | (
            (rows["begun"] > 0)
            & ((rows["steps"] - rows["begun"] + 1 >= limits.steps) | frames.ended[frames.record_first[1:] - 1])
        )
        columns = list(zip(events.tolist(), frames.number[events].tolist(), labels.tolist(), surprise.tolist()))
        for b in np.flatnonzero(busy).tolist():
            self._stream(frames, b, columns[of_stream[b] : of_stream[b + 1]], memory, answers)

    def _stream(
        self, frames: Frames, b: int, events: list[tuple[int, int, int, int]], memory: U8, answers: Answers
    ) -> None:
        """``events``: place among the frames, number of the step, label (-1: silent for long enough), surprise."""
        row, kept = frames.rows[b], memory[int(frames.slots[b]), ROW.itemsize :]
        size = int(row["size"])
        begun, surprise, characters = int(row["begun"]), int(row["surprise"]), int(row["characters"])
        now = _Utterance(begun, kept[:size].tobytes().decode(), size, surprise, characters)
        offset = int(row["steps"]) - int(frames.first[b + 1])
        """Number of a step less its place."""
        at = 0
        for r in range(int(frames.record_first[b]), int(frames.record_first[b + 1])):
            record, stop = int(frames.record[r]), int(frames.record_end[r])
            shown = now.text.strip(" ")
            while at < len(events) and events[at][0] < stop:
                place, number, label, surprise = events[at]
                at += 1
                if now.begun and number > self._last(now):
                    shown = self._end(answers, record, now, frames.heard[self._last(now) - offset])
                if label >= 0 and (now.begun or label != self._labels.space):
                    now.add(number, self._labels.texts[label], self._sizes[label], surprise)
                if now.begun and (label < 0 or now.size > self._full):
                    shown = self._end(answers, record, now, frames.heard[place])
            if now.begun and self._last(now) < stop + offset:
                shown = self._end(answers, record, now, frames.heard[self._last(now) - offset])
            if now.begun and frames.ended[r]:
                shown = self._end(answers, record, now, row["heard"])
            text = now.text.strip(" ")
            if self._partial and text != shown:
                heard = int(frames.heard[stop - 1])
                answers.say(record, text, False, now.begun, heard, self._sure(now))
        row["begun"], row["size"], row["surprise"], row["characters"] = (
            now.begun,
            now.size,
            now.surprise,
            now.characters,
        )
        kept[:] = np.frombuffer(now.text.encode().ljust(len(kept), b"\0"), np.uint8)

    def _last(self, now: _Utterance) -> int:
        """The step that ends it at the latest."""
        return now.begun + self._limits.steps - 2

    def _end(self, answers: Answers, record: int, now: _Utterance, heard: int) -> str:
        """Says it, and what of the next one was said already: nothing."""
        answers.say(record, now.text.strip(" "), True, now.begun, int(heard), self._sure(now))
        now.clear()
        return ""

    def _sure(self, now: _Utterance) -> float | None:
        return math.exp(-now.surprise / now.characters / MICRO) if self._confidence else None
