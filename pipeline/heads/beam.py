"""Decoding by a beam of hypotheses and a language model: where utterances end, and what each record says.

A step in which the blank is all but certain changes no hypothesis, only how its alignments end, however many such steps
there are; so these, most of a stream, cost no search. The others go step by step, for all streams of a poll at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.columns import I64, U8, AnyArray, Bools
from pipeline.heads.frames import ROW, Frames, surprise_of
from pipeline.heads.hypotheses import LENGTH, SIZE, VISIBLE, Beams, Search
from pipeline.heads.language_model import F32
from pipeline.heads.transcript import MICRO, Answers, Labels, Limits

NOTHING_SHOWN = 0
"""The hash of no text."""
FAR = np.iinfo(np.int64).max
LOG_MIN = -1e4
"""Of a probability: a model may say that a label is impossible, and what is no number counts as that."""


@dataclass(slots=True)
class _Ticks:
    """What happens in each stream, in order: its steps that are searched, and the ends of its records."""

    first: I64
    """int64 ``[B + 1]``: where each stream's begin."""
    is_step: Bools
    place: I64
    """Of a step: among the frames. Of a record's end: which record."""
    number: I64
    """Of a step: its own. Of a record's end: the record's last."""
    record: I64
    """Which record it is in."""
    quiet: Bools
    """Whether steps that are not searched come before it."""


@dataclass(slots=True)
class _Now:
    """The streams of a poll while it is decoded, in an order of their own."""

    stream: I64
    """Which of the frames'."""
    beams: Beams
    begun: I64
    heard: I64
    surprise: I64
    characters: I64
    quiet: Bools
    """Steps that were not searched are still to be told the hypotheses."""
    shown: I64
    """Hash of the text that was shown last."""


class Beam:
    """See the module. ``certain``: the blank's probability from which on a step is not searched, above one half."""

    def __init__(
        self, labels: Labels, limits: Limits, search: Search, *, certain: float, partial: bool, confidence: bool
    ) -> None:
        self._labels, self._limits, self._search = labels, limits, search
        self._certain = math.log(certain)
        self._partial, self._confidence = partial, confidence
        self._full = limits.bytes - labels.bytes_max
        self.memory_bytes = ROW.itemsize + search.memory_bytes

    def decode(self, frames: Frames, outputs: AnyArray, memory: U8, answers: Answers) -> None:
        """Changes the rows of ``frames``, and the hypotheses behind them in ``memory``."""
        y = log_softmax(outputs)
        searched = y[frames.where, self._labels.blank] < self._certain
        steps = np.concatenate([[0], np.cumsum(searched)])
        busy = (np.diff(steps[frames.first]) > 0) | (frames.rows["begun"] > 0) | (frames.rows["size"] == 0)
        if not busy.any():
            return
        ticks = _ticks_of(frames, searched)
        counts = np.where(busy, np.diff(ticks.first), 0)
        stream = np.argsort(-counts, kind="stable")[: np.count_nonzero(busy)]
        surprise = np.zeros(len(frames.where), np.int64)
        if self._confidence:
            new = np.flatnonzero(frames.new)
            surprise[new] = surprise_of(outputs[frames.where[new]], frames.label[new])

        slots, rows = frames.slots[stream], frames.rows
        beams = self._search.load(np.ascontiguousarray(memory[slots, ROW.itemsize :]))
        now = _Now(
            stream,
            beams,
            rows["begun"][stream],
            frames.heard_before[stream],
            rows["surprise"][stream],
            rows["characters"][stream].astype(np.int64),
            np.zeros(len(stream), np.bool_),
            beams.fields[:, 0, VISIBLE].copy(),
        )
        lengths = counts[stream]
        for k in range(int(lengths[0])):
            n = int(np.searchsorted(-lengths, -k))
            at = ticks.first[stream[:n]] + k
            self._tick(frames, ticks, at, now, y, surprise, answers)
        last_quiet = np.flatnonzero(now.quiet)
        self._search.quieten(beams, last_quiet)
        memory[slots, ROW.itemsize :] = self._search.store(beams)
        rows["begun"][stream], rows["surprise"][stream] = now.begun, now.surprise
        rows["characters"][stream] = now.characters
        rows["size"][stream] = (beams.label == -np.inf).all(axis=1)

    def _tick(self, frames: Frames, ticks: _Ticks, at: I64, now: _Now, y: F32, surprise: I64, answers: Answers) -> None:
        n = len(at)
        number, is_step = ticks.number[at], ticks.is_step[at]
        begun, heard = now.begun[:n], now.heard[:n]
        now.quiet[:n] |= ticks.quiet[at]
        # An utterance that ended since the last tick, or that this record's last step, or end, ends.
        due = np.minimum(np.maximum(heard, begun) + self._limits.silence, begun + self._limits.steps - 1) - 1
        over = (begun > 0) & np.where(is_step, due < number, due <= number)
        over |= (begun > 0) & ~is_step & frames.ended[ticks.record[at]]
        for i in np.flatnonzero(over).tolist():
            self._end(frames, int(ticks.record[at[i]]), i, now, answers)

        mine = np.flatnonzero(is_step)
        if len(mine):
            place = ticks.place[at[mine]]
            quiet = mine[now.quiet[mine]]
            if len(quiet):
                self._search.quieten(now.beams, quiet)
                now.quiet[quiet] = False
            self._search.step(now.beams, slice(0, n) if len(mine) == n else mine, y[frames.where[place]])
            heard[mine] = frames.heard[place]
            new = frames.new[place]
            sounds = new & (frames.label[place] != self._labels.space)
            sounds |= now.beams.fields[mine, 0, LENGTH] > 0
            begun[mine] = np.where((begun[mine] == 0) & sounds, number[mine] + 1, begun[mine])
            said = mine[new & (begun[mine] > 0)]
            now.surprise[said] += surprise[ticks.place[at[said]]]
            now.characters[said] += 1
            for i in mine[now.beams.fields[mine, 0, SIZE] > self._full].tolist():
                self._end(frames, int(ticks.record[at[i]]), i, now, answers)

        if self._partial:
            best = now.beams.fields[:n, 0]
            changed = ~is_step & (best[:, LENGTH] > 0) & (best[:, VISIBLE] != now.shown[:n])
            for i in np.flatnonzero(changed).tolist():
                self._say(frames, int(ticks.record[at[i]]), i, now, answers, final=False)
            now.shown[:n] = np.where(is_step, now.shown[:n], best[:, VISIBLE])

    def _end(self, frames: Frames, record: int, i: int, now: _Now, answers: Answers) -> None:
        self._say(frames, record, i, now, answers, final=True)
        self._search.clear(now.beams, i)
        now.begun[i], now.surprise[i], now.characters[i], now.shown[i] = 0, 0, 0, NOTHING_SHOWN

    def _say(self, frames: Frames, record: int, i: int, now: _Now, answers: Answers, *, final: bool) -> None:
        text = self._search.best(now.beams, i).strip(" ")
        if text:
            sure = None
            if self._confidence:
                sure = math.exp(-int(now.surprise[i]) / max(1, int(now.characters[i])) / MICRO)
            answers.say(int(frames.record[record]), text, final, int(now.begun[i]), int(now.heard[i]), sure)


def _ticks_of(frames: Frames, searched: Bools) -> _Ticks:
    place = np.flatnonzero(searched)
    ends = frames.record_end
    offset = frames.rows["steps"] - frames.first[1:]
    # Sorted: a record's end comes after its last step, and before the first of what follows.
    keys = np.concatenate([2 * place, 2 * ends - 1])
    order = np.argsort(keys, kind="stable")
    stream_of_record = np.repeat(np.arange(len(frames.slots)), np.diff(frames.record_first))
    is_step = order < len(place)
    number = np.concatenate([frames.number[place], ends - 1 + offset[stream_of_record]])[order]
    record = np.concatenate([np.searchsorted(ends, place, side="right"), np.arange(len(ends))])[order]
    first = np.searchsorted(place, frames.first) + frames.record_first
    # Places up to which steps have been met before each tick: all but the searched ones among them were quiet.
    done = np.concatenate([place, ends])[order]
    behind = np.concatenate([place + 1, ends])[order]
    before = np.concatenate([[0], behind[:-1]])  # a stream's steps begin where the last record of the one before ends
    quiet = done > before
    return _Ticks(first, is_step, np.concatenate([place, np.arange(len(ends))])[order], number, record, quiet)


def log_softmax(outputs: AnyArray) -> F32:
    """float32 ``[n, C]``; each row of logits by itself."""
    x = outputs.astype(np.float32)
    if not np.isfinite(x).all():
        x = np.nan_to_num(x, nan=LOG_MIN, neginf=LOG_MIN, posinf=-LOG_MIN)
    x = np.clip(x, LOG_MIN, -LOG_MIN)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return np.maximum(x, LOG_MIN)
