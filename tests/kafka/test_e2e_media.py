"""Sound and video as a user sends them, over a real Kafka, through a worker that is killed on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.codecs import Codec, make_codec
from pipeline.contract import CodecSpec, StepInput
from pipeline.model_file import load_graph, read_contract
from services.broker import Broker
from tests.footage import camera, film_or_skip, tone, wav_file
from tests.kafka.harness import Topics, make_topics, produce, workers
from tests.kafka.reading import Reader, read_all
from tests.models import stepper, stepper_reference
from tests.pictures import noise, picture, png_that_says

pytestmark = pytest.mark.kafka
Unique = Callable[[str], str]


def eddy_produce(kind: str, topics: Topics, *argv: object) -> int:
    """How many records it wrote."""
    command = [sys.executable, "-P", "-m", "services", "produce", kind, topics.input, *map(str, argv), "--json"]
    env = {**os.environ, "EDDY_BOOTSTRAP_SERVERS": topics.address}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["records"])


def answers(topics: Topics) -> dict[bytes, list[int]]:
    got: dict[bytes, list[int]] = defaultdict(list)
    for record in read_all(topics.address, topics.output):
        got[record.key or b""] += np.frombuffer(record.value or b"", "<i8").tolist()
    return got


def by_hand(topics: Topics, codec: Codec) -> dict[bytes, list[int]]:
    """What each stream's records come to, decoded here one after the other."""
    streams: dict[bytes, list[bytes]] = defaultdict(list)
    for record in read_all(topics.address, topics.input):
        streams[record.key or b""].append(record.value or b"")
    want: dict[bytes, list[int]] = {}
    for key, values in streams.items():
        memory = np.zeros((1, codec.memory_bytes), np.uint8)
        steps = codec.decode(values, np.zeros(len(values), np.int64), memory)
        if len(steps.values[0]):
            want[key] = stepper_reference(steps.values[0])
    return want


def served(folder: Path, step: StepInput, kind: str, **settings: Any) -> tuple[Path, Codec]:
    file = stepper(folder, step, CodecSpec(kind, settings=settings))
    return file, make_codec(read_contract(load_graph(file), str(file)))


def test_footage_and_a_camera_are_seen_once_by_a_worker_that_is_killed(
    broker: Broker, unique: Unique, tmp_path: Path
) -> None:
    film = film_or_skip()
    topics = make_topics(broker.address, unique, 3)
    model, codec = served(tmp_path, StepInput("x", "uint8", (24, 32, 3)), "video", resize="fit")
    worker = topics.worker(model)
    bad = [(b"bad", b""), (b"bad", png_that_says(50_000, 50_000)), (b"bad", picture(noise(64, 64, 3), "JPEG")[:-99])]
    with workers(worker), camera(*(picture(noise(64, 48, 3, i), "JPEG") for i in range(9))) as url:
        first = Reader(topics.address, topics.output)
        sent = eddy_produce("video", topics, film, "--limit", 60, "--key", "street")
        sent += eddy_produce("video", topics, url, "--key", "camera")
        first.until(5, of=[worker])
        worker.kill()
        produce(topics.address, topics.input, bad)
        sent += eddy_produce("video", topics, film, "--fps", 5, "--size", "96x72", "--format", "webp", "--limit", 20)
        worker.start()
        first.until(sent, of=[worker])
        dead = Reader(topics.address, topics.dead_letters)
        reasons = [record.header("eddy-error") for record in dead.until(3, of=[worker])]
        worker.drained()
        first.close()
        dead.close()
    assert sent == 60 + 9 + 20
    assert answers(topics) == by_hand(topics, codec)
    assert reasons == [b"empty", b"image-size", b"image"]


def test_sound_files_and_wav_bytes_are_heard_as_they_are(broker: Broker, unique: Unique, tmp_path: Path) -> None:
    topics = make_topics(broker.address, unique, 3)
    model, codec = served(tmp_path, StepInput("x", "int16", (160,)), "audio", rate=16000)
    worker = topics.worker(model)
    files = [wav_file(tmp_path / f"{rate}.wav", rate, channels) for rate, channels in ((16000, 1), (44100, 2))]
    with workers(worker):
        sent = eddy_produce("audio", topics, *files, "--model", model, "--chunk-ms", 70, "--silence-ms", 0)
        assert sent == 2 * 15
        # The same file as it lies there: the codec reads the header, mixes and resamples.
        eddy_produce("--key=bytes", topics, files[1], "--record-bytes", 999)
        want = by_hand(topics, codec)
        steps = sum(map(len, want.values()))
        heard = Reader(topics.address, topics.output)
        heard.until(lambda records: sum(len(r.value or b"") for r in records) == 8 * steps, of=[worker])
        heard.close()
        worker.drained()
    assert answers(topics) == want
    assert want[b"16000"] == stepper_reference(tone(16000, 1)[:, 0].reshape(-1, 160))
    assert 98 <= len(want[b"bytes"]) <= 100
