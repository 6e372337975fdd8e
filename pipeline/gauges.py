"""What a worker shows of itself between the counts: how full it is and how far behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Set

from pipeline.errors import CommitError
from pipeline.metrics import Metrics
from pipeline.ownership import Ownership
from pipeline.residency import Residency
from pipeline.streams.slots import Slots
from pipeline.transport.base import Transport

GAUGES_S = 1.0


async def gauging(
    metrics: Metrics,
    ownership: Ownership,
    slots: Slots,
    residency: Residency,
    transport: Transport,
    paused: Set[int],
) -> None:
    """For as long as it may. ``paused``: the partitions whose backlog is full, as they are at each time."""
    evicted = 0
    while True:
        memories = ownership.memories()
        owned = ownership.owned
        metrics.partitions(
            owned=len(owned),
            running=len(memories),
            paused=len(paused),
            waiting=sum(m.blocked == "slots" for m in memories),
        )
        ages = [since for m in memories if (since := m.dirty.since_s()) is not None]
        now_s = asyncio.get_running_loop().time()
        metrics.replay_age(now_s - min(ages) if ages else 0.0, sum(m.committed - m.replay_from for m in memories))
        metrics.queued(sum(m.waiting_bytes + m.uncommitted_bytes for m in memories))
        away = len(residency.tier)
        metrics.streams(sum(len(m.index) for m in memories) + away, slots_used=slots.used, slots=slots.total)
        metrics.tier(away, residency.tier.nbytes, residency.evicted - evicted)
        evicted = residency.evicted
        # No fetch tells where the log of a partition ends that is held back or has stopped: where lag grows.
        unheard = paused | {o.partition for o in owned if o.memory is None}
        with contextlib.suppress(CommitError):  # the broker is away: the last that was heard stands
            if unheard:
                await transport.log_ranges(unheard)
        metrics.lag(transport.lag([o.partition for o in ownership.owned]))
        await asyncio.sleep(GAUGES_S)
