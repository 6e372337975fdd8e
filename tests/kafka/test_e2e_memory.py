"""A backlog far larger than memory may be, and an engine far too slow for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from pipeline.config import Config
from services.broker import Broker
from tests.kafka.graphs import slow_tensor
from tests.kafka.harness import LOOK_S, make_topics, produce, workers
from tests.kafka.reading import Reader
from tests.models import lstm_tensor

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

PARTITIONS = 4
RECORD_BYTES = 262_144
RECORDS = 4_000
STEP_BYTES = 64 * 4
PRODUCTS = 200
"""One step of `slow_tensor` then costs 52 M multiplications; an LSTM of 2x128 has 0.23 M."""
WATCHED_S = 20.0
MIB = 1024 * 1024


def seconds_a_step(model: Path) -> float:
    """The least of five, of onnxruntime alone, one thread, 64 streams at once."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), options)
    shapes = {i.name: [d if isinstance(d, int) else 64 for d in i.shape] for i in session.get_inputs()}
    shapes["x"][0] = 8
    feeds = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        session.run(None, feeds)
        taken.append(time.perf_counter() - began)
    return min(taken) / (8 * 64)


def test_memory_is_bounded_with_a_slow_engine_and_a_gigabyte_of_backlog(
    broker: Broker, unique: Callable[[str], str], tmp_path: Path
) -> None:
    topics = make_topics(broker.address, unique, PARTITIONS, segment_bytes=str(64 * MIB))
    config = Config()
    slow = slow_tensor(tmp_path / "slow" / "1", PRODUCTS)
    slower = seconds_a_step(slow) / seconds_a_step(lstm_tensor(tmp_path / "lstm" / "1"))
    assert slower > 100
    worker = topics.worker(slow)
    value = np.random.default_rng(1).standard_normal(RECORD_BYTES // 4, np.float32).tobytes()
    with workers(worker):
        # What it takes to serve at all: imports, model, connections, and the engine's work space for its largest call.
        judged = Reader(topics.address, topics.output)
        produce(topics.address, topics.input, [(b"stream-%d" % i, value[: RECORD_BYTES // 4]) for i in range(16)])
        judged.until(16, of=[worker])
        base = worker.rss_bytes
        # On top of it, by the configuration: what is fetched and not committed (queue_bytes, which counts a poll's
        # input until it is committed); what the fetch under way and the last one bring of each partition; and the steps
        # of each of the two polls that the engine may have, joined and bound.
        fetched = 2 * min(config.fetch_max_bytes, PARTITIONS * config.max_partition_fetch_bytes)
        polls = 2 * 2 * config.max_steps * STEP_BYTES
        bound = base + config.queue_bytes + fetched + polls
        produce(topics.address, topics.input, ((b"stream-%d" % (i % 64), value) for i in range(RECORDS)))
        peak = queued = paused = 0.0
        end = time.monotonic() + WATCHED_S
        next_scrape = 0.0
        while time.monotonic() < end:
            peak = max(peak, worker.rss_bytes)
            if time.monotonic() > next_scrape:
                figures = worker.metrics()
                queued = max(queued, figures["eddy_queued_bytes"])
                paused = max(paused, figures["eddy_paused_partitions"])
                next_scrape = time.monotonic() + 0.5
            time.sleep(LOOK_S)
        print(
            f"base {base / MIB:.0f} MiB, bound {bound / MIB:.0f} MiB, peak {peak / MIB:.0f} MiB; queued"
            f" {queued / MIB:.0f} MiB of {config.queue_bytes / MIB:.0f}, {paused:.0f} partitions paused, lag"
            f" {figures['eddy_lag_records']:.0f} records; the engine is {slower:.0f} times slower than with an LSTM"
        )
        assert worker.alive, worker.log
        assert worker.ready
        assert peak < bound
        assert queued <= config.queue_bytes + config.fetch_max_bytes
        assert paused > 0, "the backlog was never held back: nothing was tested"
        assert figures["eddy_lag_records"] * RECORD_BYTES > 800 * MIB, "the backlog was not there"
        worker.kill()
    judged.close()
    topics.drop()
