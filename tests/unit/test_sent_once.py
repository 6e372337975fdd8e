"""What of a transaction had no answer is not sent again in its epoch: a late copy would reach the next one (X11)."""

from __future__ import annotations

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


async def test_the_writer_is_settled_by_asking_until_there_is_an_answer():
    client = Silent(InitProducerIdRequest)
    writer = Writer(client, "lane", "in", ("out", "in.dlq", "changelog"), Pacing(), 1000, "none")
    with pytest.raises(OutcomeUnknown):
        await writer.settle()
    assert client.sent[InitProducerIdRequest] > 1
