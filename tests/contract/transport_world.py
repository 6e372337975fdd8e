"""A cluster as the transports' tests see it, members that remember what they were told, and a worker that copies."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.columns import Headers, Membership, Part, Records, Segment
from pipeline.config import Config
from pipeline.errors import GroupRefused, OutcomeUnknown, TakeoverError
from pipeline.transport.base import Transport

WAIT_S = 20.0
PARTITIONS = 4
TIME_MS = int(time.time() * 1000) - 3_600_000
"""Of the first record: old ones are taken away by the broker's retention, at a moment of its own."""


@dataclass(frozen=True)
class Seen:
    """A record as somebody else reads it, committed."""

    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int


class World(ABC):
    """A cluster with topics that no other test uses."""

    group: str
    input: str
    output: str

    def config(self, worker_id: str = "w0", **settings: object) -> Config:
        base: dict[str, object] = {"input": self.input, "output": self.output, "group": self.group}
        return Config(worker_id=worker_id, bootstrap_servers=self.servers, **{**base, **settings})  # type: ignore[arg-type]

    @property
    @abstractmethod
    def servers(self) -> str: ...

    @abstractmethod
    async def create(self, topic: str, partitions: int) -> None: ...

    @abstractmethod
    async def produce(
        self,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp: int | None = None,
    ) -> int:
        """Appends to the input; the record's offset."""

    @abstractmethod
    async def read(self, topic: str) -> list[Seen]:
        """All records that are committed by now, in order within a partition."""

    @abstractmethod
    def connect(self, config: Config) -> Transport: ...


@dataclass
class Member:
    """A transport and what it told its listener."""

    transport: Transport
    membership: Membership | None = None
    partitions: tuple[int, ...] = ()
    revoked: list[tuple[int, ...]] = field(default_factory=list)
    lost: list[Exception] = field(default_factory=list)
    trouble: dict[int, TakeoverError] = field(default_factory=dict)
    assignments: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def on_revoked(self, partitions: Collection[int]) -> None:
        self.revoked.append(tuple(partitions))
        self.partitions = ()
        self.membership = None

    def on_assigned(self, membership: Membership, partitions: Collection[int]) -> None:
        self.membership, self.partitions = membership, tuple(sorted(partitions))
        self.assignments += 1
        self._tell()

    def on_trouble(self, partition: int, error: TakeoverError) -> None:
        self.trouble[partition] = error
        self._tell()

    def on_lost(self, reason: Exception) -> None:
        self.lost.append(reason)
        self._tell()

    def _tell(self) -> None:
        async def tell() -> None:
            async with self.changed:
                self.changed.notify_all()

        task = asyncio.create_task(tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def until_assigned(self, number: int | None = None) -> Membership:
        """Waits for an assignment of that many partitions (None: any), and returns the membership."""
        async with asyncio.timeout(WAIT_S), self.changed:
            await self.changed.wait_for(
                lambda: self.membership is not None and (number is None or len(self.partitions) == number)
            )
        assert self.membership is not None
        return self.membership

    async def until_lost(self) -> Exception:
        async with asyncio.timeout(WAIT_S), self.changed:
            await self.changed.wait_for(lambda: bool(self.lost))
        return self.lost[0]

    def begin(self, offset: int = 0) -> None:
        for partition in self.partitions:
            self.transport.seek(partition, offset)
        self.transport.resume(self.partitions)

    async def fetch(self, records: int) -> dict[int, list[Segment]]:
        """Fetches until that many records have come; segments by partition."""
        got: dict[int, list[Segment]] = {}
        async with asyncio.timeout(WAIT_S):
            while records > 0:
                for segment in await self.transport.fetch(1.0):
                    got.setdefault(segment.partition, []).append(segment)
                    records -= len(segment)
        assert records == 0, f"{-records} records too many"
        return got


def records(keys: list[bytes | None], values: list[bytes | None] | np.ndarray, **headers: object) -> Records:
    return Records(keys, values, np.arange(len(keys)) + TIME_MS, **headers)  # type: ignore[arg-type]


def part(partition: int, committed: int, metadata: str = "m", **contents: Records) -> Part:
    return Part(partition, b"tag", committed, metadata, **contents)


class CopyingWorker:
    """The smallest worker that keeps the rules: takes over, copies input to output, commits, drops what was refused."""

    def __init__(self, world: World, worker_id: str) -> None:
        self.transport = world.connect(world.config(worker_id))
        self.member = Member(self.transport)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.transport.start(self.member)
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._task.done() and not self._task.cancelled() and (error := self._task.exception()):
            raise error
        await self.transport.leave()
        await self.transport.stop()

    async def _run(self) -> None:
        taken = -1
        while True:
            member = self.member
            if member.membership is None or member.assignments == taken:
                segments = await self.transport.fetch(0.05)
            else:
                taken = member.assignments
                segments = await self._take_over()
            membership = member.membership
            parts = [
                part(
                    s.partition,
                    s.next_offset,
                    outputs=Records([k or b"" for k in s.keys], s.values, s.timestamps),
                )
                for s in segments
                if s.partition in member.partitions
            ]
            if parts and membership is not None:
                try:
                    await self.transport.commit(membership, parts)
                except GroupRefused:
                    taken = -1
                except OutcomeUnknown:
                    await self.transport.settle()
                    taken = -1

    async def _take_over(self) -> list[Segment]:
        membership, partitions = self.member.membership, self.member.partitions
        assert membership is not None
        found = await self.transport.stable_offsets(membership, partitions)
        if membership is self.member.membership:
            for partition, committed in found.items():
                self.transport.seek(partition, committed.offset if committed is not None else 0)
            self.transport.resume(partitions)
        return []
