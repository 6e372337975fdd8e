"""Raw onnxruntime, a loop batched by hand, and the worker, in turns on one real Kafka.

Every peer has the machine to itself while it is measured; only the broker runs all the time, and the backlog is there
before. What is shown is the median of the rounds with the least and the most: machines are noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from services.jars import KAFKA_VERSION
from tests.benchmarks.load import Load, answers, fill
from tests.benchmarks.peers import Eddy, Hand, Others, Peer, Place, broker, drain, make_topics, paced, remove_topics

TOLERANCE = 1e-5
CHECKED = 20
"""Streams whose answers are compared."""
QUIET_S, QUIET_CORES = 3, 0.1
WARM_S = 3.0
"""Of a latency run, not counted."""

Samples = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=1_000_000, help="backlog of one step each [%(default)s]")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2000.0, help="records/s of the latency runs; 0: none")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a latency run, after warming up [%(default)s]")
    parser.add_argument("--model", type=Path, metavar="FILE", help="LSTM 2x128 that was exported before")
    parser.add_argument("--only", choices=("hand", "worker"), help="leave the other one out")
    parser.add_argument(
        "--quiet",
        type=float,
        default=0.0,
        metavar="S",
        help="wait before each measurement, at most so long, for others",
    )
    parser.add_argument("--worker", default="", metavar="FLAGS", help="further flags of eddy run, in one word")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="eddy-bench-") as folder:
        result = Bench(a, Path(folder)).run()
    if a.json:
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        show(result)


class Bench:
    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.a, self.folder = arguments, folder
        self.kinds: list[type[Peer]] = [k for k, n in ((Hand, "hand"), (Eddy, "worker")) if arguments.only in (None, n)]
        self.more = {Eddy: arguments.worker.split(), Hand: []}
        self.samples: Samples = defaultdict(list)
        self.checks: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        a = self.a
        self.model = a.model or export_model(self.folder)
        say("starting Apache Kafka")
        with broker() as self.broker:
            self.address = self.broker.address
            self.backlog = Load(a.streams, a.records)
            make_topics(self.address, a.partitions, "backlog")
            say(f"writing a backlog of {a.records:,} records")
            fill(self.address, "backlog", self.backlog)
            for i in range(a.rounds):
                say(f"round {i + 1} of {a.rounds}: raw onnxruntime")
                self._raw()
                self._throughput(i)
                if a.rate:
                    self._latency(i)
        return {
            "machine": machine(),
            "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items()},
            "samples": dict(self.samples),
            "checks": self.checks,
        }

    def _raw(self) -> None:
        self._wait()
        command = [sys.executable, "-m", "tests.benchmarks.raw", "--model", str(self.model)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        for name, value in found.items():
            self._add(f"raw {name} steps/s", value)
        self._add("raw steps/s", max(found.values()))

    def _place(self, kind: type[Peer], what: str, source: str, i: int) -> Place:
        target = f"{what}-out-{kind.__name__.lower()}-{i}"
        make_topics(self.address, self.a.partitions, target)
        return Place(self.address, self.model, source, target, f"{target}-group", self.a.partitions)

    def _wait(self) -> None:
        """Until others have left the machine alone for QUIET_S."""
        end = time.monotonic() + self.a.quiet
        quiet = 0
        while quiet < QUIET_S and time.monotonic() < end:
            others = Others(self.broker.pid)
            time.sleep(1)
            quiet = quiet + 1 if others.cores() < QUIET_CORES else 0

    def _clear(self, place: Place) -> None:
        """What a peer leaves would be cleaned and compacted while the next one is measured."""
        remove_topics(self.address, place.target, f"{place.group}-{place.source}-changelog", f"{place.source}.dlq")

    def _throughput(self, i: int) -> None:
        found = {}
        for kind in self.kinds:
            say(f"round {i + 1}: {kind.name}, backlog")
            self._wait()
            place = self._place(kind, "backlog", "backlog", i)
            d = drain(kind, place, self.a.records, self.broker.pid, self.more[kind])
            self._add(f"{kind.name} steps/s", d.steps_per_s)
            self._add(f"{kind.name} CPU-s per million", d.cpu_s_per_million)
            self._add(f"{kind.name} cores", d.cores)
            self._add(f"{kind.name} others' cores", d.others)
            if kind is Eddy:
                self._account(d.counters)
            chosen = range(0, self.a.streams, max(1, self.a.streams // CHECKED))
            found[kind] = answers(self.address, place.target, place.partitions, chosen)
            self._clear(place)
        self._compare(found)

    def _account(self, c: dict[str, float]) -> None:
        """The worker's own counters, of the measured stretch."""
        steps = c["steps_total"]
        self._add("worker commits", c["commit_seconds_count"])
        self._add("worker ms per commit", c["commit_seconds_sum"] / c["commit_seconds_count"] * 1e3)
        self._add("worker polls", c["polls_total"])
        self._add("worker mean batch", c["batch_size_sum"] / c["batch_size_count"])
        self._add("worker steps per call", steps / c["batches_total"])
        self._add("worker engine us per step", c["engine_seconds_sum"] / steps * 1e6)
        self._add("worker changelog bytes per step", c["snapshot_bytes_total"] / c["output_records_total"])

    def _compare(self, found: dict[type[Peer], tuple[int, dict[int, Any]]]) -> None:
        """Each answered every record once; both gave the same answers."""
        check: dict[str, Any] = {"answers": {k.name: n for k, (n, _) in found.items()}}
        wrong = [k.name for k, (n, _) in found.items() if n != self.a.records]
        if len(found) == 2:
            (_, one), (_, other) = found.values()
            check["largest difference"] = max(float(np.abs(one[s] - other[s]).max()) for s in one)
            check["streams compared"] = len(one)
            if check["largest difference"] > TOLERANCE:
                wrong.append("values")
        self.checks.append(check)
        if wrong:
            raise SystemExit(f"wrong answers of {', '.join(wrong)} for {self.a.records} records: {check}")

    def _latency(self, i: int) -> None:
        skip = int(WARM_S * self.a.rate)
        load = Load(self.a.streams, skip + int(self.a.seconds * self.a.rate), seed=1)
        for kind in self.kinds:
            say(f"round {i + 1}: {kind.name}, {self.a.rate:g} records/s")
            self._wait()
            source = f"paced-in-{kind.__name__.lower()}-{i}"
            make_topics(self.address, self.a.partitions, source)
            place = self._place(kind, "paced", source, i)
            told = paced(kind, place, load, self.a.rate, skip, self.broker.pid, self.more[kind])
            self._clear(place)
            for name in ("p50 ms", "p99 ms", "max ms", "cores", "others' cores"):
                self._add(f"{kind.name} paced {name}", told[name])

    def _add(self, name: str, value: float) -> None:
        self.samples[name].append(value)


def export_model(folder: Path) -> Path:
    """LSTM 2x128, in a process of its own: torch's threads and memory would stay in this one."""
    say("exporting LSTM 2x128")
    code = "import sys, pathlib, tests.models as m; m.lstm_tensor(pathlib.Path(sys.argv[1]))"
    target = folder / "lstm" / "1"
    subprocess.run([sys.executable, "-c", code, str(target)], check=True, stdout=sys.stderr)
    return target / "model.onnx"


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    packages = ("onnxruntime", "numpy", "aiokafka", "confluent-kafka")
    return {
        "cpus": os.cpu_count(),
        "cpu": cpu[0] if cpu else platform.machine(),
        "python": platform.python_version(),
        "kafka": KAFKA_VERSION,
        **{name: version(name) for name in packages},
    }


def show(result: dict[str, Any]) -> None:
    m, a = result["machine"], result["settings"]
    print(", ".join(f"{k} {v}" for k, v in m.items()))
    print(
        f"LSTM 2x128, {a['streams']} streams, {a['partitions']} partitions,"
        f" {a['records']:,} records of one step, {a['rounds']} rounds"
    )
    width = max(map(len, result["samples"]))
    print(f"\n{'':{width}} {'median':>12} {'least':>12} {'most':>12}")
    for name, values in result["samples"].items():
        print(f"{name:{width}} {figure(statistics.median(values))} {figure(min(values))} {figure(max(values))}")
    middle = {name: statistics.median(values) for name, values in result["samples"].items()}
    for other in ("raw", "hand loop"):
        if "worker steps/s" in middle and f"{other} steps/s" in middle:
            ratios = [w / o for w, o in zip(result["samples"]["worker steps/s"], result["samples"][f"{other} steps/s"])]
            print(f"worker / {other}, by round: {', '.join(f'{r:.2f}' for r in ratios)}")
    for check in result["checks"]:
        print(f"checked: {check}")


def figure(value: float) -> str:
    return f"{value:>12,.0f}" if abs(value) >= 1000 else f"{value:>12.3g}"


if __name__ == "__main__":
    main()
