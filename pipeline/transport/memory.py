"""The transport inside one process: topics, a group and atomic commits in memory.

For a demo without a broker and for tests of everything above the transport. Nothing survives the process. It keeps the
promises of ``base.py``; what only a real broker does (time-outs, fetch buffers, markers) it does not imitate.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.columns import Changelog, Committed, Headers, Membership, Part, Records, Segment, as_list
from pipeline.config import Config
from pipeline.errors import GroupRefused, IdentityTaken, OutcomeUnknown, PartRefused, TakeoverError, TopicError
from pipeline.transport.base import AssignmentListener, GroupMember, LogRange, Written

KEPT_MS = 86_400_000
"""Nothing is compacted here, so a tombstone stays longer than this."""
FETCH_RECORDS = 32768
"""Most records of one partition in one fetch."""


@dataclass(slots=True)
class Entry:
    """One record of a log."""

    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: Headers = ()


@dataclass(slots=True)
class Group:
    """A consumer group: members in the order they joined, and what they committed."""

    generation: int = 0
    members: dict[str, MemoryTransport] = field(default_factory=dict)
    offsets: dict[int, Committed] = field(default_factory=dict)
    rebalancing: asyncio.Lock = field(default_factory=asyncio.Lock)


class MemoryBroker:
    """Topics and groups, shared by the transports of one process and one event loop."""

    def __init__(self, record_bytes_max: int = 1_048_576) -> None:
        self.topics: dict[str, list[list[Entry]]] = {}
        self.groups: dict[str, Group] = {}
        self.record_bytes_max = record_bytes_max
        self._arrived: set[asyncio.Event] = set()
        self._ids: dict[str, bytes] = {}
        self._members = 0

    def create(self, topic: str, partitions: int) -> None:
        """Makes a topic. Raises TopicError if it is there."""
        if topic in self.topics:
            raise TopicError(f"topic {topic!r} is there already")
        self.topics[topic] = [[] for _ in range(partitions)]
        self._ids[topic] = os.urandom(16)

    def id_of(self, topic: str) -> bytes:
        """Sixteen bytes that a topic has from its making on."""
        return self._ids[topic]

    def produce(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        timestamp: int | None = None,
    ) -> int:
        """Appends a record and returns its offset; ``timestamp`` in milliseconds, now by default."""
        log = self.topics[topic][partition]
        log.append(Entry(key, value, int(time.time() * 1000) if timestamp is None else timestamp, headers))
        self.wake()
        return len(log) - 1

    def records(self, topic: str) -> list[tuple[int, int, Entry]]:
        """Everything in a topic: partition, offset, record."""
        return [(p, o, e) for p, log in enumerate(self.topics.get(topic, [])) for o, e in enumerate(log)]

    def wake(self) -> None:
        """Whoever waits for records looks again."""
        for event in self._arrived:
            event.set()

    def listen(self) -> asyncio.Event:
        """An event that is set whenever something was appended."""
        event = asyncio.Event()
        self._arrived.add(event)
        return event

    def unlisten(self, event: asyncio.Event) -> None:
        self._arrived.discard(event)

    def next_member(self, name: str) -> str:
        """A member id that nobody else has."""
        self._members += 1
        return f"{name}-{self._members}"

    async def rebalance(self, group: Group) -> None:
        """Eager: all give up everything, then every member gets its share of a new generation, round robin."""
        async with group.rebalancing:
            for member in list(group.members.values()):
                await member.give_up()
            group.generation += 1
            members = list(group.members.values())
            for i, member in enumerate(members):
                member.receive(group.generation, range(i, member.partitions, len(members)))


class MemoryTransport:
    """One member and its writer. See ``Transport``."""

    name = "memory"

    @property
    def changelog_id(self) -> bytes:
        return self._broker.id_of(self._config.changelog)

    @property
    def input_id(self) -> bytes:
        return self._broker.id_of(self._config.input)

    async def topic_ids(self) -> tuple[bytes, bytes]:
        return self.changelog_id, self.input_id

    async def input_retention_ms(self) -> int:
        return 0

    async def changelog_retention_ms(self) -> int:
        return KEPT_MS

    def __init__(self, broker: MemoryBroker, config: Config) -> None:
        self._broker, self._config = broker, config
        self.partitions = 0
        self._group = broker.groups.setdefault(config.group, Group())
        self._member = broker.next_member(config.worker_id or "worker")
        self._listener: AssignmentListener | None = None
        self._positions: dict[int, int] = {}
        self._paused: set[int] = set()
        self._arrived = broker.listen()
        self._settled = False

    # ---- the group

    async def start(self, listener: AssignmentListener) -> None:
        topics, config = self._broker.topics, self._config
        for topic in (config.input, config.output):
            if topic not in topics:
                raise TopicError(f"there is no topic {topic!r}; make it with `eddy topics create`")
        self.partitions = len(topics[config.input])
        for topic in (config.changelog, config.dead_letters):
            if topic not in topics:
                self._broker.create(topic, self.partitions)
        for topic in (config.output, config.changelog, config.dead_letters):
            if len(topics[topic]) != self.partitions:
                raise TopicError(
                    f"topic {topic!r} has {len(topics[topic])} partitions, the input {config.input!r} has"
                    f" {self.partitions}: they must be equal"
                )
        if any(m._config.worker_id == config.worker_id for m in self._group.members.values() if config.worker_id):
            raise IdentityTaken(f"worker id {config.worker_id!r} is in the group already; give another --worker-id")
        self._listener = listener
        self._settled = True
        self._group.members[self._member] = self
        await self._broker.rebalance(self._group)

    async def give_up(self) -> None:
        """The group's coordinator takes everything back."""
        if self._listener is not None and self._positions:
            await self._listener.on_revoked(list(self._positions))
        self._positions.clear()

    def receive(self, generation: int, partitions: Collection[int]) -> None:
        """The group's coordinator gives a new assignment."""
        self._positions = dict.fromkeys(partitions, 0)
        self._paused = set(partitions)
        if self._listener is not None:
            membership = Membership(self._config.group, generation, self._member, self._config.worker_id or None)
            self._listener.on_assigned(membership, partitions)

    async def leave(self) -> None:
        if self._group.members.pop(self._member, None) is not None:
            self._positions.clear()
            await self._broker.rebalance(self._group)

    async def stop(self) -> None:
        await self.leave()
        self._broker.unlisten(self._arrived)

    # ---- reading

    async def fetch(self, timeout_s: float, *, unhurried: bool = False) -> list[Segment]:
        try:
            async with asyncio.timeout(timeout_s):
                while not (segments := self._ready()):
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            return []
        # A queue's get yields to the loop only when it waits; this must do so always, or a backlog starves the rest.
        await asyncio.sleep(0)
        return [s for s in segments if self._accept(s)]

    def _ready(self) -> list[Segment]:
        log = self._broker.topics[self._config.input]
        return [
            self._segment(p, at, log[p][at : at + FETCH_RECORDS])
            for p, at in self._positions.items()
            if p not in self._paused and len(log[p]) > at
        ]

    def _accept(self, segment: Segment) -> bool:
        """Whether its partition is still where the segment begins: it may have moved or been paused meanwhile."""
        first = int(segment.offsets[0])
        if segment.partition in self._paused or self._positions.get(segment.partition) != first:
            return False
        self._positions[segment.partition] = segment.next_offset
        return True

    @staticmethod
    def _segment(partition: int, first: int, entries: list[Entry]) -> Segment:
        n = len(entries)
        return Segment(
            partition,
            [e.key for e in entries],
            [e.value for e in entries],
            np.arange(first, first + n),
            np.fromiter((e.timestamp for e in entries), np.int64, n),
            first + n,
            [e.headers for e in entries] if any(e.headers for e in entries) else None,
            sum(len(e.value) for e in entries if e.value is not None),
        )

    def pause(self, partitions: Collection[int]) -> None:
        self._paused |= set(partitions)

    def resume(self, partitions: Collection[int]) -> None:
        self._paused -= set(partitions)
        self._arrived.set()

    def seek(self, partition: int, offset: int) -> None:
        if partition in self._positions:
            self._positions[partition] = offset
            self._arrived.set()

    def lag(self, partitions: Collection[int]) -> dict[int, int]:
        log = self._broker.topics.get(self._config.input, [])
        return {p: len(log[p]) - self._positions[p] if p in self._positions else -1 for p in partitions}

    # ---- takeover

    async def stable_offsets(self, membership: Membership, partitions: Collection[int]) -> dict[int, Committed | None]:
        return {p: self._group.offsets.get(p) for p in partitions}

    async def log_ranges(self, partitions: Collection[int]) -> dict[int, LogRange]:
        log = self._broker.topics[self._config.input]
        return {p: LogRange(0, len(log[p])) for p in partitions}

    async def starting_offset(self, partition: int) -> int:
        if self._config.auto_offset_reset == "earliest":
            return 0
        return len(self._broker.topics[self._config.input][partition])

    async def changelog(self, partition: int, start: int = 0) -> AsyncIterator[Changelog]:
        log = self._broker.topics[self._config.changelog][partition]
        end = len(log)
        if start > end:
            raise TakeoverError(partition, f"the changelog ends at {end}, before {start}: it was made anew")
        if start < end:
            entries = log[start:end]
            yield Changelog(
                [e.key or b"" for e in entries],
                [e.value for e in entries],
                np.arange(start, end),
                end,
                end,
                int(time.time() * 1000),
            )

    async def follow(self, partitions: Mapping[int, int]) -> AsyncIterator[tuple[int, Changelog]]:
        positions = dict(partitions)
        told: set[int] = set()
        arrived = self._broker.listen()
        try:
            while True:
                arrived.clear()
                for partition, start in positions.items():
                    async for stretch in self.changelog(partition, start):
                        positions[partition] = stretch.next_offset
                        yield partition, stretch
                    if partition not in told:
                        told.add(partition)
                        at = positions[partition]
                        yield partition, Changelog([], [], np.empty(0, np.int64), at, at, int(time.time() * 1000))
                await arrived.wait()
        finally:
            self._broker.unlisten(arrived)

    async def members(self) -> list[GroupMember]:
        members = [
            GroupMember(m._config.worker_id or name, name, self.name, "", tuple(sorted(m._positions)))
            for name, m in self._group.members.items()
        ]
        return sorted(members, key=lambda member: member.name)

    # ---- the writer

    async def settle(self) -> None:
        self._settled = True

    async def open(self, outputs: Collection[int], snapshots: Collection[int]) -> None:
        if not self._settled:
            raise OutcomeUnknown("the writer is not settled")
        await asyncio.sleep(0)

    async def commit(self, membership: Membership, parts: Sequence[Part]) -> dict[int, Written]:
        if not self._settled:
            raise OutcomeUnknown("the writer is not settled")
        await asyncio.sleep(0)  # as a real one, a commit lets others run before it is decided
        current = self._group.members.get(membership.member_id)
        if current is not self or membership.generation != self._group.generation:
            raise GroupRefused(f"generation {membership.generation} is not the group's {self._group.generation}")
        config = self._config
        try:
            for part in parts:
                for records in (part.outputs, part.dead_letters, part.snapshots):
                    self._check_sizes(part.partition, records)
        except PartRefused:
            self._settled = False
            raise
        # No await from here on: records and offsets become visible together.
        written: dict[int, Written] = {}
        for part in parts:
            self._append(config.output, part.partition, part.outputs)
            self._append(config.dead_letters, part.partition, part.dead_letters)
            stretch = self._append(config.changelog, part.partition, part.snapshots)
            if len(part.snapshots):
                written[part.partition] = stretch
            self._group.offsets[part.partition] = Committed(part.committed, part.metadata)
        self._broker.wake()
        return written

    async def publish(self, parts: Sequence[Part]) -> None:
        await asyncio.sleep(0)
        for part in parts:
            self._check_sizes(part.partition, part.outputs)
        for part in parts:
            self._append(self._config.output, part.partition, part.outputs)
        self._broker.wake()

    def _check_sizes(self, partition: int, records: Records) -> None:
        largest = max((len(v) for v in as_list(records.values) if v is not None), default=0)
        if largest > self._broker.record_bytes_max:
            raise PartRefused(partition, f"a record of {largest} bytes, at most {self._broker.record_bytes_max}")

    def _append(self, topic: str, partition: int, records: Records) -> Written:
        log = self._broker.topics[topic][partition]
        first = len(log)
        log.extend(_entries(records))
        return Written(first, len(log))


def _entries(records: Records) -> list[Entry]:
    values, timestamps = as_list(records.values), records.timestamps.tolist()
    extra = records.extra
    out = []
    for i, (key, value, timestamp) in enumerate(zip(records.keys, values, timestamps)):
        varying = [(name, column[i].tobytes()) for name, column in records.columns]
        own = list(extra[i]) if extra is not None else []
        out.append(Entry(key, value, timestamp, [*records.constant, *varying, *own]))
    return out
