"""aiokafka's membership of a group, with an end to what it would try for ever, and an eye on what it overlooks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    InconsistentGroupProtocolError,
    InvalidGroupIdError,
    InvalidSessionTimeoutError,
    KafkaError,
)
from aiokafka.protocol.group import JoinGroupRequest

from pipeline.config import Config
from pipeline.errors import CommitError, ConfigError, IdentityTaken, UserError
from pipeline.transport.kafka import wire
from pipeline.transport.kafka.client import Client
from pipeline.transport.kafka.groups import assigned_in

log = logging.getLogger(__name__)

RETRY_PAUSE_S = 0.5
FIRST_LOOK_S, LOOK_S, LAST_LOOK_S = 1.0, 10.0, 60.0
"""Between two looks at whether somebody has each partition; less and less often while somebody has not."""
NEVER_IDLE_MS = 2**31 - 1
"""aiokafka leaves the group when nobody has fetched for a while; a worker that is busy or paused is none to leave."""

Lost = Callable[[Exception], None]


class Member(GroupCoordinator):
    """aiokafka's membership, which ends with a reason instead of trying for ever."""

    def __init__(self, client: Client, subscription: SubscriptionState, config: Config, lost: Lost) -> None:
        self._lost = lost
        self._known: str | None = None
        self._join_unanswered = False
        super().__init__(  # type: ignore[no-untyped-call]
            client,
            subscription,
            group_id=config.group,
            group_instance_id=config.worker_id,
            session_timeout_ms=config.session_timeout_ms,
            rebalance_timeout_ms=config.session_timeout_ms,
            heartbeat_interval_ms=config.heartbeat_interval_ms,
            enable_auto_commit=False,
            assignors=(RoundRobinPartitionAssignor,),
            max_poll_interval_ms=NEVER_IDLE_MS,
        )

    @property
    def joined(self) -> bool:
        return self.generation >= 0 and bool(self.member_id)

    async def _send_req(self, request: Any) -> Any:
        try:
            return await super()._send_req(request)  # type: ignore[no-untyped-call]
        except KafkaError:
            if isinstance(request, JoinGroupRequest):
                self._join_unanswered = True
            raise

    async def _do_rejoin_group(self, subscription: Any) -> bool:
        # The group has forgotten our member id: we were away too long, or another process has our instance id. If the
        # answer to a join was lost, the id that the group knows instead may be ours.
        if self._known is not None and not self.member_id and not self._join_unanswered and await self._is_taken():
            await self._end(self._identity_taken())
            return False
        joined: bool = await super()._do_rejoin_group(subscription)  # type: ignore[no-untyped-call]
        if joined:
            self._known, self._join_unanswered = self.member_id, False
        return joined

    async def _push_error_to_user(self, exc: Exception) -> None:
        """Whatever aiokafka does not get over by itself; it would wait here until somebody fetches."""
        log.warning("group %s: %r", self.group_id, exc)
        if isinstance(exc, GroupAuthorizationFailedError):
            await self._end(UserError(f"not authorized to be in the group {self.group_id!r}"))
        elif isinstance(exc, InvalidGroupIdError | InvalidSessionTimeoutError | InconsistentGroupProtocolError):
            await self._end(ConfigError(f"the broker refuses this member of group {self.group_id!r}: {exc}"))
        elif await self._is_taken():
            await self._end(self._identity_taken())
        else:
            self.request_rejoin()
            await asyncio.wait([self._closing], timeout=RETRY_PAUSE_S)

    async def _is_taken(self) -> bool:
        """Whether the group knows our instance id under a member id that was never ours."""
        if self._group_instance_id is None or self._known is None:
            return False
        try:
            reply = await self._send_req(wire.DescribeGroups([self.group_id], False))
        except KafkaError as error:
            log.info("group %s cannot be described: %r", self.group_id, error)
            return False
        members = [member for group in reply.groups for member in group[5]]
        return any(m[1] == self._group_instance_id and m[0] != self._known for m in members)

    def _identity_taken(self) -> IdentityTaken:
        return IdentityTaken(
            f"another process is worker {self._group_instance_id!r} of group {self.group_id!r}:"
            " give each its own --worker-id"
        )

    async def _end(self, reason: Exception) -> None:
        """Tells the worker, and stays out of the group until it closes us."""
        self._lost(reason)
        await asyncio.wait([self._closing])

    async def see_to_all(self, topic: str) -> None:
        """For as long as it may: where nobody has a partition, the group is asked to share them out anew.

        aiokafka's leader does so when the topic changes. But a static member that takes a dead leader's place is given
        what that one had and is not told that it leads, so until the next rebalance nobody looks (KIP-814). A rebalance
        begins only when it is the leader that asks; others have asked for nothing.
        """
        pause_s = FIRST_LOOK_S
        while True:
            await asyncio.sleep(pause_s)
            if not self.joined or self._closing.done():
                continue
            try:
                had = await assigned_in(self._client, self.group_id, topic)
            except CommitError as error:
                log.info("group %s: %s", self.group_id, error)
                continue
            known = self._client.cluster.partitions_for_topic(topic) or set()
            pause_s = min(2 * pause_s, LAST_LOOK_S) if had is not None and known - had else LOOK_S
            if had is not None and known - had:
                log.warning("group %s: nobody has partitions %s, asking for them", self.group_id, sorted(known - had))
                self.request_rejoin()
