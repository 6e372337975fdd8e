"""What a competent user writes by hand: confluent-kafka, states in numpy arrays, one batched step after the other.

At least once: outputs are flushed, then the offsets are committed. The states live in this process alone: after its
death every stream begins anew, which is what the worker's changelog is for.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from numpy.typing import NDArray

from tests.benchmarks.load import FEATURES
from tests.benchmarks.raw import open_plain

STREAMS_MAX = 4096
MESSAGES = 10_000
"""Taken at once, at most."""
BATCH = 256
COMMIT_S = 0.2


class HandLoop:
    def __init__(self, address: str, model: Path, source: str, target: str, group: str) -> None:
        self.session = open_plain(model)
        self.names = [i.name for i in self.session.get_inputs()]
        self.h = np.zeros((2, STREAMS_MAX, 128), np.float32)
        self.c = np.zeros((2, STREAMS_MAX, 128), np.float32)
        self.rows: dict[bytes, int] = {}
        self.target = target
        self.producer = Producer(
            {
                "bootstrap.servers": address,
                "partitioner": "murmur2_random",
                "enable.idempotence": True,
                "linger.ms": 1,
                "batch.size": 1_000_000,
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        self.consumer = Consumer(
            {
                "bootstrap.servers": address,
                "group.id": group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "queued.max.messages.kbytes": 131_072,
            }
        )
        self.consumer.subscribe([source], on_assign=lambda *_: print("ready", file=sys.stderr, flush=True))

    def run(self) -> None:
        committed_s, dirty = time.monotonic(), False
        while True:
            # `consume` waits until it has all it was asked for; so: the first, and what has come with it.
            messages = self.consumer.consume(1, 0.02)
            if messages:
                messages += self.consumer.consume(MESSAGES - 1, 0)
                self.step_all([m for m in messages if good(m)])
                dirty = True
            self.producer.poll(0)
            if dirty and time.monotonic() - committed_s > COMMIT_S:
                self.producer.flush()
                self.consumer.commit(asynchronous=False)
                committed_s, dirty = time.monotonic(), False

    def step_all(self, messages: list[Message]) -> None:
        """Round r runs the r-th record of every stream that has one, BATCH streams a call."""
        rows, keys = self.rows, [m.key() for m in messages]
        row = np.fromiter((rows.setdefault(k, len(rows)) for k in keys), np.int64, len(keys))
        x = np.frombuffer(b"".join([m.value() for m in messages]), "<f4").reshape(-1, FEATURES)
        order = np.argsort(row, kind="stable")
        first = np.flatnonzero(np.diff(row[order], prepend=-1))
        rank = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
        for r in range(int(rank.max()) + 1):
            due = order[rank == r]
            for i in range(0, len(due), BATCH):
                batch = due[i : i + BATCH]
                self.answer([keys[j] for j in batch.tolist()], self.step(row[batch], x[batch]))

    def step(self, rows: NDArray[np.int64], x: NDArray[np.float32]) -> NDArray[np.float32]:
        feeds = dict(zip(self.names, (x[None], self.h[:, rows], self.c[:, rows])))
        y, self.h[:, rows], self.c[:, rows] = self.session.run(None, feeds)
        return y[0]

    def answer(self, keys: list[bytes], y: NDArray[np.float32]) -> None:
        produce, target = self.producer.produce, self.target
        blob, width = y.tobytes(), y[0].nbytes
        for i, key in enumerate(keys):
            produce(target, blob[i * width : (i + 1) * width], key)
        self.producer.poll(0)


def good(message: Message) -> bool:
    error = message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        raise KafkaException(error)
    return error is None


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("address", "source", "target", "group"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--model", type=Path, required=True)
    a = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    HandLoop(a.address, a.model, a.source, a.target, a.group).run()


if __name__ == "__main__":
    main()
