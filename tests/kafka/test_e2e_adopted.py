"""Somebody else's model over Kafka, as a user would do it: adopt, run, produce, tail; by hand beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from services.broker import Broker
from tests.kafka.harness import make_topics, workers
from tests.kafka.test_command_line import eddy
from tests.unit.export.adopt.packages import model
from tests.unit.export.adopt.serving import by_hand, floats

pytestmark = pytest.mark.kafka


def test_silero_vad_adopted_and_run_gives_what_it_gives_by_hand(
    broker: Broker, unique: Callable[[str], str], tmp_path: Path
) -> None:
    """The sample rate is each stream's own: it comes as a header."""
    source = model("silero-vad==6.2.3", "silero_vad/data/silero_vad.onnx")
    asked = json.loads(eddy("adopt", source, "--output", tmp_path / "vad" / "1", "--json").stdout)
    assert asked["flags"] == ["--constant sr=16000", "--hop 512"]
    flags = ["--stream-constant", "sr", "--hop", 512]
    found = json.loads(eddy("adopt", source, "--output", tmp_path / "vad" / "1", *flags, "--json").stdout)
    assert found["batching"] == "single"

    topics = make_topics(broker.address, unique, 2)
    folder = Path(found["file"]).parent
    worker = topics.worker(folder, "w1")
    to = {"EDDY_BOOTSTRAP_SERVERS": broker.address}
    rng = np.random.default_rng(1)
    streams = {f"s{i}": [floats(rng, 512) * 0.3 for _ in range(6)] for i in range(3)}
    with workers(worker):
        worker.wait_ready()
        for key, steps in streams.items():
            np.save(tmp_path / f"{key}.npy", np.stack(steps))
        files = [tmp_path / f"{key}.npy" for key in streams]
        made = eddy("produce", topics.input, *files, "--steps-per-record", 2, "--header", "eddy-sr=16000", **to)
        assert made.returncode == 0, made.stderr
        told = eddy("tail", topics.output, "--from-beginning", "--count", 9, "--model", folder, "--json", **to)
    got: dict[str, list[float]] = {key: [] for key in streams}
    for line in told.stdout.splitlines():
        record = json.loads(line)
        got[record["key"]] += np.array(record["value"]["output"]).reshape(-1).tolist()
    state = {"state": ("stateN", np.zeros((2, 1, 128), np.float32))}
    for key, steps in streams.items():
        wanted = by_hand(source, [{"input": s[None]} for s in steps], state, "output", {"sr": np.array(16000)})
        assert np.abs(np.array(got[key]) - np.concatenate(wanted).reshape(-1)).max() <= 1e-4
