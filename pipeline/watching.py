"""Once a second: which streams expire, which hold their partition, and whether anything gets done."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from pipeline.config import Config
from pipeline.errors import CommitError, Stalled
from pipeline.metrics import Metrics
from pipeline.ownership import Ownership, Phase
from pipeline.residency import Residency
from pipeline.transport.base import Transport
from pipeline.watch import Watch

log = logging.getLogger(__name__)

WATCH_S = 1.0
EXPIRE_MAX = 10_000
"""Streams of a partition that are forgotten at a time."""


INTERVALS_MIN = 10
"""Snapshot intervals that the input should keep its records for, at the least."""


async def _look_at_retention(config: Config, transport: Transport, metrics: Metrics) -> None:
    """A replay begins at R, which lags by an interval or two, and by more where the cap holds snapshots back."""
    try:
        kept_ms = await transport.input_retention_ms()
    except CommitError as error:
        log.info("%s", error)
        return
    if 0 < kept_ms < INTERVALS_MIN * config.snapshot_interval_ms:
        metrics.error("short-retention")
        log.warning(
            "the input %s keeps its records for %.0f s, less than %d snapshot intervals of %.0f s: after a stop a"
            " takeover may find that what it must replay is gone; raise the topic's retention.ms or lower"
            " snapshot_interval_ms",
            *(config.input, kept_ms / 1e3, INTERVALS_MIN, config.snapshot_interval_ms / 1e3),
        )


async def watch(
    config: Config,
    metrics: Metrics,
    ownership: Ownership,
    residency: Residency,
    transport: Transport,
    stopping: asyncio.Event,
    expired: Callable[[], None],
    stalled: Callable[[Stalled], None],
) -> None:
    """For as long as it may. ``expired`` is called when streams may be forgotten, ``stalled`` with what the worker must
    end with."""
    await _look_at_retention(config, transport, metrics)
    clock = asyncio.get_running_loop().time
    watched, said = Watch(config.max_stall_s), set[tuple[int, int]]()
    while True:
        memories = ownership.memories()
        if config.state_ttl_s:
            before_ms = int((time.time() - config.state_ttl_s) * 1000)
            for memory in memories:
                residency.expire(memory, before_ms, EXPIRE_MAX)
            expired()
        held = watched.held(memories, clock())
        metrics.held(len(held))
        for h in held:
            if (h.partition, h.committed) not in said:
                said.add((h.partition, h.committed))
                log.warning("%s", h)
        taking_over = sum(o.phase is Phase.TAKEOVER for o in ownership.owned)
        if not stopping.is_set() and watched.stalled(memories, taking_over, clock()):
            stalled(
                Stalled(
                    f"nothing was committed for {config.max_stall_s:g} s (max_stall_s) though there is work: this"
                    " worker ends; what was not committed is done again by the next"
                )
            )
        await asyncio.sleep(WATCH_S)
