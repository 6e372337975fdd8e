"""A dead owner's open transaction ends within a second, and not at its time-out (X9).

Whoever waits for what a transaction holds back says so here while it waits. A transaction of this group's lanes that
holds it at two looks is ended: InitProducerId on its lane, which a live owner gets over by settling its writer (X11).
For liveness alone: where the broker cannot tell, or is not allowed to, the transaction's own time-out does the same.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from aiokafka.errors import IncompatibleBrokerVersion, KafkaError
from aiokafka.protocol.transaction import InitProducerIdRequest

from pipeline.transport.kafka import wire
from pipeline.transport.kafka.client import DISCONNECTED, TRANSACTION, Client
from pipeline.transport.kafka.inquiries import ONGOING, DescribeTransactions, ListTransactions
from pipeline.transport.kafka.sender import Place, all_of

log = logging.getLogger(__name__)

FIRST_LOOK_S, BETWEEN_LOOKS_S = 0.1, 0.2
"""A transaction seen at both looks has held on for 0.2 s: those of live owners take milliseconds. Each further pair of
looks is twice as far apart, so that owners who are slow, not dead, are not ended again and again."""
SHARED_S = 0.05
"""Many partitions may wait at once: a look serves all who ask so soon after it."""

LOST_S = 0.5
"""So long a look waits for one broker of several."""
OFFSETS = "__consumer_offsets"
"""Where groups keep their offsets."""

Held = tuple[str, int]
"""A transaction: its lane, and when it began by the broker's clock (ms); the lane's next one has another time."""


class DeadOwners:
    """Of one group and input: lanes ``PREFIX + worker id``. ``own``: this worker's, which is never ended here.

    ``topics``: all that lanes write to. The prefix ``a-b-`` is that of group ``a`` with input ``b``, but lanes of a
    group ``a-b`` begin so too; what writes to other topics is left alone.
    """

    def __init__(self, client: Client, prefix: str, own: str, topics: Collection[str], timeout_ms: int) -> None:
        self._client, self._prefix, self._own, self._timeout_ms = client, prefix, own, timeout_ms
        self._topics = {*topics, OFFSETS}
        self._turn = asyncio.Lock()
        self._able = True
        self._looked_s = float("-inf")
        self._open: dict[Held, frozenset[Place]] = {}
        self._ended: set[Held] = set()

    def watch_log(self, place: Place) -> Watch:
        """For one wait, of a log that is held back."""
        return Watch(self, lambda places: 1 if place in places else None)

    def watch_offsets(self, partitions: Collection[int]) -> Watch:
        """For one wait, of the group's offsets of some partitions.

        Whose pending offsets they are is not told: first ended is what has written to such a partition, or nowhere.
        """

        def urgency(places: frozenset[Place]) -> int:
            written = {partition for topic, partition in places if topic != OFFSETS}
            return 1 if not written or written & {*partitions} else 0

        return Watch(self, urgency)

    async def open(self) -> dict[Held, frozenset[Place]]:
        """Transactions of others of the group that are open now, and the partitions that each has written to."""
        async with self._turn:
            if self._able and time.monotonic() - self._looked_s > SHARED_S:
                self._open = {}
                try:
                    async with asyncio.timeout(self._client.limit_s):
                        self._open = await self._look()
                except (NotImplementedError, IncompatibleBrokerVersion):
                    self._able = False
                    log.info("the broker is too old to tell whose transaction is open: waiting for its time-out")
                except (KafkaError, TimeoutError) as error:
                    log.info("open transactions cannot be asked for: %r", error)
                self._looked_s = time.monotonic()
        return self._open

    async def _look(self) -> dict[Held, frozenset[Place]]:
        nodes = [broker.nodeId for broker in self._client.cluster.brokers()]
        listed = {lane for of_node in await all_of(*map(self._list, nodes)) for lane in of_node}
        lanes = [lane for lane in listed if lane.startswith(self._prefix) and lane != self._own]
        return dict([held for held in await all_of(*map(self._describe, lanes)) if held is not None])

    async def _list(self, node: int) -> list[str]:
        """Lanes with an open transaction, of which this broker is the coordinator; none where it does not answer."""
        try:
            async with asyncio.timeout(LOST_S):
                reply = await self._client.send(node, ListTransactions([ONGOING], [], {}))
        except (*DISCONNECTED, TimeoutError) as error:
            # It may have died with the owner. Then another one is the coordinator by now, or will be soon.
            log.info("open transactions of node %s cannot be asked for: %r", node, error)
            self._client.force_metadata_update()
            return []
        return [row[0] for row in reply.transactions]

    async def _describe(self, lane: str) -> tuple[Held, frozenset[Place]] | None:
        reply = await self._client.ask(
            TRANSACTION, lane, DescribeTransactions([lane], {}), lambda r: {row[0] for row in r.transactions}
        )
        ((code, _, state, _, start_ms, _, _, topics, _),) = reply.transactions
        if code or state != ONGOING or not self._topics.issuperset(topic for topic, _, _ in topics):
            return None
        return (lane, start_ms), frozenset((topic, p) for topic, partitions, _ in topics for p in partitions)

    async def end(self, held: Held) -> None:
        """Aborts it; returns when that is decided, or says why it cannot be. Once for each transaction."""
        if held in self._ended:
            return
        self._ended.add(held)
        lane, _ = held
        log.warning("lane %s holds a transaction open that others wait for: it is ended for its owner", lane)
        request = InitProducerIdRequest(lane, self._timeout_ms)
        try:
            async with asyncio.timeout(self._client.limit_s):
                reply = await self._client.ask(TRANSACTION, lane, request, lambda r: {r.error_code})
        except (KafkaError, TimeoutError) as error:
            log.warning("the transaction of lane %s cannot be ended: %r", lane, error)
            return
        if reply.error_code in wire.NOT_AUTHORIZED:
            log.warning(
                "not authorized to end the transaction of lane %s: allow this worker to write with transactional ids"
                " that begin with %r; until then its time-out ends it",
                lane,
                self._prefix,
            )
        elif reply.error_code:
            log.warning("the transaction of lane %s cannot be ended: error %d", lane, reply.error_code)


@dataclass(slots=True)
class Watch:
    """One wait for what may be held back."""

    owners: DeadOwners
    urgency: Callable[[frozenset[Place]], int | None]
    """Of a transaction, by what it has written to: the most urgent end first; None: it holds nothing back."""
    _next_s: float = field(default_factory=lambda: time.monotonic() + FIRST_LOOK_S)
    _pause_s: float = BETWEEN_LOOKS_S
    _seen: set[Held] = field(default_factory=set)

    async def waiting(self) -> None:
        """Call it again and again while the wait goes on: it looks when it is time to, and ends what it must."""
        if time.monotonic() < self._next_s:
            return
        found = {held: self.urgency(places) for held, places in (await self.owners.open()).items()}
        holding = {held: urgency for held, urgency in found.items() if urgency is not None}
        stuck = holding.keys() & self._seen
        if stuck:
            most = max(holding[held] for held in stuck)
            ending = {held for held in stuck if holding[held] == most}
            await all_of(*map(self.owners.end, ending))
            for held in ending:
                del holding[held]
            self._pause_s *= 2
        self._seen = {*holding}
        self._next_s = time.monotonic() + self._pause_s
