"""Bytes of one topic's partitions, read committed, fetched ahead: one request a leader for all that somebody reads."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from aiokafka.consumer.fetcher import READ_COMMITTED
from aiokafka.errors import KafkaError
from aiokafka.protocol.fetch import FetchRequest

from pipeline.transport.kafka import wire
from pipeline.transport.kafka.client import RECONNECT_PAUSE_S, Client
from pipeline.transport.kafka.stretches import Aborted, end_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """How a topic is fetched: bytes of one answer, of one partition in it, and how long the broker waits for data."""

    answer_bytes: int
    partition_bytes: int
    least_bytes: int
    wait_ms: int


RESTORE = Pace(16_777_216, 2_097_152, 1, 50)
"""In bulk; more at once is not faster. It waits only where all that is read is held back by open transactions."""
FOLLOW = Pace(8_388_608, 1_048_576, 65_536, 200)
"""At low cost: what comes in 200 ms comes at once."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """One partition's part of an answer: an error number, or bytes that begin at ``position`` or before it."""

    position: int
    code: int
    aborted: Aborted = ()
    data: bytes = b""
    next_offset: int = 0
    whole_ms: int = 0
    """When the log had no more than that to be read, by the wall clock; 0: it may have had."""


@dataclass(eq=False, slots=True)
class Cursor:
    """One partition that is read: while one answer is used, the next one is fetched."""

    partition: int
    position: int
    """Where the next fetch begins."""
    arrived: asyncio.Event
    """Set when something came, also for others who share it."""
    _hungry: asyncio.Event
    _ready: Fetched | Exception | None = None
    whole_ms: int = 0
    """When there was nothing above ``position``, by the wall clock; 0: not known."""

    @property
    def hungry(self) -> bool:
        return self._ready is None

    @property
    def held_bytes(self) -> int:
        """What came and was not yet taken."""
        return len(self._ready.data) if isinstance(self._ready, Fetched) else 0

    def take(self) -> Fetched | None:
        """What has come; what follows it is asked for at once. None: nothing yet. Raises what broke the fetching."""
        ready, self._ready = self._ready, None
        if isinstance(ready, Exception):
            raise ready
        if ready is not None:
            self._hungry.set()
        return ready

    def seek(self, position: int) -> None:
        """The next fetch begins there, and what came is forgotten."""
        self._ready, self.position = None, position
        self._hungry.set()

    def put(self, ready: Fetched | Exception) -> None:
        self._ready, self.whole_ms = ready, 0
        if isinstance(ready, Fetched) and not ready.code:
            self.position = ready.next_offset
        self.arrived.set()

    async def next(self, timeout_s: float) -> Fetched | None:
        """Waits for what comes; None where nothing did in time."""
        if self._ready is None:
            self.arrived.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self.arrived.wait()
            except TimeoutError:
                return None
        return self.take()


class LogFetcher:
    """Of one topic, over connections of ``client`` that nobody else may need quickly: a fetch waits for data.

    What is fetched ahead is at most one answer's bytes, and one answer more from each broker. It runs while there are
    cursors; ``close`` it when there are none any more.
    """

    def __init__(self, client: Client, topic: str, pace: Pace) -> None:
        self._client, self._topic, self._pace = client, topic, pace
        self._cursors: list[Cursor] = []
        self._hungry = asyncio.Event()
        self._in_flight: dict[int, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None

    def open(self, partition: int, position: int, arrived: asyncio.Event | None = None) -> Cursor:
        """A partition to read; ``arrived`` is set whenever something came. ``shut`` it in the end."""
        cursor = Cursor(partition, position, arrived or asyncio.Event(), self._hungry)
        self._cursors.append(cursor)
        self._hungry.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=f"fetch-{self._topic}")
        return cursor

    def shut(self, cursor: Cursor) -> None:
        """It is read no longer."""
        self._cursors.remove(cursor)
        self._hungry.set()

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = [task for task in (self._task, *self._in_flight.values()) if task is not None]
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.info("while %s was read: %r", self._topic, outcome)

    async def __aenter__(self) -> LogFetcher:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self) -> None:
        """Gives every leader that has none a request, while somebody reads."""
        while self._cursors:
            self._hungry.clear()
            held = sum(cursor.held_bytes for cursor in self._cursors)
            wanted = [c for c in self._cursors if c.hungry] if held < self._pace.answer_bytes else []
            leaderless = False
            by_leader: defaultdict[int, list[Cursor]] = defaultdict(list)
            for cursor in wanted:
                node = self._client.leader(self._topic, cursor.partition)
                if node is None:
                    leaderless = True
                else:
                    by_leader[node].append(cursor)
            for node, of_node in by_leader.items():
                if node not in self._in_flight:
                    self._in_flight[node] = asyncio.create_task(self._fetch(node, of_node))
            if leaderless:
                self._client.add_topic(self._topic)
                await asyncio.gather(self._client.force_metadata_update(), asyncio.sleep(RECONNECT_PAUSE_S))
            else:
                await self._hungry.wait()

    async def _fetch(self, node: int, cursors: Collection[Cursor]) -> None:
        """One request. Whatever becomes of it, the leader is free for the next one afterwards."""
        try:
            await self._ask(node, {cursor.partition: cursor for cursor in cursors})
        except KafkaError as error:
            log.info("fetching %s from node %d: %r, asking again", self._topic, node, error)
            await asyncio.gather(self._client.force_metadata_update(), asyncio.sleep(RECONNECT_PAUSE_S))
        except Exception as error:  # noqa: BLE001 - it is raised where they are read
            for cursor in cursors:
                cursor.put(error)
        finally:
            del self._in_flight[node]
            self._hungry.set()

    async def _ask(self, node: int, cursors: dict[int, Cursor]) -> None:
        pace = self._pace
        asked = {p: cursor.position for p, cursor in cursors.items()}
        places = [(p, position, pace.partition_bytes) for p, position in asked.items()]
        request = FetchRequest(
            pace.wait_ms, pace.least_bytes, pace.answer_bytes, READ_COMMITTED, [(self._topic, places)]
        )
        asked_ms = int(time.time() * 1000)
        reply = await self._client.send(node, request)
        moved = False
        for fields in (row for _, rows in reply.topics for row in rows):
            cursor = cursors[fields[0]]
            if cursor not in self._cursors or not cursor.hungry or cursor.position != asked[cursor.partition]:
                continue  # it was shut, or it is elsewhere by now
            fetched = _fetched(fields, cursor.position, asked_ms)
            if fetched.code in wire.LEADER_RETRY:
                moved = True
            elif fetched.code or fetched.next_offset > cursor.position:
                self._deliver(cursor, fetched)
            else:
                cursor.whole_ms = fetched.whole_ms
        if moved:
            await asyncio.gather(self._client.force_metadata_update(), asyncio.sleep(RECONNECT_PAUSE_S))

    def _deliver(self, cursor: Cursor, fetched: Fetched) -> None:
        cursor.put(fetched)
        # Whom a full answer could not serve comes first the next time.
        self._cursors.remove(cursor)
        self._cursors.append(cursor)


def _fetched(fields: Any, position: int, asked_ms: int) -> Fetched:
    """``fields``: of one partition in the answer; versions differ in what stands between."""
    code = fields[1]
    if code:
        return Fetched(position, code)
    aborted, data = fields[-3] if len(fields) > 7 else fields[-2], fields[-1] or b""
    next_offset, stable = end_of(data, position), fields[3]
    return Fetched(position, 0, aborted or (), data, next_offset, asked_ms if next_offset >= stable else 0)
