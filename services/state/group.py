"""What a group holds of an input topic, read only: offsets with their marks, the log's ends, snapshots, members.

Nothing here joins the group or writes: it may run beside workers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from aiokafka.errors import KafkaError

from pipeline.columns import Changelog, Committed, as_list
from pipeline.config import Config
from pipeline.errors import EddyError, TopicError, UserError
from pipeline.mark import Mark
from pipeline.streams.snapshots import DIGEST, ENDED, HEADER, VERSION, Newest
from pipeline.transport.base import GroupMember, LogRange
from pipeline.transport.kafka.client import Client
from pipeline.transport.kafka.groups import members_of, stable_offsets
from pipeline.transport.kafka.logs import EARLIEST, LATEST, offsets_at, read_changelog
from services.cluster import connected, topics_with

PATIENCE_S = 30.0
"""The transaction of a worker that died is over by then (its time-out, and how often a broker looks)."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the group has of one partition."""

    partition: int
    committed: Committed | None
    """None: the group has no offset of it."""
    mark: Mark | None
    """None: the offset has no metadata of Eddy's."""
    log: LogRange

    @property
    def done_above(self) -> int:
        """How many offsets above C are done (D)."""
        return sum(end - first for first, end in self.mark.done_above) if self.mark is not None else 0

    @property
    def lag(self) -> int:
        """Offsets of the input from C on."""
        return self.log.end - (self.committed.offset if self.committed is not None else self.log.start)


class View:
    """Of one group and one input topic; ``opened`` makes one."""

    def __init__(self, client: Client, group: str, topic: str, partitions: int) -> None:
        self.client, self.group, self.topic, self.partitions = client, group, topic, partitions
        self.changelog = Config(group=group, input=topic).changelog

    async def held(self) -> list[Held]:
        """Stable offsets first, then the ends of the log. Raises CommitError, EddyError."""
        every = range(self.partitions)
        offsets = await stable_offsets(self.client, self.group, self.topic, every, PATIENCE_S)
        starts = await self.offsets_at(EARLIEST)
        ends = await self.offsets_at(LATEST)
        found = []
        for p in every:
            committed = offsets.get(p)
            mark = Mark.decode(committed.metadata) if committed is not None else None
            found.append(Held(p, committed, mark, LogRange(starts[p], ends[p])))
        return found

    async def offsets_at(self, which: int, *, committed: bool = False) -> dict[int, int]:
        """Of the input's partitions: see logs.offsets_at. Raises EddyError."""
        try:
            return await offsets_at(self.client, self.topic, range(self.partitions), which, committed=committed)
        except (TimeoutError, KafkaError) as error:
            raise EddyError(f"the offsets of {self.topic} cannot be read: {error!r}") from None

    async def stretches(self, partition: int) -> AsyncIterator[Changelog]:
        """The changelog partition, read committed, up to its present end.

        Raises CommitError past the time limit, TakeoverError for what is damaged, EddyError.
        """
        try:
            async for stretch in read_changelog(self.client, self.changelog, partition, 0, PATIENCE_S):
                yield stretch
        except (TimeoutError, KafkaError) as error:
            raise EddyError(f"{self.changelog}-{partition} cannot be read: {error!r}") from None

    async def newest(self, partition: int, digest: bytes | None, row_bytes: int | None = None) -> Newest:
        """The newest snapshot of every stream of a partition: as much memory as its states take.

        ``row_bytes`` None: as the first live snapshot of ``digest`` (None: of any) has it.
        """
        newest = Newest(row_bytes) if row_bytes is not None else None
        before: list[Changelog] = []
        async for stretch in self.stretches(partition):
            if newest is None:
                before.append(stretch)
                width = live_row_bytes(stretch, digest)
                if width is None:
                    continue
                newest = Newest(width)
                for earlier in before:
                    newest.add(earlier)
                before.clear()
            else:
                newest.add(stretch)
        if newest is None:
            newest = Newest(0)
            for earlier in before:
                newest.add(earlier)
        return newest

    async def members(self) -> list[GroupMember]:
        """Raises CommitError."""
        return await members_of(self.client, self.group, self.topic)


def live_row_bytes(stretch: Changelog, digest: bytes | None) -> int | None:
    """Bytes of a row, by the first snapshot of a live stream of ``digest`` (None: of any); None: there is none."""
    for value in as_list(stretch.values):
        if value is None or len(value) < HEADER or value[0] != VERSION or value[1] & ENDED:
            continue
        if digest is None or value[DIGEST] == digest:
            return len(value) - HEADER
    return None


@asynccontextmanager
async def opened(bootstrap_servers: str, group: str, topic: str, *, snapshots: bool = True) -> AsyncIterator[View]:
    """``snapshots``: there must be a changelog. Raises TopicError, UserError, Unreachable."""
    async with connected(bootstrap_servers) as client:
        there = await topics_with(client, topic)
        view = View(client, group, topic, there[topic])
        if snapshots:
            _check_changelog(view, there)
        yield view


def _check_changelog(view: View, there: dict[str, int]) -> None:
    found = there.get(view.changelog)
    if found is None:
        ending = f"-{view.topic}-changelog"
        groups = ", ".join(sorted(name.removesuffix(ending) for name in there if name.endswith(ending)))
        raise UserError(
            f"group {view.group!r} has no states of {view.topic!r}: there is no topic {view.changelog!r}"
            f" (groups that have some: {groups or 'none'}); give another --group or --input"
        )
    if found != view.partitions:
        raise TopicError(
            f"changelog {view.changelog!r} has {found} partitions and input {view.topic!r} has {view.partitions}: the"
            " input's number was changed, or the topic made by hand"
        )


def name_members(members: Sequence[GroupMember]) -> str:
    """For an error's line."""
    return ", ".join(f"{m.name} at {m.host}" for m in members[:8]) + (" and others" if len(members) > 8 else "")


def digests_in(newest: Newest) -> dict[str, int]:
    """Digest in hexadecimal -> how many snapshots have it."""
    counts: dict[str, int] = {}
    _, matrix = newest.columns()
    for digest, count in zip(*np.unique(np.ascontiguousarray(matrix[:, DIGEST]).view(">u8"), return_counts=True)):
        counts[f"{int(digest):016x}"] = int(count)
    for value in newest.others.values():
        if len(value) >= HEADER:
            counts[value[DIGEST].hex()] = counts.get(value[DIGEST].hex(), 0) + 1
    return counts
