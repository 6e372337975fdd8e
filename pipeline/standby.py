"""Standbys: workers that follow the changelogs of others' partitions, to have them when those die.

Who takes over a partition is decided by the group's assignor, round robin over the sorted member ids, which knows
nothing of copies. So a worker follows what the assignor will give it when others are gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping

from pipeline.columns import Membership
from pipeline.copies import Copies
from pipeline.errors import CommitError, TakeoverError
from pipeline.transport.base import Transport

log = logging.getLogger(__name__)

RETRY_S = 2.0


def standby_for(me: str, members: Collection[str], partitions: int, deaths: int) -> set[int]:
    """Partitions that may become mine when one to ``deaths`` of the others are gone, those that are mine now included.

    ``members``: all member ids, mine too. Where k of M are gone, partition p goes to the one that is at place
    p mod (M - k) of those who are left: of all members one of those at that place and the k after it.
    """
    order = sorted(members)
    mine = order.index(me)
    found = set()
    for gone in range(1, min(deaths, len(order) - 1) + 1):
        left = len(order) - gone
        found |= {p for p in range(partitions) if 0 <= mine - p % left <= gone}
    return found


class Standbys:
    """See the module. ``deaths``: so many workers may die at once (``standbys``)."""

    def __init__(self, transport: Transport, copies: Copies, deaths: int) -> None:
        self._transport, self._copies, self._deaths = transport, copies, deaths
        self._me: str | None = None
        self._owned: Collection[int] = ()
        self._changed = asyncio.Event()

    def assigned(self, membership: Membership, partitions: Collection[int]) -> None:
        """A new generation of the group: others may be members now."""
        self._me, self._owned = membership.member_id, partitions
        self._changed.set()

    async def run(self) -> None:
        """For as long as it may."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            following = asyncio.create_task(self._following(), name="following")
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait([following, changed], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (following, changed):
                    task.cancel()
                await asyncio.wait([following, changed])
            if not following.cancelled():
                following.result()

    async def _following(self) -> None:
        """Until the group changes. What cannot be read now is tried again."""
        while True:
            try:
                members = [m.member_id for m in await self._transport.members()]
                if self._me not in members:
                    raise CommitError("the group does not name this worker yet")
                wanted = standby_for(self._me, members, self._transport.partitions, self._deaths)
                positions = await self._copies.stand_by(wanted - set(self._owned))
                if not positions:
                    await asyncio.Event().wait()
                log.info("standing by for partitions %s", sorted(positions))
                await self._follow(positions)
            except TakeoverError as error:
                self._copies.void(error.partition, str(error))
            except CommitError as error:
                log.info("changelogs cannot be followed: %s; again in %g s", error, RETRY_S)
            await asyncio.sleep(RETRY_S)

    async def _follow(self, positions: Mapping[int, int]) -> None:
        async for partition, stretch in self._transport.follow(positions):
            self._copies.followed(partition, stretch)
