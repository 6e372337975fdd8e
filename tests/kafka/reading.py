"""What a plain Kafka client reads, read committed: the judge's eyes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from tests.kafka.harness import Value, Worker, eventually


class Record(NamedTuple):
    """One record, as a plain client reads it."""

    partition: int
    offset: int
    key: Value
    value: Value
    headers: Sequence[tuple[str, bytes]]
    timestamp: int

    @property
    def source(self) -> tuple[int, int]:
        """The header ``eddy-source``: partition and offset of the input record."""
        raw = next(value for name, value in self.headers if name == "eddy-source")
        return int.from_bytes(raw[:4], "big", signed=True), int.from_bytes(raw[4:], "big", signed=True)

    def header(self, name: str) -> bytes | None:
        return next((value for n, value in self.headers if n == name), None)


UNKNOWN = (
    "UNKNOWN_TOPIC_OR_PART",
    "_UNKNOWN_PARTITION",
    "_UNKNOWN_TOPIC",
    "LEADER_NOT_AVAILABLE",
    "NOT_LEADER_FOR_PARTITION",
)
"""What a broker, or this client, says of a topic that was just made."""


class Reader:
    """Reads a topic from its beginning, read committed, without a group; ``records`` is all that came so far."""

    def __init__(self, address: str, topic: str) -> None:
        self._topic = topic
        self._consumer = Consumer(
            {
                "bootstrap.servers": address,
                "group.id": "a-judge-that-never-joins",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 50,
                "log_level": 0,
            }
        )
        eventually(lambda: self._leaders_know(topic), 20, f"a topic {topic} that can be read")
        partitions = self._consumer.list_topics(topic, 30).topics[topic].partitions
        self._partitions = len(partitions)
        self._consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
        self._ends: set[int] = set()
        self._next: dict[int, int] = {}
        """Partition -> offset behind the last record that was read: after an assignment older ones may come again."""
        self.records: list[Record] = []

    def _leaders_know(self, topic: str) -> bool:
        """In a cluster each broker hears of a new topic at its own time."""
        try:
            partitions = self._consumer.list_topics(topic, 30).topics[topic].partitions
            for partition in partitions:
                self._consumer.get_watermark_offsets(TopicPartition(topic, partition), 10)
        except KafkaException as error:
            if error.args[0].retriable() or error.args[0].name() in UNKNOWN:
                return False
            raise
        return bool(partitions)

    def _read(self, timeout_s: float) -> None:
        for message in self._consumer.consume(10_000, timeout_s):
            error, partition = message.error(), message.partition()
            if error is None:
                if message.offset() < self._next.get(partition, 0):
                    continue
                self._next[partition] = message.offset() + 1
                self._ends.discard(partition)
                at = (partition, message.offset(), message.key(), message.value())
                self.records.append(Record(*at, message.headers() or (), message.timestamp()[1]))
            elif error.name() == "_PARTITION_EOF":
                self._ends.add(partition)
            else:
                # A broker that is away for a while; anything else ends in the caller's time limit, which says so.
                assert error.retriable() or error.name() in ("_TRANSPORT", "_ALL_BROKERS_DOWN", "_RESOLVE"), error

    def until(
        self, enough: int | Callable[[list[Record]], bool], timeout_s: float = 60, *, of: Sequence[Worker] = ()
    ) -> list[Record]:
        """Reads until there are so many records, or until ``enough`` holds; ``of``: workers that must live so long."""
        end = time.monotonic() + timeout_s
        holds = enough if callable(enough) else lambda records: len(records) >= enough
        while not holds(self.records):
            self._read(0.05)
            for worker in of:
                assert worker.alive, f"{worker.worker_id} ended:\n{worker.log}"
            wanted = "what was waited for" if callable(enough) else f"{enough} records"
            assert time.monotonic() < end, f"{self._topic}: {len(self.records)} records and not {wanted}"
        return self.records

    def rest(self, timeout_s: float = 30) -> list[Record]:
        """Reads to the present end of every partition."""
        self._ends.clear()
        end = time.monotonic() + timeout_s
        # A partition tells its end again only after something new: a new assignment from here on makes all tell.
        self._consumer.assign(
            [TopicPartition(self._topic, p, self._next.get(p, OFFSET_BEGINNING)) for p in range(self._partitions)]
        )
        while len(self._ends) < self._partitions:
            self._read(0.05)
            assert time.monotonic() < end, f"{self._topic}: no end of partitions within {timeout_s:g} s"
        return self.records

    def close(self) -> None:
        self._consumer.close()


def read_all(address: str, topic: str) -> list[Record]:
    """A whole topic as it is now, read committed, partition by partition."""
    reader = Reader(address, topic)
    try:
        return sorted(reader.rest(), key=lambda r: (r.partition, r.offset))
    finally:
        reader.close()
