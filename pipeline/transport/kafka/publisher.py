"""Outputs ahead of their part, in no transaction: at least once (X13)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiokafka.errors import KafkaError
from aiokafka.protocol.transaction import InitProducerIdRequest

from pipeline.columns import Part
from pipeline.errors import OutcomeUnknown, PartRefused
from pipeline.transport.kafka import wire
from pipeline.transport.kafka.client import RECONNECT_PAUSE_S, Client
from pipeline.transport.kafka.sender import Sender, Sent


class Publisher:
    """An idempotent producer without transactions: within one call nothing is repeated, however often it is sent."""

    def __init__(self, client: Client, topic: str, compression: str) -> None:
        self._client = client
        self._topic = topic
        self._sender = Sender(client, None, {topic: compression})
        self._begun = False

    async def publish(self, parts: Sequence[Part]) -> None:
        """See Transport.publish. Raises PartRefused, NotAuthorized, OutcomeUnknown."""
        left = [((self._topic, part.partition), part.outputs) for part in parts if len(part.outputs)]
        try:
            async with asyncio.timeout(self._client.limit_s):
                while left:
                    if not self._begun:
                        await self._begin()
                    self._begun = False  # an error or a cancellation leaves sequences of which nobody knows
                    sent = await self._sender.send(self._sender.build(left))
                    self._begun = not sent.refused
                    if sent.refused and not self._sender.cut_smaller(sent):
                        raise _failure(sent)
                    left = [(place, records) for place, records in left if place in sent.refused]
        except TimeoutError:
            raise OutcomeUnknown(f"{self._topic} had no answer within {self._client.limit_s:g} s") from None
        except KafkaError as error:
            raise OutcomeUnknown(f"{self._topic} cannot be written: {error!r}") from error

    async def _begin(self) -> None:
        no_id: Any = None  # typed as if there were only transactional producers
        while True:
            request = InitProducerIdRequest(no_id, int(self._client.limit_s * 1000))
            reply = await self._client.ask_any(request)
            if reply.error_code not in wire.COORDINATOR_RETRY:
                break
            await asyncio.sleep(RECONNECT_PAUSE_S)
        if reply.error_code in wire.NOT_AUTHORIZED:
            raise wire.forbidden([reply.error_code])
        if reply.error_code:
            raise OutcomeUnknown(f"{self._topic} cannot be written yet: InitProducerId answered {reply.error_code}")
        self._sender.begin(reply.producer_id, reply.producer_epoch)
        self._begun = True


def _failure(sent: Sent) -> Exception:
    for (topic, partition), (code, _) in sent.refused.items():
        if code in wire.NOT_AUTHORIZED:
            return wire.forbidden([code], topics=[topic])
        if code in wire.NEVER:
            return PartRefused(partition, f"{topic}-{partition} does not take its records: {wire.NEVER[code]}")
    codes = {partition: code for (_, partition), (code, _) in sent.refused.items()}
    return OutcomeUnknown(f"outputs are not all acknowledged, errors by partition: {codes}")
