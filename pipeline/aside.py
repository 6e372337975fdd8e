"""Records that wait for others of their own stream while their neighbours pass: what a partition publishes ahead of.

A stream that generates, or that has more steps waiting than one poll takes of a stream, keeps its records here, in
order. Their offsets are the gaps below what the partition has taken (D is what lies between them). Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pipeline.columns import Segment
from pipeline.mark import Run, runs_of


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
            if not ready(key):
                continue
            queue = self._queues.pop(key)
            first, rest = queue.popleft().cut(min(each, most))
            self._changed(first, -1)
            if len(rest):
                queue.appendleft(rest)
            if queue:
                self._queues[key] = queue
            most -= len(first)
            taken.append((key, first))
        return taken

    def any(self, ready: Callable[[bytes], bool]) -> bool:
        """Whether a stream is ``ready``."""
        return any(map(ready, self._queues))

    def give_back(self, key: bytes, segment: Segment) -> None:
        """What was taken and cannot go now: it is the stream's first again."""
        self._queues.setdefault(key, deque()).appendleft(segment)
        self._changed(segment, 1)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The offsets that wait here."""
        if self._runs is None:
            offsets = [s.offsets for queue in self._queues.values() for s in queue]
            self._runs = runs_of(np.sort(np.concatenate(offsets), kind="stable")) if offsets else ()
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
