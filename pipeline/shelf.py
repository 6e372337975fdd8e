"""Where local copies lie: opens those that can be relied upon, and puts up with a disk that is full."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import CommitError, LocalCopyFailed
from pipeline.metrics import Metrics
from pipeline.streams.local_copy import LocalCopy, Source
from pipeline.transport.base import Transport

log = logging.getLogger(__name__)

FAILED_S = 600.0
"""Where a copy could not be kept, it is tried again after so long."""


class Shelf:
    """See the module. ``directory`` None: there are no copies. ``clock``: seconds."""

    def __init__(
        self,
        directory: Path | None,
        group: str,
        topic: str,
        transport: Transport,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._directory, self._group, self._topic, self._transport = directory, group, topic, transport
        self._metrics, self._clock = metrics, clock
        self._retention_ms: int | None = None
        self._failed_s: dict[int, float] = {}

    async def usable(self) -> bool:
        """Whether the cluster tells what makes a copy void (X14): which topic it is, how long that keeps tombstones."""
        if self._directory is None:
            return False
        if self._retention_ms is None:
            try:
                asked = await self._transport.changelog_retention_ms()
            except CommitError as error:
                log.info("no local copies yet: %s", error)
                return False
            self._retention_ms = asked if any(self._transport.changelog_id) else 0
            if not self._retention_ms:
                log.warning(
                    "no local copies: the cluster does not tell the id of %s or its delete.retention.ms (allow"
                    " DescribeConfigs on the topic)",
                    self._topic,
                )
        return self._retention_ms > 0

    def open(self, partition: int, now_ms: int) -> LocalCopy | None:
        """Only where ``usable``. Empty where there is none yet or it is void; None where another process has it, or it
        failed a while ago."""
        if self._directory is None or self._clock() - self._failed_s.get(partition, -FAILED_S) < FAILED_S:
            return None
        try:
            copy = LocalCopy.open(
                self._directory, Source(self._group, self._topic, self._transport.changelog_id, partition), now_ms
            )
            if copy is not None:
                self.renew(partition, copy, now_ms)
        except LocalCopyFailed as error:
            self.failed(partition, error)
            return None
        return copy

    def renew(self, partition: int, copy: LocalCopy, now_ms: int) -> None:
        """Begins it anew where it is too old to be relied upon (X14). Raises LocalCopyFailed."""
        if copy.expired(now_ms, self._retention_ms or 0):
            log.info("partition %d: the local copy is too old, the whole changelog is read", partition)
            copy.reset(now_ms)

    def failed(self, partition: int, error: LocalCopyFailed) -> None:
        """Its copy is lost; said once, and tried again later."""
        self._metrics.error(error)
        log.error("partition %d: %s", partition, error)
        self._failed_s[partition] = self._clock()
