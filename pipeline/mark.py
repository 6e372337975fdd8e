"""What stands beside a partition's committed offset, and what it is good for: tag, C, D, R, digest. Pure.

Offsets are *done* when their outputs and dead letters are visible: all below C, the committed offset, and the set D
above it. Sets of offsets are runs ``(first, end)``, ascending, apart from each other, ``end`` not included.
"""

from __future__ import annotations

import base64
import binascii
import enum
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.columns import I64, Bools, Committed
from pipeline.errors import Broken

MARK_VERSION = 3
MARK_BYTES_MAX = 3000
"""Of base64 beside an offset (X2); brokers refuse more than 4,096 by default."""
_OF_2 = struct.Struct("<B16sqqH8s8s")
"""The version before, which does not say of which input an offset is; newer ones begin like it."""
_MARK = struct.Struct("<B16sqqH8s8s8s")
_FORMS = {2: _OF_2, MARK_VERSION: _MARK}
DONE_BYTES_MAX = MARK_BYTES_MAX * 3 // 4 - _MARK.size - 3
"""What D may take of a mark, bytes."""

ANY = bytes(8)
"""In place of a topic's mark: none was known."""


class Topics(NamedTuple):
    """Which topic an offset is of, and which one its snapshots are in: eight bytes of the id of each. One that was
    deleted and made anew has the same name, and another id."""

    changelog: bytes = ANY
    input: bytes = ANY

    @staticmethod
    def of(changelog_id: bytes, input_id: bytes) -> Topics:
        """From topic ids of 16 bytes; all zero: the cluster has none."""
        return Topics(changelog_id[: len(ANY)], input_id[: len(ANY)])

    def others(self, there: Topics) -> list[str]:
        """Which of them are ``there`` no more, the one under their name being another."""
        return [name for name, was, now in zip(self._fields, self, there) if ANY not in (was, now) and was != now]


NOT_KNOWN = Topics()

Run = tuple[int, int]
"""Offsets from the first to before the second."""
FOR_EVER = 2**63 - 1


def runs_of(offsets: I64, ends: I64 | None = None) -> tuple[Run, ...]:
    """Ascending, distinct offsets, int64 ``[n]``, each alone or up to its end, which is not beyond the next offset."""
    if not len(offsets):
        return ()
    if ends is None:
        ends = offsets + 1
    breaks = np.flatnonzero(offsets[1:] > ends[:-1])
    firsts = offsets[np.concatenate(([0], breaks + 1))]
    lasts = ends[np.concatenate((breaks, [len(offsets) - 1]))]
    return tuple(zip(firsts.tolist(), lasts.tolist()))


def without(runs: Iterable[Run], taken: Sequence[Run]) -> list[Run]:
    """``runs`` less ``taken``."""
    left: list[Run] = []
    at = 0
    for begin, end in runs:
        first = begin
        while at < len(taken) and taken[at][1] <= first:
            at += 1
        i = at
        while first < end:
            if i == len(taken) or taken[i][0] >= end:
                left.append((first, end))
                break
            if taken[i][0] > first:
                left.append((first, taken[i][0]))
            first = max(first, taken[i][1])
            i += 1
    return left


def contains(runs: Sequence[Run], offsets: I64) -> Bools:
    """bool ``[n]``: which of these offsets, in any order, are in ``runs``."""
    if not runs:
        return np.zeros(len(offsets), np.bool_)
    firsts, ends = np.array(runs, np.int64).T
    at = firsts.searchsorted(offsets, "right") - 1
    inside: Bools = (at >= 0) & (offsets < ends[at])
    return inside


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a partition has come: every offset below ``next`` is done but those of ``gaps``."""

    next: int
    gaps: tuple[Run, ...] = ()

    @property
    def low(self) -> int:
        """The first offset that is not done."""
        return self.gaps[0][0] if self.gaps else self.next

    def and_done(self, done: Sequence[Run]) -> Progress:
        """With what was ``done`` before."""
        if not done:
            return self
        left = without([*self.gaps, (self.next, FOR_EVER)], done)
        return Progress(left[-1][0], tuple(left[:-1]))

    @property
    def done_above(self) -> tuple[Run, ...]:
        """D: what is done above the first offset that is not."""
        return tuple(
            (end, first)
            for (_, end), (first, _) in zip(self.gaps, [*self.gaps[1:], (self.next, self.next)])
            if first > end
        )

    @property
    def fits(self) -> bool:
        """Whether D has room in a mark (X2)."""
        # Two varints a run, of one to nine bytes; as many runs as gaps, but one or two.
        if (len(self.gaps) - 2) * 2 > DONE_BYTES_MAX:
            return False
        return len(self.gaps) * 18 <= DONE_BYTES_MAX or len(_encode_runs(self.low, self.done_above)) <= DONE_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Mark:
    """The metadata beside a committed offset (X2)."""

    tag: bytes
    committed: int
    """C, once more: an offset set by somebody's tool does not have it."""
    replay_from: int
    """R."""
    digest: bytes
    done_above: tuple[Run, ...] = ()
    """D."""
    version: int = MARK_VERSION
    topics: Topics = NOT_KNOWN

    def encode(self) -> str:
        above = self.done_above
        head = _MARK.pack(
            *(self.version, self.tag, self.committed, self.replay_from, len(above), self.digest, *self.topics)
        )
        text = base64.b64encode(head + _encode_runs(self.committed, above)).decode()
        if len(text) > MARK_BYTES_MAX:
            raise Broken(f"offset metadata of {len(text)} bytes, at most {MARK_BYTES_MAX}")
        return text

    @staticmethod
    def decode(text: str) -> Mark | None:
        """None for metadata that is not Eddy's (blank, or another program's)."""
        try:
            raw = base64.b64decode(text, validate=True)
            form = _FORMS.get(raw[0], _OF_2)
            version, tag, committed, replay_from, runs, digest, *topics = form.unpack_from(raw)
            # Of a version that is not known only the version is believed: the takeover names it.
            done = _decode_runs(committed, raw[form.size :], runs) if version in _FORMS else ()
        except (binascii.Error, ValueError, IndexError, struct.error):
            return None
        return Mark(tag, committed, replay_from, digest, done, version, Topics(*topics))

    @property
    def done(self) -> list[Run]:
        """All that is done: below C, and D."""
        return [(-FOR_EVER, self.committed), *self.done_above]


def _encode_runs(start: int, runs: Iterable[Run]) -> bytes:
    """Of each run the distance from the end of the one before it, and its length, as varints."""
    out = bytearray()
    for first, end in runs:
        for number in (first - start, end - first):
            left = number
            while left > 127:
                out.append(left & 127 | 128)
                left >>= 7
            out.append(left)
        start = end
    return bytes(out)


def _decode_runs(start: int, raw: bytes, count: int) -> tuple[Run, ...]:
    at, runs = 0, []
    for _ in range(count):
        pair = []
        for _ in range(2):
            number = shift = 0
            while raw[at] > 127:
                number |= (raw[at] & 127) << shift
                shift += 7
                at += 1
            pair.append(number | raw[at] << shift)
            at += 1
        first = start + pair[0]
        start = first + pair[1]
        runs.append((first, start))
    return tuple(runs)


class Tags:
    """Unique per part: eight random bytes per process start, and a counter (X2)."""

    def __init__(self, incarnation: bytes) -> None:
        if len(incarnation) != 8:
            raise ValueError(f"incarnation of {len(incarnation)} bytes, expected 8")
        self._incarnation, self._count = incarnation, 0

    def next(self) -> bytes:
        self._count += 1
        return self._incarnation + self._count.to_bytes(8, "big")


def stable_tag(committed: Committed | None) -> bytes | None:
    """The tag that the group holds; None where it has no offset. An offset that another tool has set names itself."""
    if committed is None:
        return None
    mark = Mark.decode(committed.metadata)
    return mark.tag if mark is not None else b"not of Eddy: offset %d" % committed.offset


class Verdict(enum.Enum):
    """What the group's stable tag says of a partition's memory."""

    KEEP = "keep"
    PROMOTE = "promote"
    """Memory is valid, and its frozen part is committed."""
    DROP = "drop"


def own_rule(base: bytes | None, frozen: bytes | None, stable: bytes | None) -> Verdict:
    """X4: memory is valid iff the stable tag is its base or the tag of its frozen part.

    ``base``: the tag that the takeover read, then that of the last own part committed; ``frozen``: that of the frozen
    part, None without one; ``stable``: what the group holds (None: it has no offset, as before a new group's first).
    """
    if frozen is not None and stable == frozen:
        return Verdict.PROMOTE
    return Verdict.KEEP if stable == base else Verdict.DROP
