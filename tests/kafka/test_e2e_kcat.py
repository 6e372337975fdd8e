"""The topics are plain Kafka: kcat, a stranger's tool in C, writes the input, compressed too, and reads the output."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from services.broker import Broker
from tests.kafka.harness import make_topics, new_seed, workers
from tests.kafka.reading import Reader
from tests.kafka.verdict import judge_hash
from tests.models import rolling_hash

pytestmark = pytest.mark.kafka

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
STREAMS, RECORDS = 50, 400
"""Records of each codec."""


@pytest.fixture
def kcat() -> str:
    found = shutil.which("kcat")
    if found is None:
        reason = "kcat is not installed (apt-get install kcat)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def batch_codecs(segment: Path) -> Iterator[int]:
    """The compression of every record batch of a log segment: the low bits of its attributes."""
    raw = segment.read_bytes()
    at = 0
    while at < len(raw):
        (length,) = struct.unpack_from(">i", raw, at + 8)
        yield struct.unpack_from(">h", raw, at + 21)[0] & 7
        at += 12 + length


def run(*command: str, stdin: bytes = b"") -> bytes:
    """What it writes; it must end well."""
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_kcat_writes_the_input_and_reads_the_output(
    broker: Broker, unique: Callable[[str], str], tmp_path: Path, kcat: str, compression: str
) -> None:
    rng = np.random.default_rng(new_seed())
    topics = make_topics(broker.address, unique, 3)
    worker = topics.worker(rolling_hash(tmp_path / "hash" / "1"), compression=compression)
    with workers(worker):
        for codec in CODECS:
            # Eight letters are a step as good as any eight bytes, and kcat reads lines.
            lines = "".join(f"stream-{rng.integers(STREAMS)}:{rng.integers(10**8):08d}\n" for _ in range(RECORDS))
            flags = ["-P", "-K:", "-z", codec, "-X", "topic.partitioner=murmur2_random", "-X", "linger.ms=50"]
            run(kcat, "-b", topics.address, "-t", topics.input, *flags, stdin=lines.encode())
        judged = Reader(topics.address, topics.output)
        judged.until(RECORDS * len(CODECS), of=[worker])
        judged.close()
        worker.drained()
    logs = [broker.data / "log" / f"{topics.input}-{p}" / f"{0:020}.log" for p in range(3)]
    assert {c for log in logs for c in batch_codecs(log)} == set(CODECS.values()), "kcat did not compress as asked"
    verdict = judge_hash(topics)
    assert verdict.clean, verdict
    assert verdict.outputs == RECORDS * len(CODECS)

    reading = ["-C", "-e", "-q", "-o", "beginning", "-X", "isolation.level=read_committed", "-f"]
    raw = run(kcat, "-b", topics.address, "-t", topics.output, *reading, "%p %k %R%s\n")
    at, seen = 0, []
    while at < len(raw):
        partition, key, _ = raw[at : at + 64].split(b" ", 2)
        at += len(partition) + len(key) + 2
        (length,) = struct.unpack_from(">i", raw, at)
        end = at + 4 + length
        seen.append((int(partition), key, raw[at + 4 : end]))
        assert raw[end : end + 1] == b"\n"
        at = end + 1
    assert sorted(seen) == sorted((r.partition, r.key, r.value) for r in judged.records)
    named = run(kcat, "-b", topics.address, "-t", topics.output, *reading, "%h\n")
    assert named.count(b"eddy-model=rolling-hash/1") == named.count(b"eddy-source=") == len(seen)
