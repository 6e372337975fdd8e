"""The lane: one transactional writer a worker, a transaction in one call (X3).

The broker compares the membership at TxnOffsetCommit v3 alone (X1), so every transaction carries offsets. All that may
be sent together is: AddPartitions with AddOffsets, then the records with the offsets, then EndTxn.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any

from aiokafka.errors import KafkaError
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
)

from pipeline.columns import Membership, Part
from pipeline.errors import CommitError, ConfigError, GroupRefused, OutcomeUnknown, PartRefused, UserError
from pipeline.transport.kafka import wire
from pipeline.transport.kafka.client import DISCONNECTED, GROUP, RECONNECT_PAUSE_S, TRANSACTION, Client
from pipeline.transport.kafka.records import BATCH_BYTES, Batch, batches

log = logging.getLogger(__name__)

REQUEST_BYTES = 8_388_608
"""One Produce request; a broker takes 100 MiB by default, but holds it in memory."""
VERIFYING_PAUSE_S = 0.002
INVALID_TRANSACTION_TIMEOUT = 50

Place = tuple[str, int]
"""Topic and partition."""


def verdict(produced: Mapping[Place, int], offsets: Mapping[int, int]) -> CommitError | None:
    """What the errors of a transaction's records and of its offsets, by partition, mean; None: there is none.

    GroupRefused only if nothing else is wrong (X11). Raises UserError for a permission that is missing.
    """
    for code in (*produced.values(), *offsets.values()):
        if code in wire.NOT_AUTHORIZED:
            raise UserError(f"the broker refuses the {wire.NOT_AUTHORIZED[code]} (error {code}): not authorized")
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
        timeout_ms: int,
        compression: str,
    ) -> None:
        """``topics``: of outputs, dead letters and snapshots. ``timeout_ms``: after it the broker aborts for us."""
        self.lane = lane
        self._client = client
        self._input = input_topic
        self._output, self._dead_letters, self._changelog = topics
        self._timeout_ms = timeout_ms
        self._compression = compression
        self._settled = False
        self._producer = (-1, -1)
        self._sequences: defaultdict[Place, int] = defaultdict(int)
        self._batch_bytes: defaultdict[str, int] = defaultdict(lambda: BATCH_BYTES)
        """By topic: a topic's max.message.bytes bounds a batch, and may be far below the broker's default."""

    async def settle(self) -> None:
        """InitProducerId: what this lane had open is decided when it returns (X11).

        Raises OutcomeUnknown past the time limit, ConfigError and UserError for what no repetition helps.
        """
        self._settled = False
        request = InitProducerIdRequest(self.lane, self._timeout_ms)
        try:
            async with asyncio.timeout(self._client.limit_s):
                reply = await self._client.ask(TRANSACTION, self.lane, request, lambda r: {r.error_code})
        except (KafkaError, TimeoutError) as error:
            raise OutcomeUnknown(f"lane {self.lane} cannot be settled yet: {error!r}") from error
        if reply.error_code == INVALID_TRANSACTION_TIMEOUT:
            raise ConfigError(f"transaction_timeout_ms is {self._timeout_ms}: more than the broker allows")
        if reply.error_code in wire.NOT_AUTHORIZED:
            raise UserError(f"not authorized to write with the transactional id {self.lane!r}")
        if reply.error_code:
            raise OutcomeUnknown(f"lane {self.lane} cannot be settled yet: InitProducerId answered {reply.error_code}")
        self._producer = (reply.producer_id, reply.producer_epoch)
        self._sequences.clear()
        self._settled = True

    async def commit(self, membership: Membership, parts: Sequence[Part]) -> None:
        """One transaction of all parts (X3). Raises GroupRefused, PartRefused, OutcomeUnknown, UserError."""
        if not self._settled:
            raise OutcomeUnknown(f"lane {self.lane} is not settled")
        if not parts:
            return
        self._settled = False  # whatever ends this early, a cancellation included, leaves it to be settled
        try:
            async with asyncio.timeout(self._client.limit_s):
                while not await self._transaction(membership, parts):
                    # Its end was never asked for, so once settled nothing of it is visible, and the parts may go again
                    # as they were; whether the partitions are still ours is compared anew (X1).
                    await self.settle()
                    self._settled = False
        except TimeoutError:
            raise OutcomeUnknown(f"the transaction had no answer within {self._client.limit_s:g} s") from None
        except KafkaError as error:
            raise OutcomeUnknown(f"the transaction failed: {error!r}") from error
        self._settled = True

    async def _transaction(self, membership: Membership, parts: Sequence[Part]) -> bool:
        """Whether it took place; False: a topic takes only smaller batches, and they will be."""
        contents = self._contents(parts)
        by_topic: defaultdict[str, list[int]] = defaultdict(list)
        for topic, partition in (place for place, records in contents if len(records)):
            by_topic[topic].append(partition)
        who = (self.lane, *self._producer)
        adding = [self._ask(AddOffsetsToTxnRequest(*who, membership.group), "AddOffsetsToTxn")]
        if by_topic:
            adding.append(self._ask(AddPartitionsToTxnRequest(*who, list(by_topic.items())), "AddPartitionsToTxn"))
        opening = asyncio.ensure_future(_all(*adding))
        try:
            await asyncio.sleep(0)  # the requests are on their way while the batches are built
            built = {
                place: batches(records, self._compression, self._batch_bytes[place[0]]) for place, records in contents
            }
        finally:
            await opening
        refused, offsets = await _all(self._produce(built), self._offsets(membership, parts))
        if self._cut_smaller(refused):
            return False
        failure = verdict({place: code for place, (code, _) in refused.items()}, offsets)
        if failure is None:
            await self._ask(EndTxnRequest(*who, True), "EndTxn")
            return True
        if isinstance(failure, GroupRefused):
            await self._ask(EndTxnRequest(*who, False), "EndTxn")
            self._settled = True
        raise failure

    def _cut_smaller(self, refused: Mapping[Place, tuple[int, Batch]]) -> bool:
        """Halves the batches of topics that found one of several records too large: no record of it need be."""
        topics = {t for (t, _), (code, batch) in refused.items() if code == wire.MESSAGE_TOO_LARGE and batch.count > 1}
        for topic in topics:
            self._batch_bytes[topic] //= 2
            log.info("topic %s refuses a batch as too large, now at most %d bytes", topic, self._batch_bytes[topic])
        return bool(topics)

    def _contents(self, parts: Sequence[Part]) -> list[tuple[Place, Any]]:
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
        """A request to the transaction's coordinator that must succeed."""
        bad = _codes(await self._client.ask(TRANSACTION, self.lane, request, _codes)) - {0}
        if bad & wire.NOT_AUTHORIZED.keys():
            raise UserError(f"{name}: not authorized ({', '.join(wire.NOT_AUTHORIZED.get(c, str(c)) for c in bad)})")
        if bad:
            raise OutcomeUnknown(f"{name} answered {sorted(bad)}")

    async def _offsets(self, membership: Membership, parts: Sequence[Part]) -> dict[int, int]:
        """TxnOffsetCommit v3 under the membership (X1); the error of each partition that has one."""
        rows: list[Any] = [(part.partition, part.committed, -1, part.metadata, {}) for part in parts]
        request = wire.TxnOffsetCommit(
            self.lane,
            membership.group,
            *self._producer,
            membership.generation,
            membership.member_id,
            membership.instance_id,
            [(self._input, rows, {})],
            {},
        )
        reply = await self._client.ask(
            GROUP, membership.group, request, lambda r: {code for _, ps, _ in r.topics for _, code, _ in ps}
        )
        return {partition: code for _, ps, _ in reply.topics for partition, code, _ in ps if code}

    async def _produce(self, built: Mapping[Place, list[Batch]]) -> dict[Place, tuple[int, Batch]]:
        """Sends everything; what was refused, and why. A place's batches go one after the other."""
        refused: dict[Place, tuple[int, Batch]] = {}
        for i in range(max(map(len, built.values()), default=0)):
            turn: dict[Place, bytes] = {}
            for place, of_place in built.items():
                if i < len(of_place) and place not in refused:
                    turn[place] = of_place[i].signed(*self._producer, self._sequences[place])
                    # Counted when sent: after any failure the sequences begin anew with a new epoch.
                    self._sequences[place] += of_place[i].count
            for failed in await _all(*(self._send(request) for request in _requests(turn))):
                refused |= {place: (code, built[place][i]) for place, code in failed.items()}
        return refused

    async def _send(self, turn: dict[Place, bytes]) -> dict[Place, int]:
        """One batch for each of some partitions, sent until each is answered for good; a repeat has its sequence."""
        errors: dict[Place, int] = {}
        while turn:
            by_leader: defaultdict[int, list[Place]] = defaultdict(list)
            for place in turn:
                by_leader[await self._client.find_leader(*place)].append(place)
            replies = await _all(*(self._ask_leader(node, places, turn) for node, places in by_leader.items()))
            answers = {place: code for reply in replies for place, code in reply.items()}
            again = {place for place, code in answers.items() if code is None or code in wire.LEADER_RETRY}
            errors |= {p: c for p, c in answers.items() if c and p not in again and c != wire.DUPLICATE_SEQUENCE}
            turn = {place: turn[place] for place in again}
            codes = {answers[place] for place in again}
            if codes & {*wire.LEADER_MOVED, None}:
                await asyncio.gather(self._client.force_metadata_update(), asyncio.sleep(RECONNECT_PAUSE_S))
            elif codes:
                # Until the broker has verified that the partition is in the transaction it answers FEW_REPLICAS.
                await asyncio.sleep(VERIFYING_PAUSE_S)
        return errors

    async def _ask_leader(self, node: int, places: list[Place], turn: dict[Place, bytes]) -> dict[Place, int | None]:
        """The error number of each place; None where no answer came."""
        by_topic: defaultdict[str, list[tuple[int, bytes]]] = defaultdict(list)
        for topic, partition in places:
            by_topic[topic].append((partition, turn[topic, partition]))
        timeout_ms = int(self._client.limit_s * 1000)
        request = wire.Produce(self.lane, -1, timeout_ms, list(by_topic.items()))
        try:
            reply = await self._client.send(node, request)
        except DISCONNECTED as error:
            log.info("produce to node %d: %r, sending again", node, error)
            return dict.fromkeys(places)
        return {(topic, fields[0]): fields[1] for topic, partitions in reply.topics for fields in partitions}


def _requests(turn: dict[Place, bytes]) -> Iterator[dict[Place, bytes]]:
    """Cuts a turn into requests of bounded size."""
    request: dict[Place, bytes] = {}
    size = 0
    for place, batch in turn.items():
        if request and size + len(batch) > REQUEST_BYTES:
            yield request
            request, size = {}, 0
        request[place] = batch
        size += len(batch)
    if request:
        yield request


def _codes(reply: Any) -> set[int]:
    """The error numbers of an answer of the transaction's coordinator."""
    if hasattr(reply, "error_code"):
        return {reply.error_code}
    return {code for _, partitions in reply.errors for _, code in partitions}


async def _all(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """All results. If one fails the others are still waited for: what is on the wire must be answered or lost."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
