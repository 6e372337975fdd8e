"""The topics a worker stands between: what must exist before anything runs, and what it makes itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Set
from typing import Any

from aiokafka.errors import for_code
from aiokafka.protocol.admin import CreateTopicsRequest, DescribeConfigsRequest

from pipeline.config import Config
from pipeline.errors import TopicError
from pipeline.transport.kafka import wire
from pipeline.transport.kafka.client import DISCONNECTED, RECONNECT_PAUSE_S, Client

TOPIC = 2
"""A kind of resource, for DescribeConfigs."""
JUST_MADE_S = 1.0
"""A broker answers that a topic is made before all brokers' metadata show it."""

CHANGELOG = {
    "cleanup.policy": "compact",
    # Only closed segments are compacted, and a restore reads what is not: else gigabytes of what is overwritten.
    "segment.bytes": str(16 * 1_048_576),
    "segment.ms": str(10 * 60 * 1000),
    "min.cleanable.dirty.ratio": "0.1",
    "max.compaction.lag.ms": str(20 * 60 * 1000),
    # A row is one record; a broker's default of 1 MiB would cap the state of a model.
    "max.message.bytes": str(16 * 1_048_576),
}
"""Settings of a changelog that we make; delete.retention.ms stays the broker's (a day)."""


async def check_topics(client: Client, config: Config) -> int:
    """The input's number of partitions, after output, changelog and dead letters were found or made to have as many.

    Raises TopicError. Raises TimeoutError, KafkaError where the cluster does not answer.
    """
    there = await _look_for(client, {config.input, config.output})
    for role, name in (("input", config.input), ("output", config.output)):
        if name not in there:
            known = ", ".join(sorted(topic for topic in there if not topic.startswith("__"))[:8]) or "none"
            raise TopicError(
                f"{role} topic {name!r} does not exist (there are: {known}); make it with"
                f" `{_create(config, there.get(config.input, 4))}`"
            )
    count = there[config.input]
    if there[config.output] != count:
        raise TopicError(
            f"input {config.input!r} has {count} partitions and output {config.output!r} has {there[config.output]}:"
            f" they must have as many; make another output with `{_create(config, count, output='NAME')}`"
        )
    ours: dict[str, Mapping[str, str]] = {config.changelog: CHANGELOG, config.dead_letters: {}}
    missing = {name: settings for name, settings in ours.items() if name not in there}
    if missing:
        await make_topics(client, missing, count, config.replication_factor)
        there = await wait_for(client, missing)
    for name in ours:
        if there[name] != count:
            raise TopicError(
                f"topic {name!r} has {there[name]} partitions and input {config.input!r} has {count}:"
                " they must have as many; was the input's number changed, or the topic made by hand?"
            )
    return count


def _create(config: Config, partitions: int, output: str = "") -> str:
    return f"eddy topics create --input {config.input} --output {output or config.output} --partitions {partitions}"


async def partitions_of(client: Client) -> dict[str, int]:
    """All topics with their partitions. Asking for one by name would make it, where brokers create them on demand."""
    cluster = await client.fetch_all_metadata()
    return {
        topic: len(cluster.partitions_for_topic(topic) or ()) for topic in cluster.topics(exclude_internal_topics=False)
    }


async def _look_for(client: Client, wanted: Set[str]) -> dict[str, int]:
    """All topics with their partitions; a moment is given to ``wanted`` ones that were made just before."""
    loop = asyncio.get_running_loop()
    end = loop.time() + JUST_MADE_S
    while True:
        there = await partitions_of(client)
        if wanted <= there.keys() or loop.time() > end:
            return there
        await asyncio.sleep(RECONNECT_PAUSE_S)


async def make_topics(
    client: Client, topics: Mapping[str, Mapping[str, str]], partitions: int, replication: int
) -> None:
    """Another worker may make them at the same moment. Raises TopicError with the broker's reason."""
    asked: list[Any] = [
        (name, partitions, replication, [], list(settings.items())) for name, settings in topics.items()
    ]
    request = CreateTopicsRequest(asked, int(client.limit_s * 1000), False)
    try:
        reply = await client.ask_any(request)
    except DISCONNECTED as error:
        raise TopicError(f"cannot make {', '.join(topics)}: no answer ({error!r})") from error
    for name, code, message in reply.topic_errors:
        if code not in (0, wire.TOPIC_ALREADY_EXISTS):
            raise TopicError(f"cannot make topic {name!r}: {message or for_code(code).__name__}")


async def wait_for(client: Client, topics: Mapping[str, Any]) -> dict[str, int]:
    """All topics with their partitions, once those just made are known."""
    while True:
        there = await partitions_of(client)
        if all(there.get(topic) for topic in topics):
            return there
        await asyncio.sleep(RECONNECT_PAUSE_S)


async def setting_of(client: Client, topic: str, name: str) -> str | None:
    """One of a topic's settings; None where the broker does not tell it (not allowed). The caller bounds the time.

    Raises KafkaError."""
    reply = await client.send(client.get_random_node(), DescribeConfigsRequest([(TOPIC, topic, [name])]))
    code, _, _, _, entries = reply.resources[0]
    return next((value for found, value, *_ in entries if found == name), None) if not code else None


async def know_leaders(client: Client, topics: list[str], partitions: int) -> None:
    """Returns when every partition has a leader. The caller bounds the time. Raises KafkaError."""
    await client.set_topics(topics)
    for topic in topics:
        for partition in range(partitions):
            await client.find_leader(topic, partition)
