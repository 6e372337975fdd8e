"""When the input is asked for more while a transaction runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.consumer.fetcher import Fetcher

from pipeline.transport.kafka.columns import ColumnFetcher
from pipeline.transport.kafka.pacing import LONGEST_S, Pacing


@pytest.fixture
def pacing() -> Pacing:
    return Pacing()


async def goes(pacing: Pacing) -> bool:
    """Whether a fetch may be sent now."""
    turn = asyncio.ensure_future(pacing.turn())
    for _ in range(3):
        await asyncio.sleep(0)
    went = turn.done()
    turn.cancel()
    return went


async def test_a_fetch_waits_for_a_transactions_end_where_there_is_little_to_do(pacing):
    pacing.unhurried = True
    assert await goes(pacing)
    with pacing.transaction():
        assert not await goes(pacing)
        pacing.ending()
        assert await goes(pacing)
    with pacing.transaction():
        assert not await goes(pacing)
    assert await goes(pacing)


async def test_who_has_much_to_do_fetches_on(pacing):
    with pacing.transaction():
        assert await goes(pacing)


async def test_a_transaction_that_fails_holds_nobody_back(pacing):
    pacing.unhurried = True
    with pytest.raises(RuntimeError), pacing.transaction():
        raise RuntimeError
    assert await goes(pacing)


async def test_nobody_waits_for_ever(pacing):
    pacing.unhurried = True
    with pacing.transaction():
        await asyncio.wait_for(pacing.turn(), 20 * LONGEST_S)


async def test_one_that_was_opened_and_comes_to_nothing_holds_only_the_first_back(pacing):
    """In a replay nothing is shown: the next transaction may be a long way off, and each fetch would wait."""
    pacing.unhurried = True
    pacing.begin()
    await pacing.turn()
    assert await goes(pacing)
    pacing.begin()
    assert not await goes(pacing)


async def test_the_fetcher_takes_its_turn(pacing, monkeypatch):
    sent = []

    async def send(self: Any, assignment: Any, node_id: int, request: Any) -> bool:
        sent.append(request)
        return True

    monkeypatch.setattr(Fetcher, "_proc_fetch_request", send)
    monkeypatch.setattr(Fetcher, "__init__", lambda self, client: setattr(self, "_records", {}))
    fetcher = ColumnFetcher(None, on_data=lambda: None, on_error=lambda: None, turn=pacing.turn)
    pacing.unhurried = True
    with pacing.transaction():
        asking = asyncio.ensure_future(fetcher._proc_fetch_request(None, 1, "request"))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not sent
        pacing.ending()
        assert await asking
    assert sent == ["request"]
