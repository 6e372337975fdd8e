"""What exactly once costs and what it gives: ``python -m tests.benchmarks.guarantees [WHAT ...]``.

Every figure is a ratio or a difference of two runs that take turns on one real Kafka, with LSTM 2x128 (2 KiB of state a
stream): ``throughput`` and ``latency`` beside at_least_once, a ``hot`` stream's neighbours, many ``partitions``, what
goes to the ``changelog``, ``takeover`` from it and from a local copy, and the pause of a ``join``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.accounted import TRANSACTIONS
from tests.benchmarks.load import Load, committed, fill, pace, producer
from tests.benchmarks.peers import (
    START_S,
    Accounted,
    Eddy,
    Peer,
    Place,
    broker,
    cpu_s,
    drain,
    make_topics,
    paced,
    remove_topics,
    running,
)
from tests.benchmarks.throughput import export_model, machine, say

HEARTBEAT_MS = 1000
HOT, HOT_STEPS = 99_999, 100_000
"""Number of the stream whose answers nobody waits for, and how many there are."""
NEIGHBOURS = 200.0
"""Records a second of a hot stream's neighbours."""
GOT_S = 1.6
"""After so much of their time it has all its steps, and has still to do most of them."""
NEIGHBOURHOODS = {
    "alone": (False, GOT_S, True),
    "when a hot stream has its backlog": (True, GOT_S, True),
    "from before that comes": (True, 0.0, True),
    "from before that comes, as a plain consumer reads the input": (True, 0.0, False),
}
"""Whether there is a hot stream, from what second on it counts, and whether answers are read or the input itself."""


class AtLeastOnce(Eddy):
    name = "at least once"

    def command(self, place: Place) -> list[str]:
        return [*super().command(place), "--processing-guarantee", "at_least_once"]


class Seen:
    """When answers become visible, by partition: read committed, on a thread."""

    def __init__(self, address: str, topic: str, partitions: int) -> None:
        self.times: defaultdict[int, list[float]] = defaultdict(list)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(address, topic, partitions), daemon=True)
        self._thread.start()

    def _read(self, address: str, topic: str, partitions: int) -> None:
        for messages in committed(address, topic, partitions):
            now = time.monotonic()
            for message in messages:
                self.times[message.partition()].append(now)
            if self._over.is_set():
                return

    @property
    def count(self) -> int:
        return sum(map(len, list(self.times.values())))

    def until(self, count: int, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while self.count < count:
            if time.monotonic() > end:
                raise RuntimeError(f"{self.count} of {count} answers within {timeout_s:g} s")
            time.sleep(0.005)

    def first_after(self, at: float) -> float:
        """When the first answer came that did so after ``at``; waits for it."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            later = [t for times in list(self.times.values()) for t in times[-2000:] if t > at]
            if later:
                return min(later)
            time.sleep(0.002)
        raise RuntimeError("no answer within 120 s")

    def close(self) -> None:
        self._over.set()
        self._thread.join()


class Bench:
    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.a, self.folder = arguments, folder
        self.model = arguments.model or export_model(folder)
        self.made = 0
        self.found: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        with broker() as self.broker:
            for what in self.a.what or WHAT:
                say(what)
                WHAT[what](self)
        return self.found

    @contextmanager
    def place(self, partitions: int = 4, source: str | None = None) -> Iterator[Place]:
        """Topics of its own, gone afterwards."""
        self.made += 1
        target = f"out-{self.made}"
        source = source or f"in-{self.made}"
        address = self.broker.address
        make_topics(address, partitions, target, *([source] if source == f"in-{self.made}" else []))
        place = Place(address, self.model, source, target, f"group-{self.made}", partitions)
        yield place
        remove_topics(address, target, f"{place.group}-{source}-changelog", f"{source}.dlq")
        if source == f"in-{self.made}":
            remove_topics(address, source)

    def _broker_s(self) -> float:
        """CPU seconds of the broker so far."""
        pid = self.broker.pid
        if pid is None:
            raise RuntimeError("the broker has ended")
        return cpu_s(pid)

    def throughput(self) -> None:
        load = Load(self.a.streams, self.a.records)
        make_topics(self.broker.address, 4, "backlog")
        fill(self.broker.address, "backlog", load)
        rates, cpu = defaultdict(list), defaultdict(list)
        for i in range(self.a.rounds):
            for kind in in_turn((Eddy, AtLeastOnce), i):
                with self.place(source="backlog") as place:
                    done = drain(kind, place, load.records, self.broker.pid)
                    rates[kind].append(done.steps_per_s)
                    cpu[kind].append(done.cpu_s_per_million)
        ratios = [a / b for a, b in zip(rates[Eddy], rates[AtLeastOnce])]
        self.found["throughput, exactly once / at least once"] = spread(ratios)
        more = [a / b for a, b in zip(cpu[Eddy], cpu[AtLeastOnce])]
        self.found["the worker's CPU a record, exactly once / at least once"] = spread(more)
        self.found["records/s, exactly once"] = spread(rates[Eddy])

    def latency(self) -> None:
        p99 = defaultdict(list)
        for i in range(self.a.latency_rounds):
            for kind in in_turn((Eddy, AtLeastOnce), i):
                with self.place() as place:
                    p99[kind].append(self._paced(kind, place)["p99 ms"])
        more = [a - b for a, b in zip(p99[Eddy], p99[AtLeastOnce])]
        self.found["p99 ms at 2,000 records/s, exactly once"] = spread(p99[Eddy])
        self.found["p99 ms, exactly once less at least once"] = spread(more)

    def _paced(self, kind: Callable[..., Peer], place: Place, more: tuple[str, ...] = (), rate: float = 2000) -> Any:
        skip = int(3 * rate)
        load = Load(self.a.streams, skip + int(self.a.seconds * rate))
        return paced(kind, place, load, rate, skip, self.broker.pid, more)

    def partitions(self) -> None:
        p99, share, cores = [], [], []
        for i in range(self.a.rounds):
            for kind in in_turn((Eddy, Accounted), i):
                peers: list[Any] = []

                def started(*place: Any, kind: Any = kind, peers: list[Any] = peers) -> Any:
                    peers.append(kind(*place))
                    return peers[0]

                with self.place(64) as place:
                    told = self._paced(started, place)
                if kind is Eddy:
                    p99.append(told["p99 ms"])
                    cores.append(told["cores"])
                else:
                    taken = peers[0].loop_cpu_s()
                    share.append(taken[TRANSACTIONS] / sum(taken.values()))
        self.found["p99 ms at 2,000 records/s, 64 partitions"] = spread(p99)
        self.found["cores, 64 partitions"] = spread(cores)
        self.found["share of its event loop's CPU that goes into transactions"] = spread(share)

    def hot(self) -> None:
        """Neighbours of a stream that gets 100,000 steps at once, in its partition, beside them alone: of those that
        come when it has got them, and of all. Beside all of them what a plain consumer of the input has of the same:
        how long the machine, the producers and the broker take by themselves."""
        p99 = defaultdict(list)
        for i in range(self.a.rounds):
            for name, how in in_turn(tuple(NEIGHBOURHOODS.items()), i):
                with self.place(1) as place:
                    p99[name].append(self._neighbours(place, *how)["p99 ms"])
                say(f"p99 {p99[name][-1]:.0f} ms, {name}")
        alone = p99["alone"]
        for name, found in p99.items():
            self.found[f"neighbours' p99 ms, {name}"] = spread(found)
            if found is not alone:
                self.found[f"neighbours' p99 to that alone, {name}"] = spread([a / b for a, b in zip(found, alone)])

    def _neighbours(self, place: Place, hot: bool, skip_s: float, answered: bool) -> Any:
        """The backlog comes while they are at work."""
        load = Load(20, int(self.a.seconds * NEIGHBOURS))
        judged, skip = place if answered else replace(place, target=place.source), int(skip_s * NEIGHBOURS)
        with ThreadPoolExecutor() as beside:
            heating = beside.submit(self._heat, place, HOT_STEPS) if hot else None
            told = paced(lambda _, *more: Eddy(place, *more), judged, load, NEIGHBOURS, skip, self.broker.pid)
            if heating is not None and heating.result() > GOT_S - 1 and skip:
                say(f"it had its backlog only after {heating.result():.1f} s: it comes into what counts")
        return told

    @staticmethod
    def _heat(place: Place, steps: int) -> float:
        """When the neighbours have had 200 answers, which is after a second; seconds until it is done."""
        seen = Seen(place.address, place.target, place.partitions)
        try:
            seen.until(200, START_S)
        finally:
            seen.close()
        began = time.monotonic()
        feeder = producer(place.address, **{"linger.ms": 20, "batch.size": 1_000_000})
        values = Load(1, 1).values()
        for i in range(steps):
            feeder.produce(place.source, values[i % len(values)], Load.key(HOT))
            if i % 1000 == 0:
                feeder.poll(0)
        if feeder.flush(60):
            raise RuntimeError("the hot stream's records could not be written in 60 s")
        return time.monotonic() - began

    def changelog(self) -> None:
        """Of 2,000 records/s, with the default interval and with a snapshot a commit."""
        found = {}
        for name, more in (("by default", ()), ("one a commit", ("--snapshot-interval-ms", "0"))):
            with self.place() as place, running(Eddy, place, more) as peer:
                load = Load(self.a.streams, int(2000 * max(30, self.a.seconds)))
                pace_into(place, load, 2000)
                seen = Seen(place.address, place.target, place.partitions)
                seen.until(load.records, 60)
                seen.close()
                told = peer.counters()
                found[name] = told["snapshot_bytes_total"] / told["records_total"]
                self.found[f"changelog bytes per input, {name}"] = round(found[name], 1)
        self.found["changelog bytes per input, by default / one a commit"] = round(
            found["by default"] / found["one a commit"], 3
        )

    def takeover(self) -> None:
        """Killed under load and started again: from its assignment to its first answer."""
        streams = self.a.takeover_streams
        for name, directory in (("from the changelog", None), ("from a local copy", self.folder / "state")):
            more = ["--slots", str(streams + 1000), "--snapshot-interval-ms", "10000"]
            if directory is not None:
                more += ["--state-directory", str(directory)]
            with self.place() as place:
                seen = Seen(place.address, place.target, place.partitions)
                first = Load(streams, streams)
                fill_each(place, first)
                peer = Eddy(place, *more)
                seen.until(streams, 120)
                rate = 2000
                load = Load(streams, int(rate * self.a.minutes * 60))
                pace_into(place, load, rate)
                seen.until(streams + load.records, 120)
                peer.kill()
                took, cpu, its_cpu = [], [], []
                due = streams + load.records
                for _ in range(self.a.rounds):
                    fill(place.address, place.source, Load(1000, 1000))
                    due += 1000
                    peer = Eddy(place, *more)
                    say(f"the worker that takes over has its pages at {peer.url}")
                    peer.wait_for("assigned partitions")
                    assigned, before, beside = time.monotonic(), peer.cpu_s(), self._broker_s()
                    took.append(seen.first_after(assigned) - assigned)
                    cpu.append(peer.cpu_s() - before)
                    its_cpu.append(self._broker_s() - beside)
                    say(f"took over in {took[-1]:.2f} s, {cpu[-1]:.2f} s of CPU, {its_cpu[-1]:.2f} s of the broker's")
                    seen.until(due, 60)
                    told = peer.counters()
                    restored, read = told["restored_snapshots_total"], told["restore_bytes_total"]
                    again = told["replayed_records_total"]
                    peer.kill()
                seen.close()
                self.found[f"takeover of {restored:,.0f} streams, s, {name}"] = spread(took)
                self.found[f"the worker's CPU for it, s, {name}"] = spread(cpu)
                self.found[f"the broker's CPU for it, s, {name}"] = spread(its_cpu)
                self.found[f"bytes of snapshots a takeover reads, MB, {name}"] = round(read / 1e6)
                self.found[f"records applied again by a takeover, {name}"] = round(again)

    def join(self) -> None:
        """Two workers, a third joins, and leaves in order: the longest pause of partitions that stay, and of those
        that the third one had."""
        joined, left = [], []
        for _ in range(self.a.rounds):
            with self.place(12) as place:
                seen = Seen(place.address, place.target, place.partitions)
                peers = [Eddy(place, "--worker-id", f"w{i}") for i in range(2)]
                for peer in peers:
                    peer.wait_ready()
                rate, seconds = 2000, 30
                load = Load(self.a.streams, rate * seconds)
                feeder = threading.Thread(target=pace_into, args=(place, load, rate))
                feeder.start()
                seen.until(4 * rate, 60)
                before = [peer.last_assignment() for peer in peers]
                began = time.monotonic()
                third = Eddy(place, "--worker-id", "w2")
                third.wait_ready()
                kept = {p for peer, had in zip(peers, before) for p in had & peer.last_assignment()}
                its = third.last_assignment()
                seen.until(seen.count + 2 * rate, 60)
                leaving = time.monotonic()
                third.end()
                feeder.join()
                seen.until(load.records, 60)
                joined.append(max(longest_gap(seen.times[p], began, leaving) for p in kept))
                left.append(max(longest_gap(seen.times[p], leaving) for p in its))
                say(f"paused {joined[-1]:.2f} s at the join, {left[-1]:.2f} s when it left")
                seen.close()
                for peer in peers:
                    peer.end()
        self.found[f"longest pause of kept partitions at a join, s (heartbeat {HEARTBEAT_MS} ms)"] = spread(joined)
        self.found["longest pause of a leaving worker's partitions, s"] = spread(left)


WHAT: dict[str, Callable[[Bench], None]] = {
    "throughput": Bench.throughput,
    "latency": Bench.latency,
    "hot": Bench.hot,
    "partitions": Bench.partitions,
    "changelog": Bench.changelog,
    "takeover": Bench.takeover,
    "join": Bench.join,
}


def in_turn(some: tuple[Any, ...], i: int) -> tuple[Any, ...]:
    """Who comes first changes with the round."""
    return some if i % 2 == 0 else some[::-1]


def spread(values: list[float]) -> dict[str, float]:
    return {
        name: round(float(f(values)), 4) for name, f in (("median", statistics.median), ("least", min), ("most", max))
    }


def pace_into(place: Place, load: Load, rate: float) -> None:
    pace(place.address, place.source, load, rate, time.monotonic() + 0.5)


def fill_each(place: Place, load: Load) -> None:
    """One record of every stream."""
    feeder = producer(place.address, **{"linger.ms": 20, "batch.size": 1_000_000})
    values = load.values()
    for stream in range(load.streams):
        feeder.produce(place.source, values[stream % len(values)], Load.key(stream))
        if stream % 1000 == 0:
            feeder.poll(0)
    feeder.flush(60)


def longest_gap(times: list[float], after: float, before: float = float("inf")) -> float:
    at = np.array([t for t in times if after - 0.5 <= t < before])
    return float(np.diff(at).max()) if len(at) > 1 else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.guarantees", description=__doc__)
    parser.add_argument("what", nargs="*", help=f"of {', '.join(WHAT)}; all if none is named")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency-rounds", type=int, default=10)
    parser.add_argument("--records", type=int, default=500_000)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a latency run, after warming up [%(default)s]")
    parser.add_argument("--minutes", type=float, default=10.0, help="of load before a takeover [%(default)s]")
    parser.add_argument("--takeover-streams", type=int, default=100_000)
    parser.add_argument("--model", type=Path, metavar="FILE", help="LSTM 2x128 that was exported before")
    a = parser.parse_args()
    unknown = set(a.what) - WHAT.keys()
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(WHAT)}")
    with tempfile.TemporaryDirectory(prefix="eddy-bench-") as folder:
        found = Bench(a, Path(folder)).run()
    print(json.dumps({"machine": machine(), **found}, indent=2))


if __name__ == "__main__":
    main()
