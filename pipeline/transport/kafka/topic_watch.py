"""Topics that are deleted, or deleted and made anew, under a running worker: what it holds is of logs that are gone.

By name alone a new topic looks like the old one, and a fetch that goes on where it was would pass over its records. So
the topics' ids are asked for again and again, and at once where a fetch has failed: until they are the same, nothing of
what is fetched is given away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from uuid import UUID

from aiokafka.errors import IncompatibleBrokerVersion, KafkaError

from pipeline.errors import OutcomeUnknown, TopicError
from pipeline.transport.kafka import wire
from pipeline.transport.kafka.client import Client
from pipeline.transport.kafka.inquiries import NO_ID, TopicIds

log = logging.getLogger(__name__)

TICK_S, STILL_S = 0.2, 0.5
"""A process that has not run for so long may have missed anything."""
LOOK_S, SURE_S, RETRY_S = 5.0, 1.0, 0.1
"""Between two looks; between those that find a topic gone, of which there are two: a broker that has just started may
not know all of them yet; and between those in doubt that have no answer."""

NEXT_STEPS = {
    "input": "its offsets are gone with it, and states that the changelog still holds are of the old one: delete the"
    " changelog too, to begin from nothing",
    "output": "results from before are gone with it; see that it is there with as many partitions, and start again",
    "dead letters": "start again, and it is made where it is missing",
    "changelog": "the streams' states are gone with it; to compute them anew, give another --group",
}


class Doubt:
    """Whether a topic may be another one by now: since a fetch met an error, or since this process stood still."""

    def __init__(self) -> None:
        self.raised = asyncio.Event()
        self.settled: Callable[[], None] = lambda: None
        """Called when there is none any more."""
        self._raised_s = 0.0
        self._ticked_s: float | None = None
        """None: nobody looks, and there is nothing to wait for."""

    def __bool__(self) -> bool:
        self._look_at_the_clock()
        return self.raised.is_set()

    async def watch_the_clock(self) -> None:
        """For as long as somebody asks for the ids."""
        self._ticked_s = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            self._look_at_the_clock()
            self._ticked_s = time.monotonic()

    def _look_at_the_clock(self) -> None:
        now_s = time.monotonic()
        if self._ticked_s is not None and now_s - self._ticked_s > STILL_S:
            self._ticked_s = now_s
            self.rise()

    def rise(self) -> None:
        if self._ticked_s is not None:
            self._raised_s = time.monotonic()
            self.raised.set()

    def settle(self, asked_s: float) -> None:
        """The topics were those of the beginning at ``asked_s`` (monotonic seconds), or later."""
        if self._raised_s <= asked_s:
            self.raised.clear()
            self.settled()


class TopicWatch:
    """``begin`` once the topics are there, ``stop`` once."""

    def __init__(
        self, client: Client, topics: Mapping[str, str], doubt: Doubt, lost: Callable[[TopicError], None]
    ) -> None:
        """``topics``: by role. ``lost``: told once, after which nobody looks any more."""
        self._client, self._topics, self._doubt, self._lost = client, topics, doubt, lost
        self._ids: dict[str, UUID] = {}
        """As they were at the beginning; none where the broker has none."""
        self._looking = asyncio.Lock()
        self._found: dict[str, UUID] = {}
        self._found_s = 0.0
        """When it was asked for."""
        self._tasks: list[asyncio.Task[None]] = []

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
        self._tasks = [
            asyncio.create_task(self._doubt.watch_the_clock(), name="clock"),
            asyncio.create_task(self._watch(), name="topic-watch"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def ids_now(self) -> Callable[[str], bytes]:
        """Gives the id of each role as it is when this is asked. Who asks together is served by one request. Raises
        OutcomeUnknown where one is missing, KafkaError; the caller bounds the time."""
        asked_s = time.monotonic()
        async with self._looking:
            if self._found_s < asked_s:
                began_s = time.monotonic()
                self._found, self._found_s = (await self._look() if self._ids else {}), began_s
            found = self._found
        if missing := sorted(self._ids.keys() - found.keys()):
            raise OutcomeUnknown(f"there is no topic {missing[0]!r}")
        return lambda role: found.get(self._topics[role], NO_ID).bytes

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
            if missing:
                await asyncio.sleep(SURE_S)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._doubt.raised.wait()
            asked_s = time.monotonic()
            try:
                async with asyncio.timeout(self._client.limit_s):
                    there = await self._look()
            except (KafkaError, TimeoutError) as error:
                log.info("the topics' ids cannot be asked for: %r", error)
                await asyncio.sleep(RETRY_S)
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
            if not missing:
                self._doubt.settle(asked_s)

    def _say(self, role: str, what: str) -> None:
        self._lost(TopicError(f"{role} topic {self._topics[role]!r} {what} while it was in use: {NEXT_STEPS[role]}"))
