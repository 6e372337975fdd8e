"""Topics that are deleted, or deleted and made anew, under a running worker: what it holds is of logs that are gone.

By name alone a new topic looks like the old one, and a fetch that goes on where it was would pass over its records. So
the topics' ids are asked for again and again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from uuid import UUID

from aiokafka.errors import IncompatibleBrokerVersion, KafkaError

from pipeline.errors import TopicError
from pipeline.transport.kafka import wire
from pipeline.transport.kafka.client import Client
from pipeline.transport.kafka.inquiries import NO_ID, TopicIds

log = logging.getLogger(__name__)

LOOK_S, SURE_S = 5.0, 1.0
"""Between two looks; and between those that find a topic gone, of which there are two: a broker that has just started
may not know all of them yet."""

NEXT_STEPS = {
    "input": "its offsets are gone with it, and states that the changelog still holds are of the old one: delete the"
    " changelog too, to begin from nothing",
    "output": "results from before are gone with it; see that it is there with as many partitions, and start again",
    "dead letters": "start again, and it is made where it is missing",
    "changelog": "the streams' states are gone with it; to compute them anew, give another --group",
}


class TopicWatch:
    """``begin`` once the topics are there, ``stop`` once."""

    def __init__(self, client: Client, topics: Mapping[str, str], lost: Callable[[TopicError], None]) -> None:
        """``topics``: by role. ``lost``: told once, after which nobody looks any more."""
        self._client, self._topics, self._lost = client, topics, lost
        self._ids: dict[str, UUID] = {}
        self._task: asyncio.Task[None] | None = None

    def id_of(self, role: str) -> bytes:
        """The id of a topic as it was at the beginning, 16 bytes; zeros where the broker has none (before 2.8)."""
        return self._ids.get(self._topics[role], NO_ID).bytes

    async def begin(self) -> None:
        """The caller bounds the time. Raises KafkaError."""
        try:
            self._ids = await self._look()
        except (NotImplementedError, IncompatibleBrokerVersion):
            log.info("the broker has no topic ids: that a topic is made anew goes unnoticed")
            return
        self._task = asyncio.create_task(self._watch(), name="topic-watch")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _look(self) -> dict[str, UUID]:
        """The ids of the topics that are there."""
        reply = await self._client.ask_any(TopicIds(self._topics.values()))
        unknown = {row[1] for row in reply.topics if row[0] == wire.UNKNOWN_TOPIC}
        # Any other error, a missing permission say, tells nothing of whether the topic is another one.
        told = {row[1]: row[2] for row in reply.topics if not row[0]}
        return {topic: told.get(topic, NO_ID) for topic in self._topics.values() if topic not in unknown}

    async def _watch(self) -> None:
        missing: set[str] = set()
        while True:
            await asyncio.sleep(SURE_S if missing else LOOK_S)
            try:
                async with asyncio.timeout(self._client.limit_s):
                    there = await self._look()
            except (KafkaError, TimeoutError) as error:
                log.info("the topics' ids cannot be asked for: %r", error)
                continue
            gone = {topic for topic in self._topics.values() if topic not in there}
            for role, topic in self._topics.items():
                found = there.get(topic, NO_ID)
                if topic in gone & missing:
                    self._say(role, "was deleted")
                    return
                if NO_ID != found != self._ids.get(topic, NO_ID) != NO_ID:
                    self._say(role, "was deleted and made anew")
                    return
            missing = gone

    def _say(self, role: str, what: str) -> None:
        self._lost(TopicError(f"{role} topic {self._topics[role]!r} {what} while it was in use: {NEXT_STEPS[role]}"))
