"""What the tools ask of a cluster: is it there, which topics has it, make some."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from pipeline.errors import TopicError
from pipeline.transport.kafka.client import Client
from pipeline.transport.kafka.topics import make_topics, partitions_of, wait_for

REQUEST_TIMEOUT_MS = 10_000


@asynccontextmanager
async def connected(bootstrap_servers: str) -> AsyncIterator[Client]:
    """A connection for questions. Raises Unreachable, within about ten seconds."""
    # A command's one line says what went wrong; aiokafka's log of every try would bury it.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    client = Client(bootstrap_servers, "eddy-tool", REQUEST_TIMEOUT_MS)
    await client.connect()
    try:
        yield client
    finally:
        await client.shut()


async def need_topic(bootstrap_servers: str, name: str) -> int:
    """Its number of partitions. Raises TopicError if it does not exist, Unreachable."""
    async with connected(bootstrap_servers) as client:
        return (await topics_with(client, name))[name]


async def topics_with(client: Client, name: str) -> dict[str, int]:
    """All topics with their partitions, ``name`` among them. Raises TopicError."""
    there = await partitions_of(client)
    if name not in there:
        known = ", ".join(sorted(t for t in there if not t.startswith("__"))[:8]) or "none"
        raise TopicError(
            f"no topic {name!r} at {client.servers} (there are: {known}); make it with `eddy topics create`"
        )
    return there


async def ensure_topics(client: Client, names: Sequence[str], partitions: int, replication_factor: int) -> set[str]:
    """Those that were made now; all exist when it returns. Raises TopicError, before any is made, if one that is there
    has another number of partitions."""
    there = await partitions_of(client)
    for name in names:
        if there.get(name, partitions) != partitions:
            raise TopicError(
                f"topic {name!r} has {there[name]} partitions, not {partitions}: input, output and dead letters need"
                f" as many each; give --partitions {there[name]}, or another name"
            )
    missing: dict[str, dict[str, str]] = {name: {} for name in names if name not in there}
    if missing:
        await make_topics(client, missing, partitions, replication_factor)
        await wait_for(client, missing)
    return set(missing)
