"""When what is fetched may be of another topic: after a failed fetch or a standstill, until somebody has looked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from pipeline.errors import OutcomeUnknown, TopicError
from pipeline.transport.kafka import topic_watch
from pipeline.transport.kafka.topic_watch import Doubt, TopicWatch

TOPICS = {"input": "in", "changelog": "log"}
UNKNOWN = 3


class Broker:
    """Answers who asks for topic ids."""

    limit_s = 5.0

    def __init__(self) -> None:
        self.ids = {"in": UUID(int=1 << 100), "log": UUID(int=2 << 100)}
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def ask_any(self, request: Any) -> Any:
        self.asked += 1
        await asyncio.sleep(0)
        await self.gate.wait()
        rows = [(0 if name in self.ids else UNKNOWN, name, self.ids.get(name)) for name in TOPICS.values()]
        return SimpleNamespace(topics=rows)


@pytest.fixture
async def watched() -> AsyncIterator[tuple[Broker, Doubt, TopicWatch, list[TopicError]]]:
    broker, doubt, lost = Broker(), Doubt(), list[TopicError]()
    watch = TopicWatch(broker, TOPICS, doubt, lost.append)  # type: ignore[arg-type]
    await watch.begin()
    await asyncio.sleep(0)
    yield broker, doubt, watch, lost
    await watch.stop()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_where_nobody_looks_there_is_no_doubt() -> None:
    async def raised() -> bool:
        doubt = Doubt()
        doubt.rise()
        return bool(doubt)

    assert not asyncio.run(raised())


async def test_a_doubt_stays_until_the_topics_are_the_same(watched: Any) -> None:
    broker, doubt, _, lost = watched
    settled = asyncio.Event()
    doubt.settled = settled.set
    broker.gate.clear()
    doubt.rise()
    await until(lambda: broker.asked == 2)
    # What fails while somebody looks already is looked into once more.
    doubt.rise()
    broker.gate.set()
    await until(lambda: broker.asked == 3)
    await asyncio.wait_for(settled.wait(), 10)
    assert not doubt
    assert not lost


async def test_a_doubt_about_another_topic_is_never_settled(watched: Any) -> None:
    broker, doubt, _, lost = watched
    broker.ids["in"] = UUID(int=3 << 100)
    doubt.rise()
    await until(lambda: lost)
    assert doubt
    assert "input topic 'in' was deleted and made anew" in str(lost[0])


async def test_a_process_that_stood_still_is_in_doubt(watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broker, doubt, *_ = watched
    assert not doubt
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + topic_watch.STILL_S + 0.1)
    assert doubt
    await until(lambda: not doubt)
    assert broker.asked == 2


async def test_who_asks_together_is_served_by_one_request_and_who_asks_later_by_another(watched: Any) -> None:
    broker, _, watch, _ = watched
    answers = await asyncio.gather(*(watch.ids_now() for _ in range(5)))
    assert broker.asked == 3, "one that was on its way before, and one for all others"
    assert {ids("input") for ids in answers} == {UUID(int=1 << 100).bytes}
    broker.ids["log"] = UUID(int=4 << 100)
    assert (await watch.ids_now())("changelog") == UUID(int=4 << 100).bytes
    del broker.ids["in"]
    with pytest.raises(OutcomeUnknown, match="there is no topic 'in'"):
        await watch.ids_now()
