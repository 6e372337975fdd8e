"""Records that wait for others of their own stream while their neighbours pass: what a partition publishes ahead of.

A stream that generates, or that has more steps waiting than one poll takes of a stream, keeps its records here, in
order. Their offsets are the gaps below what the partition has taken (D is what lies between them). Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pipeline.columns import I64, Segment
from pipeline.mark import FOR_EVER, Run, runs_of


class Aside:
    """See the module. One partition's."""

    def __init__(self) -> None:
        self._queues: dict[bytes, deque[Segment]] = {}
        """Stream -> its records in order; the stream whose turn it is first."""
        self.nbytes = 0
        self.records = 0
        self._runs: tuple[Run, ...] | None = ()

    def __contains__(self, key: bytes) -> bool:
        return key in self._queues

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, segment: Segment, later: Mapping[bytes, Sequence[int]]) -> None:
        """Records of a stretch, by stream and index: the last of each stream."""
        for key, which in later.items():
            self._put(key, segment.pick(which))

    def _put(self, key: bytes, segment: Segment) -> None:
        self._queues.setdefault(key, deque()).append(segment)
        self._changed(segment, 1)

    def _changed(self, segment: Segment, sign: int) -> None:
        self.nbytes += sign * segment.nbytes
        self.records += sign * len(segment)
        self._runs = None

    def take(self, ready: Callable[[bytes], bool], each: int, most: int) -> list[tuple[bytes, Segment]]:
        """The first records of streams that are ``ready``: ``each`` of a stream, ``most`` in all. Those streams are the
        last to have their next turn."""
        taken: list[tuple[bytes, Segment]] = []
        for key in list(self._queues):
            if most <= 0:
                break
            if ready(key):
                taken.append((key, self._first(key, min(each, most))))
                most -= len(taken[-1][1])
        return taken

    def take_lowest(self, ready: Callable[[bytes], bool], each: int, most: int) -> list[tuple[bytes, Segment]]:
        """The records with the lowest offsets that wait here, up to the first whose stream is not ready or has given as
        many as ``each``: nothing that is taken passes anything."""
        firsts: dict[bytes, I64] = {}
        end = FOR_EVER
        for key, queue in self._queues.items():
            offsets = queue[0].offsets
            n = min(each, len(offsets)) if ready(key) else 0
            firsts[key] = offsets[:n]
            if n < len(offsets):
                end = min(end, int(offsets[n]))
            elif len(queue) > 1:
                end = min(end, int(queue[1].offsets[0]))
        waiting = np.sort(np.concatenate([np.empty(0, np.int64), *firsts.values()]))
        waiting = waiting[waiting < end][:most]
        if not len(waiting):
            return []
        counts = {key: int(offsets.searchsorted(waiting[-1], "right")) for key, offsets in firsts.items()}
        return [(key, self._first(key, n)) for key, n in counts.items() if n]

    def _first(self, key: bytes, n: int) -> Segment:
        """A stream's first ``n`` records, at least one; it is the last to have its next turn."""
        queue, pieces = self._queues.pop(key), list[Segment]()
        while queue and n > 0:
            piece, rest = queue.popleft().cut(n)
            if len(rest):
                queue.appendleft(rest)
            self._changed(piece, -1)
            pieces.append(piece)
            n -= len(piece)
        if queue:
            self._queues[key] = queue
        return Segment.join(pieces)

    def any(self, ready: Callable[[bytes], bool]) -> bool:
        """Whether a stream is ``ready``."""
        return any(map(ready, self._queues))

    def give_back(self, key: bytes, segment: Segment) -> None:
        """What was taken and cannot go now: it is the stream's first again."""
        self._queues.setdefault(key, deque()).appendleft(segment)
        self._changed(segment, 1)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The offsets that wait here. A transaction's marker behind one of them counts with it, or D would take a run
        for each."""
        if self._runs is None:
            segments = [s for queue in self._queues.values() for s in queue]
            offsets = np.concatenate([np.empty(0, np.int64), *(s.offsets for s in segments)])
            ends = np.concatenate(
                [np.empty(0, np.int64), *(s.ends if s.ends is not None else s.offsets + 1 for s in segments)]
            )
            ascending = np.argsort(offsets, kind="stable")
            self._runs = runs_of(offsets[ascending], ends[ascending])
        return self._runs

    def first_of(self, offset: int) -> bytes | None:
        """Which stream this offset belongs to, if it waits here."""
        for key, queue in self._queues.items():
            if int(queue[0].offsets[0]) == offset:
                return key
        return None

    def clear(self) -> None:
        self._queues.clear()
        self.nbytes = self.records = 0
        self._runs = ()
