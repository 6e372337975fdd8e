"""What of a transaction had no answer is not sent again in its epoch: a late copy would reach the next one (X11)."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from aiokafka.errors import RequestTimedOutError
from aiokafka.protocol.transaction import AddOffsetsToTxnRequest, EndTxnRequest, InitProducerIdRequest

from pipeline.columns import Membership, Part, Records
from pipeline.errors import OutcomeUnknown
from pipeline.transport.kafka import wire
from pipeline.transport.kafka.client import Client
from pipeline.transport.kafka.pacing import Pacing
from pipeline.transport.kafka.writer import Writer


class Silent(Client):
    """A cluster of one that takes everything, and does not answer requests of one kind."""

    def __init__(self, kind: type) -> None:
        super().__init__("127.0.0.1:1", "c", 500)
        self._kind = kind
        self.sent: Counter[type] = Counter()

    async def coordinator(self, kind: Any, key: str) -> int:
        return 1

    async def send(self, node_id: Any, request: Any, *, group: Any = None) -> Any:
        self.sent[type(request)] += 1
        if type(request) is self._kind:
            raise RequestTimedOutError
        if isinstance(request, wire.TxnOffsetCommit):
            return SimpleNamespace(topics=[("in", [(0, 0, {})], {})])
        return SimpleNamespace(error_code=0, errors=[], producer_id=1, producer_epoch=0)


@pytest.mark.parametrize("kind", [AddOffsetsToTxnRequest, wire.AddPartitionsToTxn, wire.TxnOffsetCommit, EndTxnRequest])
async def test_a_request_of_a_transaction_that_had_no_answer_is_not_sent_again(kind):
    client = Silent(kind)
    writer = Writer(client, "lane", "in", ("out", "in.dlq", "changelog"), Pacing(), 1000, "none")
    await writer.settle()
    # Only a transaction that writes records adds partitions; one that writes none needs no leader.
    outputs = Records.none()
    if kind is wire.AddPartitionsToTxn:
        outputs = Records([b"k"], [b"v"], np.zeros(1, np.int64))
    with pytest.raises(OutcomeUnknown):
        await writer.commit(Membership("g", 1, "m"), [Part(0, b"t" * 16, 1, "", outputs)])
    assert client.sent[kind] == 1


async def test_a_transaction_that_is_open_is_added_only_what_it_lacks(monkeypatch):
    client = Silent(int)
    writer = Writer(client, "lane", "in", ("out", "in.dlq", "changelog"), Pacing(), 60_000, "none")
    await writer.settle()

    def asked() -> tuple[int, int]:
        return client.sent[AddOffsetsToTxnRequest], client.sent[wire.AddPartitionsToTxn]

    for _ in range(2):
        await writer.open("g", [("out", 0), ("out", 1)])
        assert asked() == (1, 1)
    await writer.open("g", [("out", 1), ("changelog", 1)])
    assert asked() == (1, 2)
    parts = [Part(p, b"t" * 16, 1, "", dead_letters=Records.none()) for p in (0, 1)]
    await writer.commit(Membership("g", 1, "m"), parts)
    assert asked() == (1, 2)
    assert client.sent[EndTxnRequest] == 1
    await writer.commit(Membership("g", 1, "m"), parts)
    assert asked() == (2, 2), "nothing of the last one is in the next"
    # The broker ends what is open for too long: before it does, it is begun anew.
    await writer.open("g", [("out", 0)])
    assert (asked(), client.sent[InitProducerIdRequest]) == ((3, 3), 1)
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 31)
    await writer.open("g", [("out", 0)])
    assert (asked(), client.sent[InitProducerIdRequest]) == ((4, 4), 2)


async def test_a_transaction_that_is_open_holds_no_fetch_back_anew():
    """In a replay nothing is shown, and each run that is back opens what is open already."""
    pacing = Pacing()
    pacing.unhurried = True
    writer = Writer(Silent(int), "lane", "in", ("out", "in.dlq", "changelog"), pacing, 60_000, "none")
    await writer.settle()
    for _ in range(3):
        await writer.open("g", [("out", 0)])
        turn = asyncio.ensure_future(pacing.turn())
        for _ in range(10):
            await asyncio.sleep(0)
        waited = not turn.done()
        await turn
    assert not waited


async def test_the_writer_is_settled_by_asking_until_there_is_an_answer():
    client = Silent(InitProducerIdRequest)
    writer = Writer(client, "lane", "in", ("out", "in.dlq", "changelog"), Pacing(), 1000, "none")
    with pytest.raises(OutcomeUnknown):
        await writer.settle()
    assert client.sent[InitProducerIdRequest] > 1
