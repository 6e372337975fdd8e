"""A real recurrent model: what chaos leaves of its states and outputs is what an undisturbed run leaves."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from services.broker import Broker
from tests.chaos.chaos import PARTITIONS, disturb
from tests.chaos.faults import kill, sleep, sleep_inside, storm
from tests.chaos.states import Kept, newest_snapshots
from tests.kafka.harness import Topics, eventually, make_topic, new_seed, workers
from tests.kafka.reading import Reader, Record, read_all
from tests.kafka.verdict import Stream
from tests.models import lstm_tensor

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

SECONDS, ZOMBIES, RATE = 12.0, 3, 400
STATE, OUTPUT = 1e-5, 1e-4
"""Batches differ, and so does the order of their sums: relative to a state's size, absolute for an output's numbers."""
STEPS = np.random.default_rng(0).standard_normal((256, 64)).astype("<f4")


def floats(rng: random.Random) -> bytes:
    """One to three steps of the LSTM."""
    return b"".join(STEPS[rng.randrange(len(STEPS))].tobytes() for _ in range(rng.randrange(1, 4)))


def by_stream(outputs: Sequence[Record]) -> dict[Stream, list[Record]]:
    found: defaultdict[Stream, list[Record]] = defaultdict(list)
    for record in outputs:
        found[record.partition, record.key or b""].append(record)
    return found


class Snapshots:
    """A group's newest, and whether they hold all that the input has."""

    def __init__(self, topics: Topics, changelog: str, model: Path) -> None:
        self._topics, self._changelog, self._model = topics, changelog, model
        self.kept: dict[Stream, Kept] = {}

    def complete(self) -> bool:
        self.kept = newest_snapshots(self._topics.address, self._changelog, self._model)
        last = {(r.partition, r.key or b""): r.offset for r in read_all(self._topics.address, self._topics.input)}
        return {stream: kept.applied for stream, kept in self.kept.items()} == last

    def rows(self, stream: Stream) -> NDArray[np.float32]:
        return self.kept[stream].row.copy().view("<f4")


def test_states_and_outputs_after_chaos_are_those_of_an_undisturbed_run(
    chaos_broker: Broker, topics: Topics, unique: Callable[[str], str], tmp_path: Path
) -> None:
    model = lstm_tensor(tmp_path / "lstm" / "1")
    deck = {sleep_inside: 4, sleep: 1, kill: 3, storm: 1}
    found = Snapshots(topics, topics.changelog, model)
    seed = new_seed()
    chaos = disturb(
        chaos_broker, topics, model, seed, SECONDS, ZOMBIES, deck=deck, rate=RATE, value=floats, settled=found.complete
    )

    calm, group = topics._replace(output=make_topic(topics.address, unique("calm"), PARTITIONS)), unique("calm-group")
    right = Snapshots(calm, f"{group}-{calm.input}-changelog", model)
    worker = calm.worker(model, "calm", group=group, snapshot_interval_ms=300)
    with workers(worker):
        reader = Reader(calm.address, calm.output)
        should = by_stream(reader.until(chaos.sent, of=[worker]))
        eventually(right.complete, 30, "what was answered is saved")
        worker.drained()
        reader.close()

    outputs = by_stream(read_all(topics.address, topics.output))
    assert outputs.keys() == should.keys() == found.kept.keys()
    furthest = farthest_state = 0.0
    for stream, records in should.items():
        assert [r.source for r in outputs[stream]] == [r.source for r in records], stream
        difference = numbers(outputs[stream]) - numbers(records)
        furthest = max(furthest, float(np.abs(difference).max()))
        state, other = right.rows(stream), found.rows(stream)
        farthest_state = max(farthest_state, float(np.abs(state - other).max() / np.abs(state).max()))
    print(f"{chaos}; {chaos.sent} inputs of {len(should)} streams; states differ by {farthest_state:g} of their size,")
    print(f"outputs by {furthest:g}")
    assert farthest_state <= STATE
    assert furthest <= OUTPUT
    assert chaos.counts["kills"] >= 1
    assert chaos.counts["zombies inside an open transaction"] >= ZOMBIES


def numbers(records: Sequence[Record]) -> NDArray[np.float32]:
    return np.frombuffer(b"".join(r.value or b"" for r in records), "<f4")
