"""The network: connections as aiokafka's client makes them, to brokers that are a model.

Everything above the connection is real: aiokafka's client, fetcher and group coordinator, and Eddy's transport on them.
A request may be lost, arrive late (after its client has given up, or died), or take effect while its answer is lost. As
on TCP, what arrives of one connection is the beginning of what was sent, in order; a broker answers one request of a
connection after the other.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import aiokafka.client
from aiokafka.conn import CloseReason
from aiokafka.errors import KafkaConnectionError
from aiokafka.util import wait_for

from tests.simulation.cluster import Cluster
from tests.simulation.loop import SimLoop, current

EVERY_VERSION = dict.fromkeys(range(100), (0, 99))


@dataclass(slots=True)
class Faults:
    """Chances by request; ``only``: API keys that are hit (None: all); ``until_s``: none after it."""

    lost_request: float = 0.0
    lost_answer: float = 0.0
    late_request: float = 0.0
    late_answer: float = 0.0
    late_s: float = 1.0
    only: frozenset[int] | None = None
    until_s: float = 0.0

    def draw(self, rng: random.Random, now: float, api: int) -> str:
        if now >= self.until_s or (self.only is not None and api not in self.only):
            return ""
        x = rng.random()
        for name, chance in (
            ("lost_request", self.lost_request),
            ("lost_answer", self.lost_answer),
            ("late_request", self.late_request),
            ("late_answer", self.late_answer),
        ):
            if x < chance:
                return name
            x -= chance
        return ""


class Network:
    """Connections between simulated processes and the cluster's nodes."""

    def __init__(self, loop: SimLoop, cluster: Cluster, rng: random.Random, faults: Faults) -> None:
        self.loop, self.cluster, self.rng, self.faults = loop, cluster, rng, faults
        self.count: dict[str, int] = {}
        self.connections = 0
        """Faults that happened."""
        self.watch: Callable[[str, Any], None] | None = None
        """Told of every request that takes effect: its process' name and the request."""

    def latency(self) -> float:
        return 0.0001 + 0.0008 * self.rng.random()

    async def create_conn(self, host: str, port: int, **settings: Any) -> Connection:
        """In place of aiokafka's. Raises OSError where nobody listens."""
        await asyncio.sleep(2 * self.latency())
        number = port if port in self.cluster.nodes else self._any()
        if number is None or not self.cluster.nodes[number].up:
            raise ConnectionRefusedError(f"{host}:{port} is down")
        return Connection(self, number, settings["request_timeout_ms"] / 1000, settings.get("on_close"))

    def _any(self) -> int | None:
        up = [n.number for n in self.cluster.nodes.values() if n.up]
        return self.rng.choice(up) if up else None


class Connection:
    """What aiokafka.client uses of AIOKafkaConnection."""

    def __init__(self, network: Network, number: int, timeout_s: float, on_close: Any) -> None:
        self._network, self._node, self._timeout_s, self._on_close = network, number, timeout_s, on_close
        self._loop = network.loop
        self._context = contextvars.copy_context()
        self.process = current()
        self._waiting: list[Any] = []
        self._open = True
        self._cut = False
        """What is sent from now on gets lost."""
        self._arrives_s = 0.0
        self._answered_s = 0.0
        self._arrived: deque[tuple[Any, Any, str]] = deque()
        self._busy = False
        network.connections += 1
        self._number = network.connections
        self._node_since = network.cluster.nodes[number].since_s
        network.cluster.nodes[number].connections.add(self)

    def __hash__(self) -> int:
        return self._number

    # ---- the client's side

    def connected(self) -> bool:
        return self._open

    def send(self, request: Any, expect_response: bool = True) -> Any:
        if not self._open:
            raise KafkaConnectionError(f"no connection to node {self._node}")
        network, loop = self._network, self._loop
        struct = request.prepare(EVERY_VERSION)
        future = loop.create_future()
        self._waiting.append(future)
        fault = network.faults.draw(network.rng, loop.time(), struct.API_KEY)
        if fault:
            network.count[fault] = network.count.get(fault, 0) + 1
        if self._cut or fault == "lost_request":
            if not self._cut:
                self._cut = True
                loop.call_later(network.rng.random() * 0.05, self._break)
        else:
            delay = network.latency()
            if fault == "late_request":
                delay += network.rng.random() * network.faults.late_s
            self._arrives_s = max(self._arrives_s + 1e-6, loop.time() + delay)
            at = self._arrives_s
            # The network belongs to nobody: it goes on when its sender is dead.
            loop.call_at(at, self._arrive, struct, future, fault, context=_NETWORK)
        return wait_for(future, self._timeout_s)

    def close(self, reason: Any = None, exc: Any = None) -> Any:
        if self._open:
            self._open = False
            self._network.cluster.nodes[self._node].connections.discard(self)
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_exception(KafkaConnectionError(f"connection to node {self._node} closed"))
            if self._on_close is not None:
                on_close, self._on_close = self._on_close, None
                on_close(self, reason)
        closed = self._loop.create_future()
        closed.set_result(None)
        return closed

    def _break(self) -> None:
        self.close(CloseReason.CONNECTION_BROKEN)

    def broken(self) -> None:
        """The node is gone: the client hears of it."""
        self._cut = True
        self._loop.call_later(self._network.latency(), self._break, context=self._context)

    # ---- the broker's side

    def _arrive(self, struct: Any, future: Any, fault: str) -> None:
        self._arrived.append((struct, future, fault))
        if not self._busy:
            self._next()

    def _next(self) -> None:
        node = self._network.cluster.nodes[self._node]
        while self._arrived:
            if not node.up or node.since_s != self._node_since:
                self._arrived.clear()  # the node that this connection led to is gone
                return
            struct, future, fault = self._arrived.popleft()
            self._busy = True
            answered = False

            def answer(response: Any, future: Any = future, fault: str = fault, struct: Any = struct) -> None:
                nonlocal answered
                if answered:
                    return
                answered = True
                self._answer(response, future, fault)
                self._busy = False

            if self._network.watch is not None:
                self._network.watch(self.process.name if self.process else "", struct)
            later = _Later(self, answer)
            self._network.cluster.handle(self._node, struct, later)
            later.handled = True
            if self._busy:
                return

    def _answer(self, response: Any, future: Any, fault: str) -> None:
        network, loop = self._network, self._loop
        if fault == "lost_answer":
            self._cut = True
            loop.call_later(network.rng.random() * 0.05, self._break, context=self._context)
            return
        delay = network.latency()
        if fault == "late_answer":
            delay += network.rng.random() * network.faults.late_s
        self._answered_s = max(self._answered_s + 1e-6, loop.time() + delay)
        loop.call_at(self._answered_s, self._receive, response, future, context=self._context)

    def _receive(self, response: Any, future: Any) -> None:
        if self._open and future in self._waiting:
            self._waiting.remove(future)
            if not future.done():
                future.set_result(response)


class _Later:
    """An answer that may come at once or long after; then the connection goes on with the next request."""

    def __init__(self, connection: Connection, answer: Callable[[Any], None]) -> None:
        self._connection, self._answer = connection, answer
        self.handled = False

    def __call__(self, response: Any) -> None:
        self._answer(response)
        if self.handled:
            self._connection._next()


_NETWORK = contextvars.Context()


@contextmanager
def connected(network: Network) -> Iterator[None]:
    """aiokafka's clients reach the model's brokers."""
    with mock.patch.object(aiokafka.client, "create_conn", network.create_conn):
        yield
