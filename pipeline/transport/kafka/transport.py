"""The transport over Kafka: one reader, one writer, and what a takeover asks."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)

from pipeline.columns import Changelog, Committed, Membership, Part, Segment
from pipeline.config import Config
from pipeline.errors import CommitError, NotAuthorized, OutcomeUnknown, Unreachable, UserError
from pipeline.transport.base import AssignmentListener, GroupMember, LogRange, Written
from pipeline.transport.kafka.client import Client, unreachable
from pipeline.transport.kafka.dead_owners import DeadOwners
from pipeline.transport.kafka.fetching import FOLLOW, RESTORE, LogFetcher
from pipeline.transport.kafka.groups import fetch_offsets, members_of, stable_offsets
from pipeline.transport.kafka.logs import EARLIEST, LATEST, follow_changelogs, offsets_at, read_changelog
from pipeline.transport.kafka.pacing import Pacing
from pipeline.transport.kafka.publisher import Publisher
from pipeline.transport.kafka.reader import Reader
from pipeline.transport.kafka.topic_watch import Doubt, TopicWatch
from pipeline.transport.kafka.topics import check_topics, know_leaders, setting_of
from pipeline.transport.kafka.writer import Writer

log = logging.getLogger(__name__)

NOT_AUTHORIZED = (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
ABORT_CHECK_S = 20.0
"""A broker looks for transactions past their time-out every ten seconds; this is twice that."""
PATIENT_START = 3
"""``start`` takes several requests, some of which wait for what the broker makes first."""


@dataclass(frozen=True, slots=True)
class _Open:
    """What a started transport holds.

    A broker answers the requests of one connection in their order, and a fetch waits for data: reading, writing and
    restoring have connections of their own.
    """

    reading: Client
    writing: Client
    restoring: Client
    reader: Reader
    writer: Writer
    publisher: Publisher
    dead_owners: DeadOwners
    topics: TopicWatch
    restorer: LogFetcher
    following: Client
    """For a standby: connected when it is first used."""
    follower: LogFetcher

    @staticmethod
    def of(config: Config, listener: AssignmentListener) -> _Open:
        """Not yet connected."""
        servers, name = config.bootstrap_servers, f"eddy-{config.worker_id}-{os.getpid()}"
        # A join is answered when all members have come, which may take them a session.
        join_ms = max(config.request_timeout_ms, config.session_timeout_ms + 3_000)
        reading = Client(servers, name, join_ms)
        writing = Client(servers, name, config.request_timeout_ms)
        lanes = f"{config.group}-{config.input}-"
        lane = lanes + config.worker_id
        topics = {
            "input": config.input,
            "output": config.output,
            "dead letters": config.dead_letters,
            "changelog": config.changelog,
        }
        written = (config.output, config.dead_letters, config.changelog)
        pacing, doubt = Pacing(), Doubt()
        reader = Reader(config, reading, listener, pacing, doubt)
        restoring, following = (Client(servers, name, config.request_timeout_ms) for _ in range(2))
        return _Open(
            reading,
            writing,
            restoring,
            reader,
            Writer(
                writing,
                lane,
                config.input,
                written,
                pacing,
                config.transaction_timeout_ms,
                config.compression,
                config.snapshot_compression,
            ),
            Publisher(writing, config.output, config.compression),
            DeadOwners(writing, lanes, lane, written, config.transaction_timeout_ms),
            TopicWatch(writing, topics, doubt, reader.lose),
            LogFetcher(restoring, config.changelog, RESTORE),
            following,
            LogFetcher(following, config.changelog, FOLLOW),
        )

    async def close(self) -> None:
        await self.topics.stop()
        await asyncio.gather(self.restorer.close(), self.follower.close())
        await self.reader.stop()
        clients = (self.reading, self.writing, self.restoring, self.following)
        await asyncio.gather(*(client.shut() for client in clients))


def _why_not(error: BaseException, config: Config) -> UserError | None:
    """What to say of a start that failed; None: the error says it itself."""
    if isinstance(error, NotImplementedError):  # aiokafka's word for a version that the broker does not speak
        return UserError(f"the broker at {config.bootstrap_servers} is too old: Apache Kafka 2.5 or newer is needed")
    if isinstance(error, NOT_AUTHORIZED):
        return UserError(f"not authorized at {config.bootstrap_servers}: {error!r}")
    if isinstance(error, NotAuthorized):
        return UserError(f"at {config.bootstrap_servers}: {error}")
    if isinstance(error, CommitError):
        return Unreachable(f"the cluster at {config.bootstrap_servers} does not get ready: {error}")
    if isinstance(error, (TimeoutError, KafkaError)):
        return unreachable(config.bootstrap_servers)
    return None


class KafkaTransport:
    """See pipeline.transport.base.Transport."""

    def __init__(self, config: Config) -> None:
        """Raises ConfigError for a name that is not set."""
        config.require("input", "output", "group", "worker_id")
        self._config = config
        self._partitions = 0
        self._open: _Open | None = None

    @property
    def name(self) -> str:
        return "kafka"

    @property
    def partitions(self) -> int:
        return self._partitions

    async def start(self, listener: AssignmentListener) -> None:
        """See Transport.start. Raises TopicError, Unreachable, ConfigError, UserError."""
        config = self._config
        self._open = it = _Open.of(config, listener)
        try:
            async with asyncio.timeout(it.writing.limit_s * PATIENT_START):
                await it.writing.connect()
                self._partitions = await check_topics(it.writing, config)
                # What the lane had open when it died holds back offsets and changelog: decided before anything is read.
                await asyncio.gather(
                    it.reading.connect(),
                    it.restoring.connect(),
                    it.writer.settle(),
                    fetch_offsets(it.writing, config.group, config.input, [0], stable=False),  # the group is loaded
                )
                topics = [config.input, config.output, config.dead_letters, config.changelog]
                await know_leaders(it.writing, topics, self._partitions)
                # What the group's leader does not know it gives to nobody, until it asks again a minute later.
                await know_leaders(it.reading, [config.input], self._partitions)
                await it.topics.begin()
        except BaseException as error:
            await self.stop()
            if (said := _why_not(error, config)) is not None:
                raise said from error
            raise
        it.reader.join(self._partitions)

    @property
    def changelog_id(self) -> bytes:
        """See Transport.changelog_id."""
        return self._opened.topics.id_of("changelog")

    @property
    def input_id(self) -> bytes:
        """See Transport.input_id."""
        return self._opened.topics.id_of("input")

    async def topic_ids(self) -> tuple[bytes, bytes]:
        """See Transport.topic_ids. Raises OutcomeUnknown past the time limit."""
        topics = self._opened.topics
        try:
            async with asyncio.timeout(self._opened.writing.limit_s):
                found = await topics.ids_now()
        except (TimeoutError, KafkaError) as error:
            raise OutcomeUnknown(f"the topics' ids cannot be asked for: {error!r}") from error
        return found("changelog"), found("input")

    async def changelog_retention_ms(self) -> int:
        """See Transport.changelog_retention_ms."""
        return await self._setting(self._config.changelog, "delete.retention.ms")

    async def input_retention_ms(self) -> int:
        """See Transport.input_retention_ms."""
        return max(0, await self._setting(self._config.input, "retention.ms"))

    async def _setting(self, topic: str, name: str) -> int:
        client = self._opened.writing
        try:
            async with asyncio.timeout(client.limit_s):
                return int(await setting_of(client, topic, name) or 0)
        except (TimeoutError, KafkaError) as error:
            raise OutcomeUnknown(f"the settings of {topic} cannot be read: {error!r}") from error

    @property
    def _opened(self) -> _Open:
        if self._open is None:
            raise RuntimeError("the transport was not started")
        return self._open

    async def fetch(self, timeout_s: float, *, unhurried: bool = False) -> list[Segment]:
        return await self._opened.reader.fetch(timeout_s, unhurried=unhurried)

    def pause(self, partitions: Collection[int]) -> None:
        self._opened.reader.pause(partitions)

    def resume(self, partitions: Collection[int]) -> None:
        self._opened.reader.resume(partitions)

    def seek(self, partition: int, offset: int) -> None:
        self._opened.reader.seek(partition, offset)

    def lag(self, partitions: Collection[int]) -> dict[int, int]:
        return self._opened.reader.lag(partitions)

    async def stable_offsets(self, membership: Membership, partitions: Collection[int]) -> dict[int, Committed | None]:
        """See Transport.stable_offsets. Raises OutcomeUnknown when a dead owner's transaction must be over by now."""
        if not partitions:
            return {}
        watch = self._opened.dead_owners.watch_offsets(partitions)
        patience_s = self._config.transaction_timeout_ms / 1000 + ABORT_CHECK_S
        group, topic = self._config.group, self._config.input
        found = await stable_offsets(self._opened.writing, group, topic, partitions, patience_s, watch.waiting)
        return {partition: found.get(partition) for partition in partitions}

    async def log_ranges(self, partitions: Collection[int]) -> dict[int, LogRange]:
        """See Transport.log_ranges. ``end`` is the high watermark. Raises OutcomeUnknown past the time limit."""
        topic = self._config.input
        starts, ends = await self._within_limit(
            offsets_at(self._opened.writing, topic, partitions, EARLIEST, committed=False),
            offsets_at(self._opened.writing, topic, partitions, LATEST, committed=False),
        )
        self._opened.reader.heard_ends(ends)
        return {partition: LogRange(starts[partition], ends[partition]) for partition in partitions}

    async def starting_offset(self, partition: int) -> int:
        """See Transport.starting_offset. Raises OutcomeUnknown past the time limit."""
        which = LATEST if self._config.auto_offset_reset == "latest" else EARLIEST
        (found,) = await self._within_limit(
            offsets_at(self._opened.writing, self._config.input, [partition], which, committed=True)
        )
        return found[partition]

    async def _within_limit(self, *asked: Coroutine[Any, Any, dict[int, int]]) -> list[dict[int, int]]:
        try:
            return await asyncio.gather(*asked)
        except (TimeoutError, KafkaError) as error:
            raise OutcomeUnknown(f"the offsets of {self._config.input} cannot be read: {error!r}") from error

    async def changelog(self, partition: int, start: int = 0) -> AsyncIterator[Changelog]:
        """See Transport.changelog. Raises OutcomeUnknown past the time limit, TakeoverError for what cannot be read."""
        topic = self._config.changelog
        patience_s = self._config.transaction_timeout_ms / 1000 + ABORT_CHECK_S
        it = self._opened
        try:
            async for stretch in read_changelog(
                it.writing, topic, partition, start, patience_s, it.dead_owners, it.restorer
            ):
                yield stretch
        except (TimeoutError, KafkaError) as error:
            raise OutcomeUnknown(f"{topic}-{partition} cannot be read yet: {error!r}") from error

    async def follow(self, partitions: Mapping[int, int]) -> AsyncIterator[tuple[int, Changelog]]:
        """See Transport.follow. Raises OutcomeUnknown where no broker answers at its beginning."""
        it, topic = self._opened, self._config.changelog
        try:
            if not it.following.cluster.brokers():
                async with asyncio.timeout(it.following.limit_s):
                    await it.following.bootstrap()
            async for found in follow_changelogs(it.writing, topic, partitions, it.follower):
                yield found
        except (TimeoutError, KafkaError) as error:
            raise OutcomeUnknown(f"{topic} cannot be followed yet: {error!r}") from error

    async def members(self) -> list[GroupMember]:
        """See Transport.members."""
        return await members_of(self._opened.writing, self._config.group, self._config.input)

    async def settle(self) -> None:
        """See Transport.settle. Raises OutcomeUnknown past the time limit, NotAuthorized: call it again."""
        await self._opened.writer.settle()

    async def open(self, outputs: Collection[int], snapshots: Collection[int]) -> None:
        """See Transport.open."""
        config = self._config
        places = [(config.output, p) for p in outputs] + [(config.changelog, p) for p in snapshots]
        await self._opened.writer.open(config.group, places)

    async def commit(self, membership: Membership, parts: Sequence[Part]) -> dict[int, Written]:
        """See Transport.commit."""
        return await self._opened.writer.commit(membership, parts)

    async def publish(self, parts: Sequence[Part]) -> None:
        """See Transport.publish."""
        await self._opened.publisher.publish(parts)

    async def leave(self) -> None:
        await self._opened.reader.leave()

    async def stop(self) -> None:
        if self._open is not None:
            await self._open.close()
