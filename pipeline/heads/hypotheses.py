"""The hypotheses of a prefix beam search, for many streams at once: what a step does to them, and how a row keeps them.

Of a text that ends in the label l, two probabilities are kept: of all alignments of the steps so far that end in the
blank, and of those that end in l (Graves 2008, "Supervised Sequence Labelling with Recurrent Neural Networks", 7.5;
Hannun et al. 2014, https://arxiv.org/abs/1408.2873). What the language model says of a character, and the bonus for it,
are counted when the character is added, so they are in both. All are logarithms, relative to the likeliest hypothesis.

Hypotheses share most of their text. What all of them agree in, and what is too far back to be changed, is kept once:
the *settled* text; each has a *tail* of its own behind that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import I64, U8, AnyArray, Bools
from pipeline.heads.language_model import F32, Tables
from pipeline.heads.transcript import Labels

Where: TypeAlias = "slice | I64"

HASH, PARENT, VISIBLE, LAST, LENGTH, SIZE, STATE = range(7)
"""The fields of a hypothesis: hashes of its text, of that without its last label, of that without spaces at its end;
its last label (-1: none), how many labels it has, how many bytes, and its state in the language model."""
FIELDS = 7
MULTIPLIER = 0x5851F42D4C957F2D
"""A hash of 64 bits is that of the text before it, times this, plus the label plus one; those of a stream's hypotheses
begin at the end of what was settled when the poll began."""
NO_TEXT, NO_PARENT, DEAD = 0x2545F4914F6CDD1D, 0, 1
"""Hashes of no text behind the settled one, of the text before that, and of a hypothesis that is none."""
NEVER = np.float32(-np.inf)


def _powers(n: int) -> I64:
    """MULTIPLIER ** i, modulo 2 ** 64, as signed numbers."""
    return np.array([pow(MULTIPLIER, i, 1 << 64) for i in range(n)], np.uint64).view(np.int64)


def _largest(scores: F32, n: int) -> I64:
    """int64 ``[B, n]``: where the largest of each row are, ascending; of equals the first ones. A partial sort alone
    would leave it to the machine which of them."""
    least = np.partition(scores, -n, axis=1)[:, -n, None]
    kept = scores >= least
    if np.count_nonzero(kept) > len(scores) * n:
        above, equal = scores > least, scores == least
        room = n - np.count_nonzero(above, axis=1)[:, None]
        kept = above | (equal & (np.cumsum(equal, axis=1) <= room))
    places: I64 = np.nonzero(kept)[1].reshape(len(scores), n)
    return places


@dataclass
class Beams:
    """The hypotheses of ``B`` streams, ``K`` each, the likeliest first; those that are none have ``NEVER``."""

    blank: F32
    """float32 ``[B, K]``: of alignments that end in the blank."""
    label: F32
    """float32 ``[B, K]``: of those that end in the text's last label."""
    fields: I64
    """int64 ``[B, K, FIELDS]``."""
    tails: AnyArray
    """uint8 or uint16 ``[B, K, L]``: labels behind the settled text, zeros behind these."""
    text: AnyArray
    """``[B, N]``: the settled text, zeros behind it."""
    settled: I64
    """int64 ``[B]``: how many labels that has."""
    before: I64
    """int64 ``[B]``: the last label that was settled, -1 where there is none; one of an utterance before may be it."""


class Search:
    """What all streams have in common. ``L`` labels at most are in a tail, ``N`` at most in a text."""

    def __init__(self, labels: Labels, tables: Tables, *, width: int, tail: int, text: int) -> None:
        """``tables``: what a character adds to a text's logarithm, the language model's part weighted already."""
        size = len(labels.texts)
        self._added, self._after, self._tables = tables.log.copy(), tables.after, tables
        self._added[:, labels.blank] = NEVER
        self._labels, self._width, self._tail, self._text = labels, width, tail, text
        self._sizes = np.array([len(t.encode()) for t in labels.texts])
        self._powers = _powers(tail + 1)
        self._inverse = np.array([pow(MULTIPLIER, -1, 1 << 64)], np.uint64).view(np.int64)[0]
        self._multiplier = self._powers[1]
        kind = "u1" if size <= 256 else "<u2"
        self._row = np.dtype(
            [
                ("settled", "<i4"),
                ("before", "<i4"),  # 1 + the label; 0: none
                ("live", "<i4"),  # how many hypotheses; 0: a new stream
                ("blank", "<f4", (width,)),
                ("label", "<f4", (width,)),
                ("length", "u1", (width,)),
                ("tail", kind, (width, tail)),
                ("text", kind, (text,)),
            ]
        )
        self.memory_bytes = self._row.itemsize

    # ---- the row

    def load(self, raw: U8) -> Beams:
        """``uint8 [B, memory_bytes]``, contiguous; it is not changed."""
        rows: NDArray[Any] = raw.view(self._row)[:, 0]
        live = np.arange(self._width) < np.maximum(rows["live"], 1)[:, None]
        blank = np.where(live, rows["blank"], NEVER)
        label = np.where(live, rows["label"], NEVER)
        label[rows["live"] == 0] = NEVER
        tails, text = rows["tail"].copy(), rows["text"].copy()
        length, settled, before = rows["length"].astype(np.int64), rows["settled"].astype(np.int64), rows["before"] - 1
        fields = np.empty((*length.shape, FIELDS), np.int64)
        whole = settled[:, None] + length
        last = np.take_along_axis(tails, np.maximum(length - 1, 0)[:, :, None], 2)[:, :, 0].astype(np.int64)
        last = np.where(length > 0, last, before[:, None])
        found = self._hash(tails, length)
        fields[:, :, HASH] = found
        fields[:, :, PARENT] = np.where(length > 0, (found - last - 1) * self._inverse, NO_PARENT)
        fields[:, :, VISIBLE] = self._hash(tails, length - self._spaces(tails, length))
        fields[:, :, LAST] = last
        fields[:, :, LENGTH] = whole
        used = np.arange(self._tail) < length[:, :, None]
        in_text = np.arange(self._text) < settled[:, None]
        sizes = (self._sizes[text] * in_text).sum(axis=1)[:, None] + (self._sizes[tails] * used).sum(axis=2)
        fields[:, :, SIZE] = sizes
        fields[:, :, STATE] = self._states(text, settled, tails, whole)
        beams = Beams(blank, label, fields, tails, text, settled, before.astype(np.int64))
        self._bury(beams, slice(None), ~live)
        return beams

    def store(self, beams: Beams) -> U8:
        """``uint8 [B, memory_bytes]``. The row says the same whenever it is asked: all that can be is settled."""
        self.settle(beams, np.arange(len(beams.settled)))
        rows = np.zeros(len(beams.settled), self._row)
        live = beams.fields[:, :, HASH] != DEAD
        rows["settled"], rows["before"], rows["live"] = beams.settled, beams.before + 1, live.sum(axis=1)
        rows["blank"], rows["label"] = np.where(live, beams.blank, 0), np.where(live, beams.label, 0)
        rows["length"] = np.where(live, beams.fields[:, :, LENGTH] - beams.settled[:, None], 0)
        rows["tail"], rows["text"] = beams.tails, beams.text
        raw: U8 = rows.view(np.uint8).reshape(len(rows), -1)
        return raw

    def _hash(self, tails: AnyArray, length: I64) -> I64:
        back = length[:, :, None] - 1 - np.arange(self._tail)
        terms = (tails.astype(np.int64) + 1) * self._powers[np.maximum(back, 0)]
        hashed: I64 = (terms * (back >= 0)).sum(axis=2) + NO_TEXT * self._powers[length]
        return hashed

    def _spaces(self, tails: AnyArray, length: I64) -> I64:
        """How many spaces each tail ends in."""
        place = np.arange(self._tail)
        other = (tails != self._labels.space) & (place < length[:, :, None])
        spaces: I64 = length - np.where(other, place + 1, 0).max(axis=2)
        return spaces

    def _states(self, text: AnyArray, settled: I64, tails: AnyArray, whole: I64) -> I64:
        """In the language model, by the last labels of each text."""
        width = self._tables.memory
        if not width:
            return np.zeros(whole.shape, np.int64)
        place = whole[:, :, None] - width + np.arange(width)
        behind = place - settled[:, None, None]
        of_text = text[np.arange(len(text))[:, None, None], np.clip(place, 0, self._text - 1)]
        of_tail = np.take_along_axis(tails, np.clip(behind, 0, self._tail - 1), 2)
        labels = np.where(behind < 0, of_text, of_tail).reshape(-1, width)
        return self._tables.states(labels, whole.reshape(-1)).reshape(whole.shape).astype(np.int64)

    # ---- steps

    def quieten(self, beams: Beams, at: Where) -> None:
        """A step, or any number of them, in which the blank is all but certain."""
        beams.blank[at] = np.logaddexp(beams.blank[at], beams.label[at])
        beams.label[at] = NEVER

    def step(self, beams: Beams, at: Where, y: F32) -> None:
        """One step of the streams ``at``; ``y``: float32 ``[len(at), C]``, logarithms of the labels' probabilities."""
        blank, space = self._labels.blank, self._labels.space
        fields, label = beams.fields[at], beams.label[at]
        m, width, size = len(y), self._width, y.shape[1]
        rows, columns = np.arange(m)[:, None], np.arange(width)
        last, state = fields[:, :, LAST], fields[:, :, STATE]
        total = np.logaddexp(beams.blank[at], label)

        # A text stays as it is by the blank, and by its last label again.
        stay_blank = total + y[:, blank, None]
        repeated = np.where(last >= 0, last, blank)
        y_repeated = y[rows, repeated]
        stay_label = label + np.where(last >= 0, y_repeated, NEVER)
        # It is longer by a label; by its last one only after a blank.
        added = self._added[state]
        longer = total[:, :, None] + (y[:, None, :] + added)
        longer[rows, columns, repeated] = beams.blank[at] + (y_repeated + added[rows, columns, repeated])
        if space >= 0:
            # No text begins with a space: there it is the same as the blank.
            i, k = np.nonzero(fields[:, :, LENGTH] == 0)
            stay_blank[i, k] = total[i, k] + np.logaddexp(y[i, blank], y[i, space])
            longer[i, k, space] = NEVER
        # What becomes a text that is there already is added to it.
        i, j, k = np.nonzero(fields[:, :, PARENT, None] == fields[:, None, :, HASH])
        if len(i):
            by = last[i, j]
            stay_label[i, j] = np.logaddexp(stay_label[i, j], longer[i, k, by])
            longer[i, k, by] = NEVER

        scores = np.concatenate([np.logaddexp(stay_blank, stay_label), longer.reshape(m, -1)], axis=1)
        # Of equals, texts that stay come first, then the likelier parent's, then the first label's.
        top = _largest(scores, width)
        score = np.take_along_axis(scores, top, 1)
        order = np.argsort(-score, axis=1, kind="stable")
        top, score = np.take_along_axis(top, order, 1), np.take_along_axis(score, order, 1)
        is_new = top >= width
        parent, by = np.divmod(top - width, size)
        parent = np.where(is_new, parent, top)
        best = score[:, :1]
        fields = fields[rows, parent]
        tails = beams.tails[at][rows, parent]
        new_blank = np.where(is_new, NEVER, stay_blank[rows, parent] - best)
        new_label = np.where(is_new, score - best, stay_label[rows, parent] - best)

        i, k = np.nonzero(is_new)
        by = by[i, k]
        hashed = fields[i, k, HASH]
        grown = hashed * self._multiplier + by + 1
        tails[i, k, fields[i, k, LENGTH] - beams.settled[at][i]] = by
        fields[i, k, PARENT] = hashed
        fields[i, k, HASH] = grown
        fields[i, k, VISIBLE] = np.where(by == space, fields[i, k, VISIBLE], grown)
        fields[i, k, LAST] = by
        fields[i, k, LENGTH] += 1
        fields[i, k, SIZE] += self._sizes[by]
        fields[i, k, STATE] = self._after[fields[i, k, STATE], by]
        beams.blank[at], beams.label[at], beams.fields[at], beams.tails[at] = new_blank, new_label, fields, tails
        dead = score == NEVER
        if dead.any():
            self._bury(beams, at, dead)
        tail_lengths = beams.fields[at, :, LENGTH] - beams.settled[at][:, None]
        crowded = (tail_lengths >= self._tail).any(axis=1)
        if crowded.any():
            self.settle(beams, (np.arange(len(beams.settled))[at])[crowded])

    def _bury(self, beams: Beams, at: Where, dead: Bools) -> None:
        """These are no hypotheses. Their fields and tails say so, the same for all."""
        fields, tails = beams.fields[at], beams.tails[at]
        blank, label = beams.blank[at], beams.label[at]
        fields[dead] = (DEAD, NO_PARENT, DEAD, -1, 0, 0, 0)
        tails[dead] = 0
        blank[dead], label[dead] = NEVER, NEVER
        beams.fields[at], beams.tails[at], beams.blank[at], beams.label[at] = fields, tails, blank, label

    # ---- what is settled

    def settle(self, beams: Beams, at: I64) -> None:
        """What all hypotheses of these streams agree in becomes the settled text. Where a tail has no room for another
        label even then, the likeliest one's first half is settled, too, and those that differ there are given up."""
        self._settle_common(beams, at)
        fields = beams.fields[at]
        live = fields[:, :, HASH] != DEAD
        length = fields[:, :, LENGTH] - beams.settled[at][:, None]
        full = (live & (length >= self._tail)).any(axis=1)
        if not full.any():
            return
        at, live, length = at[full], live[full], length[full]
        tails = beams.tails[at]
        half = np.minimum(length[:, 0], self._tail // 2)[:, None]
        differs = ((tails != tails[:, :1]) & (np.arange(self._tail) < half[:, :, None])).any(axis=2)
        dead = ~live | differs | (length < half) | ((half == 0) & (length >= self._tail))
        self._bury(beams, at, dead)
        order = np.argsort(dead, axis=1, kind="stable")
        rows = np.arange(len(at))[:, None]
        for column in (beams.blank, beams.label, beams.fields, beams.tails):
            column[at] = column[at][rows, order]
        self._settle_common(beams, at)

    def _settle_common(self, beams: Beams, at: I64) -> None:
        tails, fields = beams.tails[at], beams.fields[at]
        dead = fields[:, :, HASH] == DEAD
        length = np.where(dead, self._tail, fields[:, :, LENGTH] - beams.settled[at][:, None])
        place = np.arange(self._tail)
        agrees = ((tails == tails[:, :1]) | dead[:, :, None]) & (place < length[:, :, None])
        common = np.logical_and.accumulate(agrees.all(axis=1), axis=1).sum(axis=1)
        some = np.flatnonzero(common)
        if not len(some):
            return
        at, tails, common = at[some], tails[some], common[some]
        i, j = np.nonzero(place < common[:, None])
        settled = beams.settled[at]
        beams.text[at[i], settled[i] + j] = tails[i, 0, j]
        beams.before[at] = tails[np.arange(len(at)), 0, common - 1]
        beams.settled[at] = settled + common
        source = place + common[:, None]
        moved = np.take_along_axis(tails, np.minimum(source, self._tail - 1)[:, None, :], 2)
        beams.tails[at] = np.where((source < self._tail)[:, None, :], moved, 0)

    # ---- what they say

    def best(self, beams: Beams, b: int) -> str:
        """The likeliest text of one stream."""
        settled = int(beams.settled[b])
        length = int(beams.fields[b, 0, LENGTH]) - settled
        numbers = [*beams.text[b, :settled].tolist(), *beams.tails[b, 0, :length].tolist()]
        return "".join([self._labels.texts[n] for n in numbers])

    def clear(self, beams: Beams, b: int) -> None:
        """The next text begins; of the likeliest one only its last label is known: it may sound on."""
        last = int(beams.fields[b, 0, LAST])
        kept = beams.blank[b, 0], beams.label[b, 0]
        if last == self._labels.space:
            last, kept = -1, (np.logaddexp(*kept), NEVER)
        self._bury(beams, slice(b, b + 1), np.ones((1, self._width), np.bool_))
        beams.blank[b, 0], beams.label[b, 0] = kept - np.logaddexp(*kept)
        beams.fields[b, 0] = (NO_TEXT, NO_PARENT, NO_TEXT, last, 0, 0, self._tables.begin)
        beams.text[b], beams.settled[b], beams.before[b] = 0, 0, last
