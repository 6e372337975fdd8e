"""What keeping streams costs beside the model: ``python -m tests.benchmarks.streams``. Milliseconds, the least of some.

Snapshots to records and back, the host tier in memory and in its file, a local copy of a changelog. CPU time is shown
beside it where others have the machine too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.columns import U8, Changelog
from pipeline.streams.local_copy import LocalCopy, Source
from pipeline.streams.snapshots import Newest, Snapshots, restore
from pipeline.streams.tier import Tier

DIGEST = b"12345678"
STRETCH = 4096
FEW = (1, 16, 64)


class Bench:
    """``streams`` of ``row_bytes`` each."""

    def __init__(self, streams: int, row_bytes: int, rounds: int, folder: Path) -> None:
        self.n, self.row_bytes, self.rounds, self.folder = streams, row_bytes, rounds, folder
        self.keys = [b"stream-%08d" % i for i in range(streams)]
        self.rows: U8 = np.random.default_rng(0).integers(0, 256, (streams, row_bytes), np.uint8)
        self.applied = np.arange(streams)

    def show(self, what: str, run: Callable[[], object], before: Callable[[], object] = lambda: None) -> None:
        best = cpu = float("inf")
        for _ in range(self.rounds):
            before()
            began, began_cpu = time.perf_counter(), time.process_time()
            run()
            best, cpu = min(best, time.perf_counter() - began), min(cpu, time.process_time() - began_cpu)
        print(f"{what:54} {best * 1e3:10.2f} {cpu * 1e3:10.2f}")

    def run(self) -> None:
        print(f"{'':54} {'ms':>10} {'CPU ms':>10}")
        snapshots = Snapshots.of(self.applied, self.keys, self.applied, self.rows)
        self.show(f"snapshots of {self.n} streams to records", lambda: snapshots.records(DIGEST, 0))
        values = snapshots.records(DIGEST, 0).values
        assert isinstance(values, np.ndarray)
        log = [
            Changelog(self.keys[a : a + STRETCH], values[a : a + STRETCH], self.applied[a : a + STRETCH], a + STRETCH)
            for a in range(0, self.n, STRETCH)
        ]
        self.show(f"changelog of {self.n} snapshots to columns", lambda: self._restored(log))
        self._copy(log)
        self._tier("memory", self.n * self.row_bytes)
        self._tier("file", 0)

    def _restored(self, log: Iterable[Changelog], room_bytes: int = 0) -> None:
        newest = Newest(self.row_bytes, room_bytes)
        for stretch in log:
            newest.add(stretch)
        assert len(restore(newest, DIGEST)) == self.n

    def _copy(self, log: list[Changelog]) -> None:
        source = Source("bench", "changelog", bytes(16), 0)
        copy = LocalCopy.open(self.folder, source)
        assert copy is not None

        def append() -> None:
            for stretch in log:
                copy.append(stretch, 0)

        self.show(f"local copy: {self.n} snapshots appended", append, copy.reset)
        self.show("local copy: read to columns", lambda: self._restored(copy.read(), copy.nbytes))
        self.show("local copy: rewritten", lambda: copy.adopt(copy.rewrite()))
        copy.close()

    def _tier(self, where: str, bytes_max: int) -> None:
        tier = Tier(self.row_bytes, bytes_max, self.folder)
        many = min(self.n, 10_000)
        keys, rows, numbers = self.keys[:many], self.rows[:many], self.applied[:many]

        def put(n: int) -> None:
            tier.put(0, keys[:n], numbers[:n], rows[:n], numbers[:n])

        self.show(f"tier in {where}: {many} rows put", lambda: put(many), lambda: tier.forget(0, keys))
        self.show(f"tier in {where}: {many} rows taken", lambda: tier.take(0, keys), lambda: put(many))
        for n in FEW:
            few = keys[:n]
            self.show(f"tier in {where}: {n} put", partial(put, n), partial(tier.forget, 0, few))
            self.show(f"tier in {where}: {n} taken", partial(tier.take, 0, few), partial(put, n))
        strangers = [b"stranger-%d" % i for i in range(64)]
        self.show(f"tier in {where}: asked for 64 that it has not", lambda: tier.take(0, strangers))
        tier.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.streams", description=__doc__)
    parser.add_argument("--streams", type=int, default=100_000)
    parser.add_argument("--row-bytes", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="eddy-bench-") as folder:
        Bench(a.streams, a.row_bytes, a.rounds, Path(folder)).run()


if __name__ == "__main__":
    main()
