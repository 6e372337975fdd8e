"""Which streams are snapshotted when nothing makes them: the oldest dirty ones, on a timer, under a cap. Pure.

``snapshot_interval_ms`` is the aim: no stream stays dirty for longer. ``snapshot_bytes_per_second`` is the cap and
wins: then R lags, and its age shows it.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.columns import I64
from pipeline.partition import Memory

LOOK_S = 0.01
"""Between two looks at what is due."""
BURST_S = 0.1
"""The cap holds over so long a time."""
ROWS_MIN = 16
"""A cap smaller than a few rows at a time still lets so many through."""


class SnapshotPolicy:
    """See the module. ``now_s``: seconds of one clock that does not go back. ``interval_s`` 0: every poll saves all
    that it advances, and nothing is ever due."""

    def __init__(self, interval_s: float, bytes_per_s: float, row_bytes: int) -> None:
        self.interval_s = interval_s
        self._row_bytes = max(1, row_bytes)
        self._rate = bytes_per_s
        self._most = max(bytes_per_s * BURST_S, ROWS_MIN * self._row_bytes)
        self._allowance = self._most
        self._then_s: float | None = None
        self._look_s = 0.0

    def due(self, memories: Sequence[Memory], now_s: float, *, everything: bool = False) -> list[tuple[Memory, I64]]:
        """Streams to snapshot now, oldest first, by partition. ``everything``: whatever is dirty, for as long as it
        takes, as before an orderly end."""
        if not self.interval_s or (now_s < self._look_s and not everything):
            return []
        self._look_s = now_s + LOOK_S
        if self._then_s is not None:
            self._allowance = min(self._most, self._allowance + (now_s - self._then_s) * self._rate)
        self._then_s = now_s
        before_s = now_s if everything else now_s - self.interval_s
        rows = int((self._most if everything else self._allowance) // self._row_bytes)
        waiting = []
        for i, memory in enumerate(memories):
            if (since := memory.dirty.not_before_s()) is None or since > before_s:
                continue  # of many partitions few have something due: the others are not looked into
            if (since := memory.dirty.since_s()) is not None and since <= before_s:
                waiting.append((since, i))
        found = []
        for _, i in sorted(waiting):
            if rows <= 0:
                break
            slots = memories[i].dirty.oldest(before_s, rows)
            if len(slots):
                rows -= len(slots)
                self._allowance -= len(slots) * self._row_bytes
                found.append((memories[i], slots))
        return found

    def next_s(self, memories: Sequence[Memory]) -> float | None:
        """When something will be due, at the earliest."""
        if not self.interval_s:
            return None
        bounds = [(bound, i) for i, m in enumerate(memories) if (bound := m.dirty.not_before_s()) is not None]
        first: float | None = None
        for bound, i in sorted(bounds):
            if first is not None and bound >= first:
                break
            since = memories[i].dirty.since_s()
            first = since if first is None or (since is not None and since < first) else first
        return max(first + self.interval_s, self._look_s) if first is not None else None
