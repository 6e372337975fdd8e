"""What the tools ask of a cluster: is it there, which topics has it, make some. (The worker has its transport.)"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, KafkaError, for_code

from pipeline.errors import TopicError, Unreachable

REQUEST_TIMEOUT_MS = 10_000
ALREADY_EXISTS = 36


@dataclass(frozen=True, slots=True)
class Topic:
    name: str
    partitions: int


def unreachable(bootstrap_servers: str) -> Unreachable:
    return Unreachable(
        f"no broker answers at {bootstrap_servers}: check --bootstrap-servers, or start one with `eddy broker start`"
    )


@asynccontextmanager
async def connected(bootstrap_servers: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """An administrator's connection. Raises Unreachable, within about ten seconds."""
    quiet()
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        await client.start()
    except (KafkaConnectionError, OSError, ValueError, RuntimeError):
        await client.close()
        raise unreachable(bootstrap_servers) from None
    try:
        yield client
    finally:
        await client.close()


def quiet() -> None:
    """A command's one line says what went wrong; aiokafka's log of every try would bury it."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


async def find_topics(client: AIOKafkaAdminClient) -> dict[str, Topic]:
    """All topics by name. (Asking for one by name would make it, where the broker creates topics on demand.)"""
    described = await client.describe_topics()
    return {t["topic"]: Topic(t["topic"], len(t["partitions"])) for t in described if not t["error_code"]}


async def need_topic(bootstrap_servers: str, name: str) -> Topic:
    """Raises TopicError if it does not exist, Unreachable."""
    async with connected(bootstrap_servers) as client:
        topics = await find_topics(client)
    if name not in topics:
        known = ", ".join(sorted(t for t in topics if not t.startswith("__"))[:8]) or "none"
        raise TopicError(
            f"no topic {name!r} at {bootstrap_servers} (there are: {known}); make it with `eddy topics create`"
        )
    return topics[name]


async def make_topic(client: AIOKafkaAdminClient, name: str, partitions: int, replication_factor: int) -> bool:
    """Whether it was made now (False: it exists already). Raises TopicError with the broker's reason."""
    try:
        answer: Any = await client.create_topics([NewTopic(name, partitions, replication_factor)])
    except KafkaError as error:
        raise TopicError(f"cannot make topic {name!r}: {error}") from None
    for _, code, *message in answer.topic_errors:
        if code == ALREADY_EXISTS:
            return False
        if code:
            detail = next((m for m in message if m), for_code(code).__name__)
            raise TopicError(f"cannot make topic {name!r}: {detail}")
    return True
