"""The group member that reads the input in columns.

aiokafka keeps the membership (member.py) and fetches; what is ours is the copy of the membership (X1) and pausing
without throwing away what was fetched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import Any

from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.client import ConnectionGroup
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import (
    CorruptRecordException,
    KafkaError,
    TopicAuthorizationFailedError,
)
from aiokafka.errors import OffsetOutOfRangeError as OutOfRange
from aiokafka.structs import TopicPartition

from pipeline.columns import Membership, Segment
from pipeline.config import Config
from pipeline.errors import TakeoverError, TopicError
from pipeline.transport.base import AssignmentListener
from pipeline.transport.kafka import wire
from pipeline.transport.kafka.client import CLOSE_S, GROUP, Client
from pipeline.transport.kafka.columns import ColumnFetcher
from pipeline.transport.kafka.member import Member
from pipeline.transport.kafka.pacing import Pacing
from pipeline.transport.kafka.topic_watch import Doubt

log = logging.getLogger(__name__)

REVOKE_S = 2.0
"""How long a rebalance waits for the worker; heartbeats stand still meanwhile."""
FETCH_WAIT_MS = 100
"""A partition that is resumed waits for the fetch that is under way, so that must not take long."""
DAMAGED_TRIES = 3
"""So often a batch with a wrong checksum is fetched."""


class Reader(ConsumerRebalanceListener):
    """See the module. ``join`` once, ``stop`` once.

    What is fetched and not yet taken is at most one fetch of each partition (``max_partition_fetch_bytes``) and one
    answer on its way from each broker (``fetch_max_bytes``).
    """

    def __init__(
        self, config: Config, client: Client, listener: AssignmentListener, pacing: Pacing, doubt: Doubt
    ) -> None:
        """While there is ``doubt`` nothing of what is fetched is given away."""
        self._config, self._client, self._listener, self._pacing = config, client, listener, pacing
        self._topic, self._doubt = config.input, doubt
        self._subscription = SubscriptionState()
        self._running: set[int] = set()
        self._positions: dict[int, int] = {}
        self._partitions: int | None = None
        self._damaged: dict[int, int] = {}
        self._beyond: set[int] = set()
        self._wake = asyncio.Event()
        doubt.settled = self._wake.set
        self._ended = self._void = False
        self._fetcher = ColumnFetcher(
            client,
            self._subscription,
            on_data=self._wake.set,
            on_error=doubt.rise,
            turn=pacing.turn,
            fetch_max_bytes=config.fetch_max_bytes,
            max_partition_fetch_bytes=config.max_partition_fetch_bytes,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            auto_offset_reset="none",  # X8: a takeover says where to begin
            isolation_level="read_committed",
        )
        self._member = Member(client, self._subscription, config, self.lose)
        self._seeing: asyncio.Task[None] | None = None
        self._fetcher.task.add_done_callback(self._loop_ended)
        self._member._coordination_task.add_done_callback(self._loop_ended)

    def join(self, partitions: int | None = None) -> None:
        """Begins to be a member; the first assignment comes when the group has settled.

        ``partitions``: how many the output has; an input that grows beyond is not consumed there (X10).
        """
        self._partitions = partitions
        self._seeing = asyncio.create_task(self._member.see_to_all(self._topic), name="members")
        self._seeing.add_done_callback(self._loop_ended)
        self._client.set_topics([self._topic])
        self._subscription.subscribe({self._topic}, listener=self)

    # Told by aiokafka

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        self._running.clear()
        if not revoked or self._ended:
            return
        known = [tp.partition for tp in revoked if self._is_ours(tp.partition)]
        telling = asyncio.ensure_future(self._listener.on_revoked(known))
        await asyncio.wait({telling}, timeout=REVOKE_S)
        if not telling.done():
            log.warning("the worker needs more than %g s to give up partitions; the rebalance goes on", REVOKE_S)
        telling.add_done_callback(self._told)

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        if self._ended:
            return
        everything = sorted(tp.partition for tp in assigned)
        partitions = [p for p in everything if self._is_ours(p)]
        self._running.clear()
        self._positions = dict.fromkeys(partitions, 0)
        self._damaged.clear()
        for tp in assigned:
            self._subscription.pause(tp)
            # A position of its own keeps aiokafka from asking the group for one.
            self._fetcher.seek_to(tp, 0)
        member = self._member
        try:
            # X1: the generation and member id of now; by the time of a commit they may be others'.
            membership = Membership(member.group_id, member.generation, member.member_id, self._config.worker_id)
            self._listener.on_assigned(membership, partitions)
            for partition in everything[len(partitions) :]:
                self._report_beyond(partition)
        except Exception as error:  # noqa: BLE001 - aiokafka would log it and go on
            self.lose(error)

    def _is_ours(self, partition: int) -> bool:
        return self._partitions is None or partition < self._partitions

    def _report_beyond(self, partition: int) -> None:
        """The input has grown (X10): its new partitions wait, by name, and nothing of them is lost."""
        if partition in self._beyond:
            return
        self._beyond.add(partition)
        config = self._config
        message = (
            f"the input {self._topic!r} has grown: its output and changelog had {self._partitions} partitions when this"
            f" worker started, so its records wait, unread; give {config.output!r}, {config.changelog!r} and"
            f" {config.dead_letters!r} as many partitions as the input, and start all workers again"
        )
        error = TakeoverError(partition, message)
        log.error("%s", error)  # a worker that never had the partition has nothing to stop, and no place to say it
        self._listener.on_trouble(partition, error)

    def _told(self, telling: asyncio.Future[None]) -> None:
        if not telling.cancelled() and (error := telling.exception()) is not None:
            self.lose(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    def _loop_ended(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled() or self._ended:
            return
        self.lose(task.exception() or RuntimeError(f"{task.get_name()} of the consumer ended"))  # type: ignore[arg-type]

    def lose(self, reason: Exception) -> None:
        """The worker is told, once, that this transport can go on no longer."""
        if not self._ended:
            self._ended = True
            self._void = isinstance(reason, TopicError)
            self._running.clear()
            self._listener.on_lost(reason)

    # Asked by the worker

    async def fetch(self, timeout_s: float, *, unhurried: bool = False) -> list[Segment]:
        """See Transport.fetch."""
        self._pacing.unhurried = unhurried
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while True:
            self._wake.clear()
            segments = self._take()
            left = end - loop.time()
            if segments or left <= 0:
                return segments
            try:
                async with asyncio.timeout(left):
                    await self._wake.wait()
            except TimeoutError:
                return self._take()

    def _take(self) -> list[Segment]:
        if self._doubt:
            return []
        taken, failed = self._fetcher.take(self._running)
        segments = []
        for segment in taken:
            first = int(segment.offsets[0]) if len(segment) else segment.next_offset
            if first < self._positions[segment.partition]:
                self.seek(segment.partition, self._positions[segment.partition])
                continue
            self._positions[segment.partition] = segment.next_offset
            self._damaged.pop(segment.partition, None)
            segments.append(segment)
        for partition, error in failed.items():
            if (trouble := self._explain(partition, error)) is not None:
                self._stop_fetching(partition)
                self._listener.on_trouble(partition, trouble)
        return segments

    def _explain(self, partition: int, error: KafkaError) -> TakeoverError | None:
        """What to say of a partition that cannot be fetched; None: it is tried again."""
        topic, position = self._topic, self._positions[partition]
        if isinstance(error, TopicAuthorizationFailedError):
            return TakeoverError(partition, f"not authorized: allow Read on the topic {topic!r}")
        if isinstance(error, OutOfRange):
            return TakeoverError(
                partition,
                f"offset {position} of {topic!r} is not in the log: retention has passed what was not yet processed, or"
                " the topic was made anew; no offset is reset without being asked: set the group's yourself",
            )
        if isinstance(error, CorruptRecordException):
            # What came damaged over the network comes whole the next time.
            self._damaged[partition] = tries = self._damaged.get(partition, 0) + 1
            if tries < DAMAGED_TRIES:
                log.warning("%s-%d at offset %d: %r, fetching it again", topic, partition, position, error)
                return None
            return TakeoverError(
                partition, f"{topic!r} is damaged at offset {position} ({error}): restore it, or set the group's offset"
            )
        log.warning("fetching %s-%d from offset %d: %r", topic, partition, position, error)
        return None if error.retriable else TakeoverError(partition, f"{topic!r} cannot be read: {error!r}")

    def _stop_fetching(self, partition: int) -> None:
        self._running.discard(partition)
        self._damaged.pop(partition, None)
        tp = TopicPartition(self._topic, partition)
        if self._subscription.is_assigned(tp):
            self._subscription.pause(tp)

    def pause(self, partitions: Collection[int]) -> None:
        """What was fetched stays: aiokafka's own pause would throw it away."""
        self._running.difference_update(partitions)

    def resume(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            tp = TopicPartition(self._topic, partition)
            if self._subscription.is_assigned(tp):
                self._subscription.resume(tp)
                self._running.add(partition)
        self._wake.set()

    def seek(self, partition: int, offset: int) -> None:
        """A partition that a rebalance has taken meanwhile is left alone: its next owner says where to begin."""
        tp = TopicPartition(self._topic, partition)
        if self._subscription.is_assigned(tp):
            self._positions[partition] = offset
            self._fetcher.seek_to(tp, offset)

    def lag(self, partitions: Collection[int]) -> dict[int, int]:
        return {partition: self._lag(partition) for partition in partitions}

    def heard_ends(self, ends: Mapping[int, int]) -> None:
        """High watermarks that came by another way than a fetch: of paused partitions no fetch tells."""
        for partition, end in ends.items():
            state = self._state(partition)
            if state is not None:
                state.highwater = end

    def _lag(self, partition: int) -> int:
        state = self._state(partition)
        if state is None or state.highwater is None:
            return -1
        return max(0, int(state.highwater) - self._positions[partition])

    def _state(self, partition: int) -> Any:
        """aiokafka's, of the present assignment; None for a partition that is not in it."""
        subscription = self._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        return assignment.state_value(TopicPartition(self._topic, partition)) if assignment is not None else None

    async def leave(self) -> None:
        """Ends the membership, also a static one, whose partitions would else wait for the session's end."""
        self._ended = True
        self._running.clear()
        member_id, joined = self._member.member_id, self._member.joined
        await self._end_membership()
        if not joined:
            return
        request = wire.LeaveGroup(self._config.group, [(member_id, self._config.worker_id)])
        try:
            async with asyncio.timeout(CLOSE_S):
                node = await self._client.coordinator(GROUP, self._config.group)
                await self._client.send(node, request, group=ConnectionGroup.COORDINATION)
        except (KafkaError, TimeoutError) as error:
            log.warning("the group was not told that this worker leaves: %r", error)

    async def stop(self) -> None:
        """Ends fetching and membership; bounded. The client is the caller's to close."""
        self._ended = True
        if self._void:
            # The group keeps a static member's assignment for its next life: one of topics that are gone, maybe empty.
            await self.leave()
        await self._end_membership()
        await _bounded(self._fetcher.close(), [self._fetcher.task])

    async def _end_membership(self) -> None:
        member = self._member
        if self._seeing is not None:
            self._seeing.cancel()
        await _bounded(member.close(), [member._coordination_task, member._heartbeat_task, member._commit_refresh_task])


async def _bounded(closing: Any, tasks: list[asyncio.Task[Any] | None]) -> None:
    """Lets aiokafka close something, which can hang or raise CancelledError; after a while its tasks are cancelled."""
    ending = asyncio.ensure_future(closing)
    await asyncio.wait({ending}, timeout=CLOSE_S)
    left = [task for task in (ending, *tasks) if task is not None and not task.done()]
    for task in left:
        task.cancel()
    for outcome in await asyncio.gather(ending, *left, return_exceptions=True):
        if isinstance(outcome, Exception):
            log.info("while leaving the group: %r", outcome)
