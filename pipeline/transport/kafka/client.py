"""One bounded connection to the cluster: what aiokafka's client does, with time limits and without spinning."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Any

from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.errors import KafkaConnectionError as ConnectionLost
from aiokafka.errors import KafkaError, NodeNotReadyError, RequestTimedOutError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import TopicPartition

from pipeline.errors import Unreachable
from pipeline.transport.kafka import wire

log = logging.getLogger(__name__)

METADATA_PAUSE_S, METADATA_FAILED_PAUSE_S = 0.02, 0.2
"""Least time after a metadata request; without it aiokafka asks 16,000 times a second while a leader is away."""
RECONNECT_PAUSE_S = 0.05
CONCURRENT_PAUSE_S = 0.001
"""The markers of the last transaction are written within a few milliseconds. While the group's coordinator verifies a
transaction with its other coordinator, it says that it is loading: that is over as soon. Grows by half each time."""
CLOSE_S = 2.0

DISCONNECTED = (ConnectionLost, NodeNotReadyError, RequestTimedOutError)
"""No answer came; whether the request took effect is not known."""

UNANSWERED = (ConnectionLost, RequestTimedOutError)
"""It may have been sent: a copy of it may reach the broker later than all that is sent from now on."""

GROUP, TRANSACTION = CoordinationType.GROUP, CoordinationType.TRANSACTION


_away: set[str] = set()
"""Clusters that did not answer the last time: said once, whichever of a transport's clients notices first."""


class Client(AIOKafkaClient):
    """aiokafka's client, calmer. ``limit_s`` bounds whatever waits for an answer, retries included."""

    def __init__(self, bootstrap_servers: str, client_id: str, request_timeout_ms: int) -> None:
        self.limit_s = request_timeout_ms / 1000
        self.servers = bootstrap_servers
        self._next_metadata = 0.0
        self._coordinators: dict[tuple[Any, str], int] = {}
        super().__init__(  # type: ignore[no-untyped-call]
            bootstrap_servers=[s.strip() for s in bootstrap_servers.split(",")],
            client_id=client_id,
            request_timeout_ms=request_timeout_ms,
            metadata_max_age_ms=60_000,
        )

    async def _metadata_update(self, cluster_metadata: Any, topics: Any) -> Any:
        pause = self._next_metadata - time.monotonic()
        if pause > 0:
            await asyncio.sleep(pause)
        updated = await self._ask_metadata(cluster_metadata, MetadataRequest(list(topics) if topics else None, False))
        self._next_metadata = time.monotonic() + (METADATA_PAUSE_S if updated else METADATA_FAILED_PAUSE_S)
        if not updated and self.servers not in _away:
            _away.add(self.servers)
            log.warning("no broker answers at %s; trying again until one does", self.servers)
        elif updated and self.servers in _away:
            _away.discard(self.servers)
            log.warning("a broker answers at %s again", self.servers)
        return updated

    async def _ask_metadata(self, cluster: Any, request: MetadataRequest) -> bool:
        """As aiokafka asks, but for one thing: a topic that was deleted is not made again by asking for it."""
        nodes: list[Any] = [broker.nodeId for broker in self.cluster.brokers()]
        bootstrap = ("bootstrap", ConnectionGroup.DEFAULT)
        if bootstrap in self._conns:
            nodes.append("bootstrap")
        random.shuffle(nodes)
        for node in nodes:
            connection = await self._get_conn(node)
            if connection is None:
                continue
            try:
                metadata = await connection.send(request)
            except (KafkaError, TimeoutError) as error:
                log.info("no metadata from node %s: %r", node, error)
                continue
            if not metadata.brokers:
                return False
            cluster.update_metadata(metadata)
            # It leads nowhere once the brokers are known.
            if bootstrap in self._conns and self.cluster.brokers():
                self._conns.pop(bootstrap).close()
            return True
        cluster.failed_update(None)
        return False

    async def send(self, node_id: Any, request: Any, *, group: Any = ConnectionGroup.DEFAULT) -> Any:
        """See aiokafka. A connection that another task finds broken between two of its steps is not ready."""
        try:
            return await super().send(node_id, request, group=group)  # type: ignore[no-untyped-call]
        except KeyError as error:
            raise NodeNotReadyError(f"the connection to node {node_id} has just been closed") from error

    async def connect(self) -> None:
        """Raises Unreachable within the time limit."""
        try:
            async with asyncio.timeout(self.limit_s):
                await self.bootstrap()
        except (KafkaError, OSError, ValueError, TimeoutError) as error:
            await self.shut()
            raise unreachable(self.servers) from error

    async def shut(self) -> None:
        """Closes every connection; bounded, raises nothing for a broker that is away."""
        closing = asyncio.create_task(self.close())
        await asyncio.wait({closing}, timeout=CLOSE_S)
        if not closing.done():
            log.warning("a connection to %s did not close within %g s and was abandoned", self.servers, CLOSE_S)
            closing.cancel()
        elif not closing.cancelled() and (error := closing.exception()) is not None:
            log.warning("closing the connections to %s: %r", self.servers, error)

    def leader(self, topic: str, partition: int) -> int | None:
        """The node that leads the partition, as last heard; None when there is none just now."""
        node: int | None = self.cluster.leader_for_partition(TopicPartition(topic, partition))
        return None if node is None or node < 0 else node

    async def find_leader(self, topic: str, partition: int) -> int:
        """Asks until there is one. The caller bounds the time."""
        while (node := self.leader(topic, partition)) is None:
            self.add_topic(topic)
            await self.force_metadata_update()
            if self.leader(topic, partition) is None:
                await asyncio.sleep(RECONNECT_PAUSE_S)
        return node

    async def coordinator(self, kind: Any, key: str) -> int:
        """The node that coordinates a group or transactional id; remembered until ``forget``. Raises KafkaError."""
        node = self._coordinators.get((kind, key))
        if node is None:
            node = self._coordinators[kind, key] = await self.coordinator_lookup(kind, key)
        return node

    def forget(self, kind: Any, key: str) -> None:
        self._coordinators.pop((kind, key), None)

    async def ask_any(self, request: Any) -> Any:
        """The answer of any broker: of several, one that has just died is still known. Raises KafkaError; the caller
        bounds the time."""
        nodes = [broker.nodeId for broker in self.cluster.brokers()]
        random.shuffle(nodes)
        for node in nodes[1:]:
            try:
                return await self.send(node, request)
            except DISCONNECTED as error:
                log.info("node %s does not answer: %r", node, error)
        return await self.send(nodes[0] if nodes else None, request)

    async def ask(
        self, kind: Any, key: str, request: Any, codes: Callable[[Any], set[int]], *, once: bool = False
    ) -> Any:
        """A coordinator's answer, asked again while it is away, loading, or busy with the last transaction.

        Every request sent this way may take effect twice without harm, however late; ``once``: not where no answer
        came, and then the error is raised. ``codes`` gives the answer's error numbers; an answer with one that no
        repetition helps is returned. The caller bounds the time. Raises KafkaError.
        """
        pause = CONCURRENT_PAUSE_S
        while True:
            try:
                node = await self.coordinator(kind, key)
                reply = await self.send(node, request, group=ConnectionGroup.COORDINATION)
            except KafkaError as error:
                if not error.retriable and not isinstance(error, DISCONNECTED):
                    raise
                if once and isinstance(error, UNANSWERED):
                    raise
                self.forget(kind, key)
                await asyncio.sleep(RECONNECT_PAUSE_S)
                continue
            bad = codes(reply) - {0, wire.NOT_ATTEMPTED}
            if not bad or not bad <= wire.COORDINATOR_RETRY:
                return reply
            if bad & wire.COORDINATOR_MOVED:
                self.forget(kind, key)
            soon = bad <= {wire.CONCURRENT, wire.LOADING}
            await asyncio.sleep(min(pause, RECONNECT_PAUSE_S) if soon else RECONNECT_PAUSE_S)
            pause *= 1.5


def unreachable(servers: str) -> Unreachable:
    """The one line for a cluster that does not answer."""
    return Unreachable(
        f"no broker answers at {servers}: check --bootstrap-servers, or start one with `eddy broker start`"
    )
