"""What pipeline/transport/kafka uses of aiokafka's insides is still there and still behaves, on a real broker.

A new aiokafka that fails here needs a look at that folder before pyproject.toml lets it in.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable

import pytest
from aiokafka import client as client_module
from aiokafka.consumer import fetcher, group_coordinator, subscription_state
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.protocol.produce import ProduceRequest_v7
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition

from pipeline.transport.kafka import wire
from pipeline.transport.kafka.columns import ColumnRecords
from pipeline.transport.kafka.transport import KafkaTransport
from services.broker import Broker
from tests.conftest import create_topic
from tests.contract.test_transports import KafkaWorld
from tests.contract.transport_world import Member

pytestmark = pytest.mark.kafka

OVERRIDDEN = {
    client_module.AIOKafkaClient: {"_metadata_update": ["cluster_metadata", "topics"]},
    fetcher.Fetcher: {"_proc_fetch_request": ["assignment", "node_id", "request"]},
    fetcher.PartitionRecords: {"_unpack_records": []},
    group_coordinator.GroupCoordinator: {
        "_do_rejoin_group": ["subscription"],
        "_send_req": ["request"],
        "_push_error_to_user": ["exc"],
    },
}
CALLED = {
    client_module.AIOKafkaClient: [
        "_get_conn",
        "send",
        "coordinator_lookup",
        "fetch_all_metadata",
        "force_metadata_update",
        "add_topic",
    ],
    fetcher.Fetcher: ["seek_to", "_notify", "close"],
    fetcher.FetchResult: ["getall", "has_more"],
    fetcher.FetchError: ["check_raise"],
    fetcher.PartitionRecords: ["_consume_aborted_up_to", "_contains_abort_marker"],
    group_coordinator.GroupCoordinator: ["request_rejoin", "close"],
    subscription_state.SubscriptionState: ["subscribe", "pause", "resume", "is_assigned"],
}


@pytest.mark.parametrize("owner", OVERRIDDEN, ids=lambda c: c.__name__)
def test_what_is_overridden_takes_what_it_took(owner: type) -> None:
    for name, parameters in OVERRIDDEN[owner].items():
        assert list(inspect.signature(getattr(owner, name)).parameters) == ["self", *parameters], name


@pytest.mark.parametrize("owner", CALLED, ids=lambda c: c.__name__)
def test_what_is_called_is_there(owner: type) -> None:
    for name in CALLED[owner]:
        assert callable(getattr(owner, name)), name


def test_only_the_errors_that_stop_coordination_are_pushed_to_the_user() -> None:
    """Our override does not wait for a reader: it must be awaited where aiokafka awaits its own."""
    source = inspect.getsource(group_coordinator.GroupCoordinator)
    assert source.count("_push_error_to_user(") == source.count("await self._push_error_to_user(") + 1


def test_our_encoding_of_a_produce_request_is_theirs() -> None:
    fields = ("lane", -1, 10_000, [("out", [(0, b"abc"), (3, b"")]), ("\u00e9", [(1, b"x" * 300)])])
    assert wire.ProduceRequestV7(*fields).encode() == ProduceRequest_v7(*fields).encode()


def test_fields_of_a_batch_header_are_where_they_were() -> None:
    builder = DefaultRecordBatchBuilder(2, 0, 1, 0x11, 0x22, 0x33, 1_000)
    builder.append(0, 0x44, b"k", b"v", [])
    data = bytes(builder.build())
    assert data[27:35] == (0x44).to_bytes(8, "big")
    assert data[43:57] == (0x11).to_bytes(8, "big") + (0x22).to_bytes(2, "big") + (0x33).to_bytes(4, "big")


async def test_the_attributes_of_a_running_member(broker: Broker, unique: Callable[[str], str]) -> None:
    world = KafkaWorld(broker, unique("i").lower())
    for topic in (world.input, world.output):
        await create_topic(broker.address, topic, 2)
    transport = KafkaTransport(world.config())
    member = Member(transport)
    await transport.start(member)
    try:
        membership = await member.until_assigned(2)
        reader = transport._opened.reader
        coordinator = reader._member
        assert (coordinator.generation, coordinator.member_id) == (membership.generation, membership.member_id)
        assert not coordinator._coordination_task.done()
        assert not coordinator._closing.done()
        async with asyncio.timeout(5):
            while coordinator._heartbeat_task is None:
                await asyncio.sleep(0.01)
        assert not reader._subscription.reassignment_in_progress
        state = reader._subscription.subscription.assignment.state_value(TopicPartition(world.input, 0))
        assert (state.paused, state.position) == (True, 0)
        assert isinstance(reader._fetcher.task, asyncio.Task)
        # Records are put into _records as PartitionRecords that nobody has iterated, and are columns when we see them.
        await world.start()
        await world.produce(0, b"k", b"v")
        member.begin()
        async with asyncio.timeout(5):
            while not reader._fetcher._records:
                await asyncio.sleep(0.01)
        (result,) = reader._fetcher._records.values()
        assert type(result) is FetchResult
        assert type(result._partition_records) is ColumnRecords
        assert ColumnRecords._unpack_records is not PartitionRecords._unpack_records
        assert state.highwater == 1
    finally:
        await transport.leave()
        await transport.stop()
        await world.stop()
