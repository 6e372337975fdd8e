"""What others do to topics, offsets, permissions and the group of a worker: one readable line, a metric, and either
work goes on or it stops cleanly; nothing is lost, nothing repeated."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AclOperation, NewPartitions, ResourceType

from services.broker import Broker
from tests.conftest import started
from tests.kafka.feed import Feed
from tests.kafka.harness import (
    LOOK_S,
    Topics,
    Worker,
    admin,
    eventually,
    make_topic,
    make_topics,
    new_seed,
    produce,
    workers,
)
from tests.kafka.permissions import GUARDED, deny
from tests.kafka.reading import Reader, read_all
from tests.kafka.verdict import judge_hash
from tests.models import rolling_hash

pytestmark = pytest.mark.kafka

Unique = Callable[[str], str]
LIMIT_S = 20.0
SAVED = {"snapshot_interval_ms": 0}
"""The changelog has a snapshot from the first commit on: what tells an offset of others from a group's beginning."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rolling_hash(tmp_path_factory.mktemp("models") / "hash" / "1")


@pytest.fixture
def topics(broker: Broker, unique: Unique) -> Topics:
    return make_topics(broker.address, unique, 2)


def send(topics: Topics, partition: int, n: int) -> int:
    """So many records of five streams of this partition."""
    steps = ((b"p%d-%d" % (partition, i % 5), (7 * i).to_bytes(8, "little")) for i in range(n))
    return produce(topics.address, topics.input, steps, partition=partition)


def stops(worker: Worker, partition: int) -> str:
    """The line that says that this partition stops, and that the others go on."""

    def found() -> list[str]:
        said = (line["message"] for line in list(worker.lines))
        return [line for line in said if re.search(rf"partition {partition}\b.*\bstops", line)]

    end = time.monotonic() + LIMIT_S
    while not found():
        assert time.monotonic() < end, f"partition {partition} does not stop\n{worker.log}"
        time.sleep(LOOK_S)
    assert worker.metrics()["eddy_errors_total"] >= 1
    assert worker.alive
    assert not worker.ready
    return found()[-1]


def ends(worker: Worker) -> str:
    """Its last line, where it ends by itself: one line, no traceback."""
    assert worker.ended() == 2, worker.log
    last = [line for line in worker.lines if line["message"] != "(ended)"][-1]
    assert last["message"].startswith("eddy: "), worker.log
    return str(last["message"])


def waits(topics: Topics, n: int) -> None:
    """All is answered once and in order but for ``n`` records that nobody has taken."""
    verdict = judge_hash(topics)
    assert (verdict.lost, verdict.repeated, verdict.out_of_order, verdict.strange, verdict.wrong) == (n, 0, 0, 0, 0), (
        verdict
    )


# ---- topics


def test_an_input_that_is_deleted_and_made_anew_ends_the_worker_and_nothing_is_mixed(
    topics: Topics, model: Path
) -> None:
    worker = topics.worker(model, **SAVED)
    with workers(worker):
        reader = Reader(topics.address, topics.output)
        first = send(topics, 0, 20) + send(topics, 1, 20)
        reader.until(first, of=[worker])
        client = admin(topics.address)
        client.delete_topics([topics.input])[topics.input].result(30)
        eventually(lambda: topics.input not in client.list_topics(timeout=10).topics, 30, "it is gone")
        make_topic(topics.address, topics.input, 2)
        second = send(topics, 0, 30) + send(topics, 1, 30)
        line = ends(worker)
        assert f"input topic {topics.input!r} was deleted" in line
        assert "changelog" in line
        # Nobody has done anything about it: the states are of another topic, and no record of this one is touched.
        worker.start()
        assert "changelog" in stops(worker, 0)
        stops(worker, 1)
        worker.kill()
        # What the line says to do.
        client.delete_topics([topics.changelog])[topics.changelog].result(30)
        eventually(lambda: topics.changelog not in client.list_topics(timeout=10).topics, 30, "it is gone")
        worker.start()
        reader.until(first + second, of=[worker])
        worker.drained()
        reader.close()
    assert len(reader.records) == first + second
    assert sorted(r.source for r in reader.records[first:]) == [(p, o) for p in range(2) for o in range(30)]


def test_a_changelog_with_other_partitions_than_the_input_keeps_the_worker_from_starting(
    topics: Topics, model: Path
) -> None:
    make_topic(topics.address, topics.changelog, 3, cleanup_policy="compact")
    send(topics, 0, 5)
    worker = topics.worker(model)
    with workers(worker):
        line = ends(worker)
    assert topics.changelog in line
    assert "3 partitions" in line
    assert "has 2" in line
    assert read_all(topics.address, topics.output) == []


def test_an_input_that_grows_goes_on_as_it_was_and_wholly_once_all_topics_have_grown(
    topics: Topics, model: Path
) -> None:
    worker = topics.worker(model)
    client = admin(topics.address)

    def grow(topic: str) -> None:
        client.create_partitions([NewPartitions(topic, 3)])[topic].result(30)

    with workers(worker):
        reader = Reader(topics.address, topics.output)
        sent = send(topics, 0, 20)
        reader.until(sent, of=[worker])
        grow(topics.input)
        eventually(lambda: topics.partitions == 3, 30, "it has grown")
        sent += send(topics, 2, 10) + send(topics, 1, 10)
        reader.until(30, of=[worker])
        # Whoever starts now is told what to do; who runs goes on, and hears of it at a rebalance.
        beside = topics.worker(model, "beside")
        with workers(beside):
            line = ends(beside)
            assert "3 partitions" in line
            assert topics.output in line
        sent += send(topics, 0, 10)
        reader.until(40, of=[worker])
        worker.drained()
        for topic in (topics.output, topics.changelog, topics.dead_letters):
            grow(topic)
        reader.close()
        reader = Reader(topics.address, topics.output)
        worker.start()
        reader.until(sent, of=[worker])
        worker.wait_ready().drained()
        reader.close()
    verdict = judge_hash(topics)
    assert verdict.clean, verdict
    assert verdict.outputs == sent


def purge(topics: Topics, partition: int, before: int) -> None:
    """What retention does, at once."""
    place = TopicPartition(topics.input, partition, before)
    client = admin(topics.address)
    client.delete_records([place])[place].result(30)


def test_records_that_retention_took_before_they_were_processed_stop_their_partition_by_name(
    topics: Topics, model: Path
) -> None:
    worker = topics.worker(model)
    with workers(worker):
        reader = Reader(topics.address, topics.output)
        sent = send(topics, 0, 10) + send(topics, 1, 10)
        reader.until(sent, of=[worker])
        worker.drained()
        send(topics, 0, 20)
        purge(topics, 0, 15)
        worker.start()
        line = stops(worker, 0)
        assert "retention has passed" in line
        assert "15" in line
        sent += send(topics, 1, 10)
        reader.until(sent, of=[worker])
        worker.drained()
        reader.close()
    assert [r.source[1] for r in reader.records if r.partition == 0] == list(range(10))
    assert len(reader.records) == sent


# ---- the disk


def test_a_full_disk_under_the_local_copies_is_said_and_all_goes_on(
    topics: Topics, model: Path, tmp_path: Path
) -> None:
    worker = topics.worker(model, state_directory=tmp_path / "copies", snapshot_interval_ms=0)
    with workers(worker):
        reader = Reader(topics.address, topics.output)
        sent = send(topics, 0, 50) + send(topics, 1, 50)
        reader.until(sent, of=[worker])
        eventually(lambda: worker.metrics()["eddy_local_copies"] == 2, LIMIT_S, "both partitions have a copy")
        # As a disk with no room left: no file of this process may grow.
        resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (1, 1))
        sent += send(topics, 0, 50)
        line = worker.heard("partition 0: the local copy")
        assert str(tmp_path) in line["message"]
        assert "File too large" in line["message"]
        assert worker.metrics()["eddy_errors_total"] >= 1
        sent += send(topics, 0, 50) + send(topics, 1, 50)
        reader.until(sent, of=[worker])
        assert worker.ready
        worker.kill()
        worker.start()
        sent += send(topics, 0, 50) + send(topics, 1, 50)
        reader.until(sent, of=[worker])
        worker.drained()
        reader.close()
    verdict = judge_hash(topics)
    assert verdict.clean, verdict
    assert verdict.outputs == sent


# ---- offsets and the group


def set_offset(topics: Topics, partition: int, offset: int) -> None:
    """As ``kafka-consumer-groups --reset-offsets`` does."""
    place = TopicPartition(topics.input, partition, offset)
    asked = ConsumerGroupTopicPartitions(f"{topics.input}-g", [place])
    client = admin(topics.address)
    (future,) = client.alter_consumer_group_offsets([asked]).values()
    answered = future.result(30).topic_partitions
    assert answered[0].error is None, answered[0].error


def test_an_offset_that_a_tool_has_set_stops_its_partition_by_name(topics: Topics, model: Path) -> None:
    worker = topics.worker(model, **SAVED)
    with workers(worker):
        reader = Reader(topics.address, topics.output)
        sent = send(topics, 0, 20) + send(topics, 1, 20)
        reader.until(sent, of=[worker])
        worker.drained()
        set_offset(topics, 0, 5)
        worker.start()
        line = stops(worker, 0)
        assert "another tool has set this group's offset" in line
        assert "5" in line
        sent += send(topics, 1, 20)
        reader.until(sent, of=[worker])
        worker.drained()
        reader.close()
    waits(topics, 0)


def test_an_offset_that_a_foreign_transaction_sets_under_a_running_worker_repeats_nothing(
    topics: Topics, model: Path
) -> None:
    """An idle partition's offset falls; a second worker that takes it over finds out, the first never goes by it."""
    from confluent_kafka import Producer

    first, second = (topics.worker(model, name, **SAVED) for name in ("first", "second"))
    with workers(first, later=[second]):
        reader = Reader(topics.address, topics.output)
        sent = send(topics, 0, 20) + send(topics, 1, 20)
        reader.until(sent, of=[first])
        outsider = Consumer({"bootstrap.servers": topics.address, "group.id": f"{topics.input}-g", "log_level": 0})
        foreign = Producer({"bootstrap.servers": topics.address, "transactional.id": f"{topics.input}-x"})
        foreign.init_transactions(30)
        foreign.begin_transaction()
        offsets = [TopicPartition(topics.input, p, 5) for p in range(2)]
        foreign.send_offsets_to_transaction(offsets, outsider.consumer_group_metadata(), 30)
        foreign.commit_transaction(30)
        outsider.close()
        # The next part of partition 0 sets its offset right again; partition 1 has none until it is taken over.
        sent += send(topics, 0, 20)
        reader.until(sent, of=[first])
        second.start().heard("assigned partitions")
        noticed = "another tool has set this group's offset"
        eventually(lambda: any(noticed in w.log for w in (first, second)), LIMIT_S, "the foreign offset is noticed")
        sent += send(topics, 0, 20)
        reader.until(sent, of=[first, second])
        first.drained()
        second.drained()
        reader.close()
    waits(topics, 0)


def test_a_group_that_others_use_with_another_protocol_is_said_at_the_start(topics: Topics, model: Path) -> None:
    other = Consumer(
        {
            "bootstrap.servers": topics.address,
            "group.id": f"{topics.input}-g",
            "partition.assignment.strategy": "range",
            "enable.auto.commit": False,
            "log_level": 0,
        }
    )
    other.subscribe([topics.input])
    eventually(lambda: other.poll(0.1) is not None or len(other.assignment()) == 2, LIMIT_S, "it is a member")
    worker = topics.worker(model)
    with workers(worker):
        line = ends(worker)
    other.close()
    assert f"{topics.input}-g" in line


def test_a_consumer_that_joins_the_group_and_commits_stops_what_it_took_and_nothing_is_repeated(
    topics: Topics, model: Path
) -> None:
    worker = topics.worker(model, **SAVED)
    with workers(worker):
        reader = Reader(topics.address, topics.output)
        sent = send(topics, 0, 20) + send(topics, 1, 20)
        reader.until(sent, of=[worker])
        other = Consumer(
            {
                "bootstrap.servers": topics.address,
                "group.id": f"{topics.input}-g",
                "partition.assignment.strategy": "roundrobin",
                "enable.auto.commit": False,
                "session.timeout.ms": 6000,
                "log_level": 0,
            }
        )
        other.subscribe([topics.input])
        taken: list[TopicPartition] = []

        def has_one() -> bool:
            other.poll(0.1)
            taken[:] = other.assignment()
            return len(taken) == 1

        eventually(has_one, LIMIT_S, "it has a partition")
        (place,) = taken
        send(topics, place.partition, 5)
        message = None
        end = time.monotonic() + LIMIT_S
        while message is None or message.error():
            assert time.monotonic() < end, "the other one reads what is its own"
            message = other.poll(1.0)
        other.commit(message, asynchronous=False)
        other.close()
        assert "another tool has set this group's offset" in stops(worker, place.partition)
        sent += send(topics, 1 - place.partition, 20)
        reader.until(sent, of=[worker])
        worker.drained()
        reader.close()
    waits(topics, 5)


# ---- permissions


@pytest.fixture(scope="module")
def guarded() -> Iterator[Broker]:
    """A broker that asks its access control lists; what has none is allowed."""
    with started(GUARDED) as it:
        yield it


@pytest.mark.parametrize("what", ["write the output", "write the changelog", "read the input", "read the group"])
def test_a_permission_taken_away_is_named_and_work_goes_on_when_it_is_back(
    guarded: Broker, unique: Unique, model: Path, what: str
) -> None:
    topics = make_topics(guarded.address, unique, 2)
    worker = topics.worker(model)
    kind, name, operation = {
        "write the output": (ResourceType.TOPIC, topics.output, AclOperation.WRITE),
        "write the changelog": (ResourceType.TOPIC, topics.changelog, AclOperation.WRITE),
        "read the input": (ResourceType.TOPIC, topics.input, AclOperation.READ),
        "read the group": (ResourceType.GROUP, f"{topics.input}-g", AclOperation.READ),
    }[what]
    with workers(worker), Feed(topics, new_seed(), 200) as feed:
        reader = Reader(topics.address, topics.output)
        reader.until(100, of=[worker])
        give_back = deny(topics.address, operation, kind, name)
        if what == "read the group":
            assert name in ends(worker)
            give_back()
            worker.start()
        elif what == "read the input":
            assert f"not authorized: allow Read on the topic {name!r}" in stops(worker, 0)
            stops(worker, 1)
            give_back()
            worker.drained()
            worker.start()
        else:
            worker.heard("not authorized")
            assert any(name in line["message"] for line in worker.lines if "not authorized" in line["message"])
            figures = worker.metrics()
            assert figures.get("eddy_errors_total", 0) + figures["eddy_commit_failures_total"] >= 1
            give_back()
        seen = feed.sent
        reader.until(lambda records: len(records) > seen, 40, of=[worker])
        sent = feed.stop()
        reader.until(sent, of=[worker])
        eventually(lambda: worker.ready, LIMIT_S, "it is ready again")
        worker.drained()
        reader.close()
    verdict = judge_hash(topics)
    assert verdict.clean, verdict
    assert verdict.outputs == sent
