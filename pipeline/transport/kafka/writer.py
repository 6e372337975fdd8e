"""The lane: one transactional writer a worker, a transaction in one call (X3).

The broker compares the membership at TxnOffsetCommit v3 alone (X1), so every transaction carries offsets. All that may
be sent together is: AddPartitions with AddOffsets, then the records with the offsets, then EndTxn. The first of these
waits for the markers of the last transaction and holds no records: it goes before there are any, as far as it is known
where they will go.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka.errors import KafkaError
from aiokafka.protocol.transaction import AddOffsetsToTxnRequest, EndTxnRequest, InitProducerIdRequest

from pipeline.columns import Membership, Part, Records
from pipeline.errors import CommitError, ConfigError, GroupRefused, NotAuthorized, OutcomeUnknown, PartRefused
from pipeline.transport.base import Written
from pipeline.transport.kafka import wire
from pipeline.transport.kafka.client import GROUP, TRANSACTION, Client
from pipeline.transport.kafka.pacing import Pacing
from pipeline.transport.kafka.sender import Place, Sender, all_of

INVALID_TRANSACTION_TIMEOUT = 50


def verdict(produced: Mapping[Place, int], offsets: Mapping[int, int], group: str, source: str) -> CommitError | None:
    """What the errors of a transaction's records and of its offsets, by partition, mean; None: there is none.

    ``group``, ``source``: whose offsets, and of which input. GroupRefused only if nothing else is wrong (X11).
    """
    if forbidden := {code for code in produced.values() if code in wire.NOT_AUTHORIZED}:
        return wire.forbidden(forbidden, topics={name for (name, _), code in produced.items() if code in forbidden})
    if forbidden := {code for code in offsets.values() if code in wire.NOT_AUTHORIZED}:
        if 29 in forbidden:
            return NotAuthorized(f"not authorized: allow Read on the topic {source!r}")
        return wire.forbidden(forbidden, group=group)
    for (topic, partition), code in produced.items():
        if code in wire.NEVER:
            return PartRefused(partition, f"{topic}-{partition} does not take its records: {wire.NEVER[code]}")
    for partition, code in offsets.items():
        if code in wire.NEVER:
            return PartRefused(partition, f"the group does not take partition {partition}'s offset: {wire.NEVER[code]}")
    if produced or any(code not in wire.GROUP_REFUSALS for code in offsets.values()):
        records = ", ".join(f"{topic}-{partition}: {code}" for (topic, partition), code in produced.items())
        return OutcomeUnknown(f"errors of the transaction: records [{records}], offsets {dict(offsets)}")
    if offsets:
        names = sorted({wire.GROUP_REFUSALS[code] for code in offsets.values()})
        return GroupRefused(f"the group refused the membership: {', '.join(names)}")
    return None


class Writer:
    """A lane's writer. ``settle`` before the first ``commit`` and after any failure but GroupRefused (X11)."""

    def __init__(
        self,
        client: Client,
        lane: str,
        input_topic: str,
        topics: tuple[str, str, str],
        pacing: Pacing,
        timeout_ms: int,
        compression: str,
        snapshot_compression: str = "none",
    ) -> None:
        """``topics``: of outputs, dead letters and snapshots. ``pacing`` is told of transactions. ``timeout_ms``: after
        it the broker aborts for us."""
        self.lane = lane
        self._client, self._pacing = client, pacing
        self._input = input_topic
        self._output, self._dead_letters, self._changelog = topics
        self._timeout_ms = timeout_ms
        compressions = {**dict.fromkeys(topics, compression), self._changelog: snapshot_compression}
        self._sender = Sender(client, lane, compressions)
        self._settled = False
        self._added: set[Place] | None = None
        """Partitions in the transaction that is open; None: there is none."""
        self._opened_s = 0.0

    async def settle(self) -> None:
        """InitProducerId: what this lane had open is decided when it returns (X11).

        Raises OutcomeUnknown past the time limit, NotAuthorized, ConfigError for what no repetition helps.
        """
        self._settled, self._added = False, None
        request = InitProducerIdRequest(self.lane, self._timeout_ms)
        try:
            async with asyncio.timeout(self._client.limit_s):
                reply = await self._client.ask(TRANSACTION, self.lane, request, lambda r: {r.error_code})
        except (KafkaError, TimeoutError) as error:
            raise OutcomeUnknown(f"lane {self.lane} cannot be settled yet: {error!r}") from error
        if reply.error_code == INVALID_TRANSACTION_TIMEOUT:
            raise ConfigError(f"transaction_timeout_ms is {self._timeout_ms}: more than the broker allows")
        if reply.error_code in wire.NOT_AUTHORIZED:
            raise wire.forbidden([reply.error_code], lane=self.lane)
        if reply.error_code:
            raise OutcomeUnknown(f"lane {self.lane} cannot be settled yet: InitProducerId answered {reply.error_code}")
        self._sender.begin(reply.producer_id, reply.producer_epoch)
        self._settled = True

    async def open(self, group: str, places: Collection[Place]) -> None:
        """See Transport.open. Raises NotAuthorized, OutcomeUnknown."""
        async with self._unsettled_if_it_fails():
            if self._added is not None and time.monotonic() - self._opened_s > self._timeout_ms / 2000:
                await self._begin_anew()  # before the broker does it for us
            if self._added is None:
                self._pacing.begin()
            try:
                await self._add(group, places)
            except BaseException:
                self._pacing.ending()
                raise

    async def commit(self, membership: Membership, parts: Sequence[Part]) -> dict[int, Written]:
        """See Transport.commit (X3). Raises GroupRefused, PartRefused, NotAuthorized, OutcomeUnknown."""
        if not parts:
            return {}
        async with self._unsettled_if_it_fails():
            with self._pacing.transaction():
                while (written := await self._transaction(membership, parts)) is None:
                    # Its end was never asked for, so once settled nothing of it is visible, and the parts may go
                    # again as they were; whether the partitions are still ours is compared anew (X1).
                    await self._begin_anew()
        return {partition: where for (topic, partition), where in written.items() if topic == self._changelog}

    async def _begin_anew(self) -> None:
        await self.settle()
        self._settled = False

    @asynccontextmanager
    async def _unsettled_if_it_fails(self) -> AsyncIterator[None]:
        """Whatever ends it early, a cancellation included, leaves the lane to be settled; bounded in time."""
        if not self._settled:
            raise OutcomeUnknown(f"lane {self.lane} is not settled")
        self._settled = False
        try:
            async with asyncio.timeout(self._client.limit_s):
                yield
        except TimeoutError:
            raise OutcomeUnknown(f"the transaction had no answer within {self._client.limit_s:g} s") from None
        except KafkaError as error:
            raise OutcomeUnknown(f"the transaction failed: {error!r}") from error
        self._settled = True

    async def _transaction(self, membership: Membership, parts: Sequence[Part]) -> dict[Place, Written] | None:
        """Where its records lie; None: a topic takes only smaller batches, and they will be."""
        contents = self._contents(parts)
        opening = asyncio.ensure_future(self._add(membership.group, [place for place, r in contents if len(r)]))
        try:
            await asyncio.sleep(0)  # the requests are on their way while the batches are built
            built = self._sender.build(contents)
        finally:
            await opening
        sent, offsets = await all_of(self._sender.send(built), self._offsets(membership, parts))
        if self._sender.cut_smaller(sent):
            return None
        self._pacing.ending()
        failure = verdict(
            {place: code for place, (code, _) in sent.refused.items()}, offsets, membership.group, self._input
        )
        who = (self.lane, *self._sender.producer)
        if failure is None:
            await self._ask(EndTxnRequest(*who, True), "EndTxn")
            self._added = None
            written: dict[Place, Written] = sent.written
            return written
        if isinstance(failure, GroupRefused):
            await self._ask(EndTxnRequest(*who, False), "EndTxn")
            self._settled, self._added = True, None
        raise failure

    async def _add(self, group: str, places: Collection[Place]) -> None:
        """The group's offsets and these partitions are in the open transaction afterwards; it may begin with that."""
        known = self._added
        by_topic: defaultdict[str, list[int]] = defaultdict(list)
        for topic, partition in sorted({*places} - (known or set())):
            by_topic[topic].append(partition)
        who = (self.lane, *self._sender.producer)
        adding = []
        if known is None:
            self._opened_s = time.monotonic()
            adding.append(self._ask(AddOffsetsToTxnRequest(*who, group), "AddOffsetsToTxn"))
        if by_topic:
            adding.append(self._ask(wire.AddPartitionsToTxn(*who, list(by_topic.items())), "AddPartitionsToTxn"))
        await all_of(*adding)
        self._added = {*places} | (known or set())

    def _contents(self, parts: Sequence[Part]) -> list[tuple[Place, Records]]:
        """What goes where."""
        return [
            ((topic, part.partition), records)
            for part in parts
            for topic, records in (
                (self._output, part.outputs),
                (self._dead_letters, part.dead_letters),
                (self._changelog, part.snapshots),
            )
        ]

    async def _ask(self, request: Any, name: str) -> None:
        """A request to the transaction's coordinator that must succeed.

        Where no answer comes it is not sent again under this epoch: a copy of it that is late would end, or move the
        offsets of, the next transaction. The new epoch of ``settle`` shuts it out (X11).
        """
        reply = await self._client.ask(TRANSACTION, self.lane, request, _codes, once=True)
        bad = _codes(reply) - {0}
        if forbidden := bad & wire.NOT_AUTHORIZED.keys():
            topics = {t for t, rows in getattr(reply, "errors", ()) for _, code in rows if code in forbidden}
            raise wire.forbidden(forbidden, topics=topics, lane=self.lane)
        if bad:
            raise OutcomeUnknown(f"{name} answered {sorted(bad)}")

    async def _offsets(self, membership: Membership, parts: Sequence[Part]) -> dict[int, int]:
        """TxnOffsetCommit v3 under the membership (X1); the error of each partition that has one."""
        rows: list[Any] = [(part.partition, part.committed, -1, part.metadata, {}) for part in parts]
        request = wire.TxnOffsetCommit(
            self.lane,
            membership.group,
            *self._sender.producer,
            membership.generation,
            membership.member_id,
            membership.instance_id,
            [(self._input, rows, {})],
            {},
        )
        reply = await self._client.ask(
            GROUP,
            membership.group,
            request,
            lambda r: {code for _, ps, _ in r.topics for _, code, _ in ps},
            once=True,
        )
        return {partition: code for _, ps, _ in reply.topics for partition, code, _ in ps if code}


def _codes(reply: Any) -> set[int]:
    """The error numbers of an answer of the transaction's coordinator."""
    if hasattr(reply, "error_code"):
        return {reply.error_code}
    return {code for _, partitions in reply.errors for _, code in partitions}
