"""A poll's steps as a decoder of transcripts wants them: stream after stream, with the likeliest label of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import I64, AnyArray, Bools
from pipeline.heads.base import Finished
from pipeline.heads.transcript import MICRO, Labels

ROW = np.dtype(
    [
        ("steps", "<i8"),  # of the stream so far
        ("begun", "<i8"),  # 1 + the step at which the utterance began; 0: none is going on
        ("heard", "<i8"),  # 1 + the last step that was no silence; 0: none yet
        ("surprise", "<i8"),  # -log p of the utterance's likeliest characters, summed, in millionths
        ("characters", "<i4"),  # how many these are
        ("last", "<i4"),  # 1 + the label of the last step; 0: no step yet
        ("size", "<i4"),  # of the text behind these fields, bytes; of a beam: 1 where it is quiet
    ]
)
"""How a stream's row begins."""
SURPRISE_MAX = 100.0


@dataclass(slots=True)
class Frames:
    """``M`` steps of ``B`` streams, in ``R`` records; streams in the order of their slots, each one's records in order.

    A step is silent where the blank or the space is likeliest.
    """

    slots: I64
    """int64 ``[B]``, distinct."""
    rows: NDArray[Any]
    """``ROW [B]``, a copy: as they are after the steps, but for the utterance's fields."""
    heard_before: I64
    """int64 ``[B]``: ``heard`` of the step before these."""
    first: I64
    """int64 ``[B + 1]``: where each stream's steps begin."""
    record: I64
    """int64 ``[R]``: which of the poll's records."""
    record_first: I64
    """int64 ``[B + 1]``: where each stream's records begin."""
    record_end: I64
    """int64 ``[R]``: where each record's steps end."""
    ended: Bools
    """bool ``[R]``: the record ends its stream."""
    where: I64
    """int64 ``[M]``: the step's place in the model's output."""
    number: I64
    """int64 ``[M]``: the step's number in its stream."""
    label: I64
    """int64 ``[M]``: the likeliest."""
    new: Bools
    """bool ``[M]``: the label is a character, and not that of the step before."""
    heard: I64
    """int64 ``[M]``: 1 + the number of the last step up to this one that was not silent; 0: there was none."""


def frames_of(finished: Finished, memory: AnyArray, labels: Labels) -> Frames | None:
    """The steps of a poll; None where nothing happens in it."""
    some = np.flatnonzero((finished.counts > 0) | finished.ended)
    if not len(some):
        return None
    record = some[np.argsort(finished.slots[some], kind="stable")]
    slots, record_first = np.unique(finished.slots[record], return_index=True)
    counts = finished.counts[record]
    record_end = np.cumsum(counts)
    first = np.append(record_end[record_first] - counts[record_first], record_end[-1])
    where = np.arange(int(record_end[-1]))
    where += np.repeat(np.cumsum(finished.counts)[record] - record_end, counts)

    rows = np.ascontiguousarray(memory[slots, : ROW.itemsize]).view(ROW)[:, 0]
    lengths = np.diff(first)
    moved = np.flatnonzero(lengths)
    label = finished.outputs[0].argmax(axis=1)[where]
    before = np.empty_like(label)
    before[1:] = label[:-1]
    last = rows["last"][moved]
    before[first[moved]] = np.where(last > 0, last - 1, labels.blank)
    number = np.arange(len(where)) + np.repeat(rows["steps"] - first[:-1], lengths)

    silent = (label == labels.blank) | (label == labels.space)
    place = np.maximum.accumulate(np.where(silent, -1, np.arange(len(where)))) if len(where) else where
    mine = place >= np.repeat(first[:-1], lengths)
    heard = np.where(mine, number[place] + 1, np.repeat(rows["heard"], lengths))

    heard_before = rows["heard"].copy()
    at = first[1:][moved] - 1
    rows["steps"] += lengths
    rows["heard"][moved] = heard[at]
    rows["last"][moved] = label[at] + 1
    return Frames(
        slots,
        rows,
        heard_before,
        first,
        record,
        np.append(record_first, len(record)),
        record_end,
        finished.ended[record],
        where,
        number,
        label,
        (label != labels.blank) & (label != before),
        heard,
    )


def surprise_of(outputs: AnyArray, labels: AnyArray) -> I64:
    """int64 ``[k]``: -log of the probability of one label in each row of ``[k, C]`` logits, in millionths."""
    x = outputs.astype(np.float64, order="C")
    with np.errstate(invalid="ignore", over="ignore"):  # what is no number counts as the least likely
        x -= x.max(axis=1, keepdims=True)
        found = np.log(np.exp(x).sum(axis=1)) - x[np.arange(len(x)), labels]
    bounded = np.clip(np.nan_to_num(found, nan=SURPRISE_MAX), 0.0, SURPRISE_MAX)
    whole: I64 = np.rint(bounded * MICRO).astype(np.int64)
    return whole
