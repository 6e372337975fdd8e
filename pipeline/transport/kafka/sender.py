"""Record batches to the leaders of their partitions, under one producer's id and sequences."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.columns import Records
from pipeline.transport.base import Written
from pipeline.transport.kafka import wire
from pipeline.transport.kafka.client import DISCONNECTED, RECONNECT_PAUSE_S, Client
from pipeline.transport.kafka.records import BATCH_BYTES, Batch, batches

log = logging.getLogger(__name__)

REQUEST_BYTES = 8_388_608
"""One Produce request; a broker takes 100 MiB by default, but holds it in memory."""
VERIFYING_PAUSE_S = 0.002

Place = tuple[str, int]
"""Topic and partition."""


@dataclass(slots=True)
class Sent:
    """What became of some batches."""

    refused: dict[Place, tuple[int, Batch]] = field(default_factory=dict)
    """The error number of each place that took one no more, and which it was; later ones were not sent to it."""
    written: dict[Place, Written] = field(default_factory=dict)
    """Where they lie, as far as the leaders told of one stretch without gaps."""
    _gaps: set[Place] = field(default_factory=set)

    def answered(self, place: Place, batch: Batch, first: int | None) -> None:
        """A batch is in the log from offset ``first`` on; None: it was sent again, and only its arrival is known."""
        before = self.written.get(place)
        if first is None or first < 0 or place in self._gaps or (before is not None and before.next != first):
            self._gaps.add(place)
            self.written.pop(place, None)
        else:
            self.written[place] = Written(first if before is None else before.first, first + batch.count)


class Sender:
    """One idempotent producer; ``begin`` with a fresh epoch before the first ``send`` and after any failure."""

    def __init__(self, client: Client, transactional_id: str | None, compression: Mapping[str, str]) -> None:
        """``transactional_id`` None: what is sent belongs to no transaction. ``compression``: by topic."""
        self.transactional_id = transactional_id
        self.producer = (-1, -1)
        self._client = client
        self._compression = compression
        self._sequences: defaultdict[Place, int] = defaultdict(int)
        self._batch_bytes: defaultdict[str, int] = defaultdict(lambda: BATCH_BYTES)
        """By topic: a topic's max.message.bytes bounds a batch, and may be far below the broker's default."""

    def begin(self, producer_id: int, epoch: int) -> None:
        """What an InitProducerId answered."""
        self.producer = (producer_id, epoch)
        self._sequences.clear()

    def build(self, contents: Sequence[tuple[Place, Records]]) -> dict[Place, list[Batch]]:
        """Records as batches, as large as their topics take them."""
        return {
            place: batches(records, self._compression[place[0]], self._batch_bytes[place[0]])
            for place, records in contents
        }

    async def send(self, built: Mapping[Place, list[Batch]]) -> Sent:
        """Sends everything. A place's batches go one after the other. The caller bounds the time; raises KafkaError."""
        sent = Sent()
        for i in range(max(map(len, built.values()), default=0)):
            turn: dict[Place, bytes] = {}
            for place, of_place in built.items():
                if i < len(of_place) and place not in sent.refused:
                    transactional = self.transactional_id is not None
                    turn[place] = of_place[i].signed(*self.producer, self._sequences[place], transactional)
                    # Counted when sent: after any failure the sequences begin anew with a new epoch.
                    self._sequences[place] += of_place[i].count
            for answers in await all_of(*(self._send(request) for request in _requests(turn))):
                for place, (code, first) in answers.items():
                    if code:
                        sent.refused[place] = code, built[place][i]
                    else:
                        sent.answered(place, built[place][i], first)
        return sent

    def cut_smaller(self, sent: Sent) -> bool:
        """Halves the batches of topics that found one of several records too large: no record of it need be."""
        too_large = ((t, batch) for (t, _), (code, batch) in sent.refused.items() if code == wire.MESSAGE_TOO_LARGE)
        topics = {topic for topic, batch in too_large if batch.count > 1}
        for topic in topics:
            self._batch_bytes[topic] //= 2
            log.info("topic %s refuses a batch as too large, now at most %d bytes", topic, self._batch_bytes[topic])
        return bool(topics)

    async def _send(self, turn: dict[Place, bytes]) -> dict[Place, tuple[int, int | None]]:
        """One batch for each of some partitions, sent until each is answered for good; a repeat has its sequence.

        Of each place: the error number, 0 where it is written, and at which offset, None where that was not told.
        """
        done: dict[Place, tuple[int, int | None]] = {}
        while turn:
            by_leader: defaultdict[int, list[Place]] = defaultdict(list)
            for place in turn:
                by_leader[await self._client.find_leader(*place)].append(place)
            replies = await all_of(*(self._ask_leader(node, places, turn) for node, places in by_leader.items()))
            answers = {place: answer for reply in replies for place, answer in reply.items()}
            again = {place for place, (code, _) in answers.items() if code is None or code in wire.LEADER_RETRY}
            for place, (code, first) in answers.items():
                if code == wire.DUPLICATE_SEQUENCE:
                    done[place] = 0, None
                elif code is not None and place not in again:
                    done[place] = code, first
            turn = {place: turn[place] for place in again}
            codes = {answers[place][0] for place in again}
            if codes & {*wire.LEADER_MOVED, None}:
                await asyncio.gather(self._client.force_metadata_update(), asyncio.sleep(RECONNECT_PAUSE_S))
            elif codes:
                # Until the broker has verified that the partition is in the transaction it answers FEW_REPLICAS.
                await asyncio.sleep(VERIFYING_PAUSE_S)
        return done

    async def _ask_leader(
        self, node: int, places: list[Place], turn: dict[Place, bytes]
    ) -> dict[Place, tuple[int | None, int]]:
        """The error number of each place, and its batch's first offset; None where no answer came."""
        by_topic: defaultdict[str, list[tuple[int, bytes]]] = defaultdict(list)
        for topic, partition in places:
            by_topic[topic].append((partition, turn[topic, partition]))
        timeout_ms = int(self._client.limit_s * 1000)
        request = wire.Produce(self.transactional_id, -1, timeout_ms, list(by_topic.items()))
        try:
            reply = await self._client.send(node, request)
        except DISCONNECTED as error:
            log.info("produce to node %d: %r, sending again", node, error)
            return dict.fromkeys(places, (None, -1))
        return {(topic, fields[0]): (fields[1], fields[2]) for topic, rows in reply.topics for fields in rows}


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


async def all_of(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """All results. If one fails the others are still waited for: what is on the wire must be answered or lost."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
