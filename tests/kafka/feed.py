"""Records that keep coming."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from tests.kafka.harness import Topics, new_producer

STREAMS = 300

Value = Callable[[random.Random], bytes]


def integers(rng: random.Random) -> bytes:
    """One to three steps of int64."""
    return rng.randbytes(8 * rng.randrange(1, 4))


class Feed:
    """Produces about ``rate`` records a second, from a seed, at most ``most``, until ``stop`` returns how many."""

    def __init__(self, topics: Topics, seed: int, rate: int, most: int = 10**9, value: Value = integers) -> None:
        self._topics, self._rng, self._rate, self._most, self._value = topics, random.Random(seed), rate, most, value
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._patience_s = 60.0
        self.sent = self.left = 0

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._patience_s = 0.1  # nobody waits for these any more, and the broker may be away
            self._stopping.set()
            self._thread.join()

    def _run(self) -> None:
        producer = new_producer(self._topics.address)
        began = time.monotonic()
        while not self._stopping.wait(0.01):
            while self.sent < min(self._most, (time.monotonic() - began) * self._rate):
                key = b"stream-%d" % self._rng.randrange(STREAMS)
                producer.produce(self._topics.input, self._value(self._rng), key)
                self.sent += 1
            producer.poll(0)
        self.left = producer.flush(self._patience_s)

    def stop(self) -> int:
        self._stopping.set()
        self._thread.join()
        assert self.left == 0, "records that were never acknowledged"
        return self.sent
