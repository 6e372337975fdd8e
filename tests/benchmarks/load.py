"""What goes in and what comes out: the streams' records, a paced producer, a reader of what is committed.

The producer and the reader run as processes of their own (``python -m tests.benchmarks.load pace | judge``) and share
the machine's monotonic clock; both know from the seed which stream the i-th record belongs to.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition
from numpy.typing import NDArray

FEATURES, OUTPUTS = 64, 10
STEP_BYTES = 4 * FEATURES
VALUES = 4096
"""Different step values; enough that no two streams look alike, few enough to be made in no time."""


@dataclass(frozen=True)
class Load:
    """``records`` records of one step each, of ``streams`` streams, the same for everyone who has the seed."""

    streams: int
    records: int
    seed: int = 1

    def order(self) -> NDArray[np.int64]:
        """int64 ``[records]``: the stream of each record, drawn at random: backlogs differ as they do in life."""
        return np.random.default_rng(self.seed).integers(0, self.streams, self.records)

    def values(self) -> list[bytes]:
        """Step values; record i has number ``i % VALUES``."""
        steps = np.random.default_rng(self.seed + 1).standard_normal((VALUES, FEATURES), np.float32)
        return [row.tobytes() for row in steps]

    @staticmethod
    def key(stream: int) -> bytes:
        return b"stream-%05d" % stream

    @staticmethod
    def stream(key: bytes) -> int:
        return int(key[-5:])


def producer(address: str, **settings: Any) -> Producer:
    return Producer({"bootstrap.servers": address, "partitioner": "murmur2_random", "acks": "all", **settings})


def fill(address: str, topic: str, load: Load) -> None:
    """All records at once: a backlog."""
    feeder = producer(address, **{"linger.ms": 20, "batch.size": 1_000_000, "queue.buffering.max.kbytes": 500_000})
    keys, values = [load.key(s) for s in range(load.streams)], load.values()
    for i, stream in enumerate(load.order().tolist()):
        while True:
            try:
                feeder.produce(topic, values[i % VALUES], keys[stream])
                break
            except BufferError:
                feeder.poll(0.1)
    if feeder.flush(120):
        raise KafkaException("the backlog could not be written in 120 s")


def pace(address: str, topic: str, load: Load, rate: float, start_s: float) -> None:
    """Record i is due at ``start_s + i / rate`` on the monotonic clock, whatever became of those before (open loop)."""
    feeder = producer(address, **{"linger.ms": 0})
    feeder.list_topics(topic)
    keys, values = [load.key(s) for s in range(load.streams)], load.values()
    for i, stream in enumerate(load.order().tolist()):
        wait = start_s + i / rate - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        feeder.produce(topic, values[i % VALUES], keys[stream])
        feeder.poll(0)
    if feeder.flush(30):
        raise KafkaException("not all records could be sent")


def committed(address: str, topic: str, partitions: int, **settings: Any) -> Iterator[list[Any]]:
    """Records of a topic from its beginning, read committed, in lists as they arrive; [] after 0.1 s without any."""
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "judge",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            **settings,
        }
    )
    try:
        consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(partitions)])
        while True:
            # `consume` waits until it has all it was asked for; so: the first, and what has come with it.
            messages = consumer.consume(1, 0.1)
            if messages:
                messages += consumer.consume(5000, 0)
            for message in messages:
                if message.error() is not None:
                    raise KafkaException(message.error())
            yield messages
    finally:
        consumer.close()


def judge(address: str, topic: str, partitions: int, load: Load, rate: float, start_s: float, skip: int) -> Any:
    """Seconds from when a record was due until its answer was read, per record from number ``skip`` on.

    A stream's k-th answer is that of its k-th record: answers come once and in order, or the counts say otherwise.
    """
    order = load.order()
    due = start_s + np.arange(load.records) / rate
    of_stream = [np.flatnonzero(order == s).tolist() for s in range(load.streams)]
    seen = [0] * load.streams
    latency = np.full(load.records, np.nan)
    left, quiet_since = load.records, start_s + load.records / rate
    for messages in committed(address, topic, partitions):
        now = time.monotonic()
        for message in messages:
            stream = load.stream(message.key())
            if stream >= load.streams:
                continue  # not of this load
            left -= 1
            i = of_stream[stream][seen[stream]]
            seen[stream] += 1
            latency[i] = now - due[i]
        if messages:
            quiet_since = max(quiet_since, now)
        if not left:
            break
        if now - quiet_since > 20:
            raise SystemExit(f"{left} of {load.records} answers did not come")
    kept = latency[skip:] * 1e3
    p50, p99 = np.percentile(kept, [50, 99]).tolist()
    return {"p50 ms": p50, "p99 ms": p99, "max ms": float(kept.max()), "n": len(kept)}


def answers(
    address: str, topic: str, partitions: int, streams: Sequence[int]
) -> tuple[int, dict[int, NDArray[np.float32]]]:
    """How many records are committed in a topic, and the answers of some streams, ``[n, OUTPUTS]`` each, in order."""
    wanted: dict[bytes, list[bytes]] = {Load.key(s): [] for s in streams}
    count, quiet = 0, 0
    for messages in committed(address, topic, partitions, **{"queued.max.messages.kbytes": 262_144}):
        count += len(messages)
        for message in messages:
            mine = wanted.get(message.key())
            if mine is not None:
                mine.append(message.value())
        quiet = 0 if messages else quiet + 1
        if quiet == 10:  # a second of silence
            break
    found = {s: np.frombuffer(b"".join(wanted[Load.key(s)]), "<f4").reshape(-1, OUTPUTS) for s in streams}
    return count, found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("pace", "judge"))
    for name, kind in (("address", str), ("topic", str), ("partitions", int), ("streams", int), ("records", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    for name, kind in (("rate", float), ("start", float), ("skip", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    a = parser.parse_args()
    load = Load(a.streams, a.records)
    if a.what == "pace":
        pace(a.address, a.topic, load, a.rate, a.start)
    else:
        json.dump(judge(a.address, a.topic, a.partitions, load, a.rate, a.start, a.skip), sys.stdout)


if __name__ == "__main__":
    main()
