"""How far a takeover has read: counted as it goes on, and said every two seconds of a long one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

from pipeline.columns import Changelog
from pipeline.metrics import Metrics
from pipeline.streams.snapshots import Newest

log = logging.getLogger(__name__)

SAY_S = 2.0


class Reading:
    """Of one partition, into ``newest``; a context, at the end of which nothing is left to read. ``clock``: seconds.

    ``add`` may be called on a thread, by one caller at a time."""

    def __init__(self, partition: int, newest: Newest, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._partition, self._newest, self._metrics, self._clock = partition, newest, metrics, clock
        self._began_s = self._said_s = clock()
        self._bytes = self._left = 0

    def add(self, stretch: Changelog) -> None:
        """The next stretch, in the log's order."""
        self._newest.add(stretch)
        size, left = stretch.value_bytes, max(0, stretch.log_end - stretch.next_offset)
        self._metrics.reading(size, left - self._left)
        self._bytes, self._left = self._bytes + size, left
        now_s = self._clock()
        if now_s - self._said_s >= SAY_S:
            self._said_s = now_s
            end = f" of {stretch.log_end}" if stretch.log_end else ""
            log.info(
                "partition %d: %d streams, %.0f MB, up to offset %d%s of the changelog, after %.0f s",
                *(self._partition, len(self._newest), self._bytes / 1e6, stretch.next_offset, end),
                now_s - self._began_s,
            )

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._metrics.reading(0, -self._left)
        self._left = 0
