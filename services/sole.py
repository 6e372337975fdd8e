"""A group's only member, for what must not run beside a worker: it writes under its own membership (X15)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pipeline.columns import Membership, Part
from pipeline.config import Config
from pipeline.errors import CommitError, EddyError, GroupRefused, NotAuthorized, PartRefused, TakeoverError, UserError
from pipeline.transport.base import GroupMember
from pipeline.transport.kafka.client import Client
from pipeline.transport.kafka.groups import members_of
from pipeline.transport.kafka.pacing import Pacing
from pipeline.transport.kafka.reader import Reader
from pipeline.transport.kafka.topic_watch import Doubt
from pipeline.transport.kafka.writer import Writer
from services.state.group import name_members

JOIN_MARGIN_S = 5.0
"""Beyond a session: the broker may wait that long for members that died."""


@dataclass(frozen=True, slots=True)
class Sole:
    """The membership, and a settled writer. ``commit`` gives one transaction."""

    membership: Membership
    writer: Writer

    async def commit(self, parts: Sequence[Part]) -> None:
        """All of it or nothing. Raises UserError for what cannot be written at all, EddyError for the rest."""
        try:
            await self.writer.commit(self.membership, parts)
        except GroupRefused as error:
            raise UserError(
                f"group {self.membership.group!r} has another member since: a worker was started? ({error}); stop it,"
                " and run this again"
            ) from None
        except PartRefused as error:
            raise UserError(str(error)) from None
        except NotAuthorized:
            raise
        except CommitError as error:
            raise EddyError(f"a transaction failed, run this again: {error}") from None


@asynccontextmanager
async def only_member(
    client: Client, config: Config, partitions: int, topics: tuple[str, str, str]
) -> AsyncIterator[Sole]:
    """Joins ``config.group``, subscribed to ``config.input`` of ``partitions``, as ``config.worker_id``.

    ``topics``: what a part's outputs, dead letters and snapshots are written to. Raises UserError naming the members
    that the group has already, EddyError where the group does not let us in in time.
    """
    _refuse(config, await members_of(client, config.group, config.input))
    lane = f"{config.group}-{config.input}-{config.worker_id}"
    pacing = Pacing()
    writer = Writer(
        client,
        lane,
        config.input,
        topics,
        pacing,
        config.transaction_timeout_ms,
        config.compression,
        config.snapshot_compression,
    )
    join_s = config.session_timeout_ms / 1000 + JOIN_MARGIN_S
    joining = Client(config.bootstrap_servers, f"{config.worker_id}-{os.getpid()}", int(join_s * 1000))
    await joining.connect()
    listener = _Listener()
    reader = Reader(config, joining, listener, pacing, Doubt())
    try:
        reader.join()
        try:
            async with asyncio.timeout(join_s):
                membership, owned = await listener.assigned
        except TimeoutError:
            raise EddyError(f"group {config.group!r} does not let us in within {join_s:g} s: try again") from None
        if len(owned) != partitions:
            members = await members_of(client, config.group, config.input)
            _refuse(config, [m for m in members if m.member_id != membership.member_id])
            raise EddyError(f"group {config.group!r} had another member a moment ago: run this again")
        await writer.settle()
        yield Sole(membership, writer)
    finally:
        await reader.leave()
        await reader.stop()
        await joining.shut()


def _refuse(config: Config, members: Sequence[GroupMember]) -> None:
    if members:
        raise UserError(
            f"group {config.group!r} has members: {name_members(members)}; stop its workers (SIGTERM) and run this"
            f" again; one that was killed is forgotten after its session ({config.session_timeout_ms / 1000:g} s)"
        )


class _Listener:
    """Takes the first assignment."""

    def __init__(self) -> None:
        self.assigned: asyncio.Future[tuple[Membership, list[int]]] = asyncio.get_running_loop().create_future()

    async def on_revoked(self, partitions: Collection[int]) -> None:
        """The membership is another one from here on: the next commit is refused."""

    def on_assigned(self, membership: Membership, partitions: Collection[int]) -> None:
        if not self.assigned.done():
            self.assigned.set_result((membership, list(partitions)))

    def on_trouble(self, partition: int, error: TakeoverError) -> None:
        """Nothing is fetched here."""

    def on_lost(self, reason: Exception) -> None:
        if not self.assigned.done():
            self.assigned.set_exception(reason)
