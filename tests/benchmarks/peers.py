"""The peers as processes of their own: started, watched from outside, and ended.

What a peer has done is read from its group's committed offsets, the same for both; what it cost from /proc.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from services.embedded import Broker

COORDINATOR_STARTS = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)
"""What a broker says of the first group of its life."""
START_S = 60.0
ASK_S = 0.02


@dataclass(frozen=True)
class Place:
    """Where a peer works."""

    address: str
    model: Path
    source: str
    target: str
    group: str
    partitions: int


MEMORY, MEMORY_BYTES = Path("/dev/shm"), 4 << 30


@contextmanager
def broker() -> Iterator[Broker]:
    """A started broker whose files are in memory, where a file system there has room: a page of an index that the disk
    is slow to write stops every append behind it for seconds, and that is not what is measured."""
    here = MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES else None
    with tempfile.TemporaryDirectory(prefix="eddy-bench-", dir=here) as folder:
        it = Broker(Path(folder) / "broker")
        it.start()
        try:
            yield it
        finally:
            it.stop()


def make_topics(address: str, partitions: int, *names: str) -> None:
    admin = AdminClient({"bootstrap.servers": address, "log_level": 4})
    for done in admin.create_topics([NewTopic(n, partitions, 1) for n in names]).values():
        done.result()


def remove_topics(address: str, *names: str) -> None:
    """Those of them that there are."""
    admin = AdminClient({"bootstrap.servers": address, "log_level": 4})
    there = admin.list_topics(timeout=10).topics
    for done in admin.delete_topics([n for n in names if n in there]).values():
        done.result()


class Watch:
    """A group's committed records, asked from outside (an OffsetFetch: under a millisecond of the broker's time)."""

    def __init__(self, place: Place) -> None:
        self._topics = [TopicPartition(place.source, p) for p in range(place.partitions)]
        self._consumer = Consumer(
            {"bootstrap.servers": place.address, "group.id": place.group, "isolation.level": "read_uncommitted"}
        )

    def records(self) -> int:
        try:
            return sum(max(0, t.offset) for t in self._consumer.committed(self._topics, timeout=10))
        except KafkaException as error:
            if error.args[0].code() in COORDINATOR_STARTS:
                return 0
            raise

    def close(self) -> None:
        self._consumer.close()


class Others:
    """CPU taken on this machine by processes that are none of the benchmark's: what makes a figure noisy."""

    def __init__(self, *ours: int | None) -> None:
        self._ours = [pid for pid in (os.getpid(), *ours) if pid is not None]
        self._began, self._busy = time.monotonic(), self._now()

    def cores(self) -> float:
        """On average since this was made."""
        return max(0.0, self._now() - self._busy) / (time.monotonic() - self._began)

    def _now(self) -> float:
        """CPU seconds of the machine less ours. Steal counts: it is gone as well."""
        user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        total = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return total - sum(map(cpu_s, self._ours))


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and of its children that have ended, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


class Peer(ABC):
    """A process that answers the records of ``place.source`` on ``place.target``."""

    name: str

    def __init__(self, place: Place, *more: str) -> None:
        self.place = place
        self._process = subprocess.Popen(
            [sys.executable, *self.command(place), *more], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._said: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    @abstractmethod
    def command(self, place: Place) -> list[str]:
        """Arguments of Python."""

    @abstractmethod
    def wait_ready(self) -> None:
        """Returns when it consumes."""

    def counters(self) -> dict[str, float]:
        """Its own account, by name."""
        return {}

    def _read(self) -> None:
        if self._process.stderr is not None:
            for line in self._process.stderr:
                self._said.append(line)
                self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first line it writes that holds ``pattern``. Raises RuntimeError if it ends or falls silent."""
        end = time.monotonic() + START_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                raise RuntimeError(f"{self.name} did not say {pattern!r}: {''.join(self._said[-20:])}")
            if found := re.search(pattern, line):
                return found

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_s(self) -> float:
        """CPU seconds of all its threads so far, user and system."""
        return cpu_s(self._process.pid)

    def check(self) -> None:
        """Raises RuntimeError if it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self._process.returncode}: {''.join(self._said[-20:])}")

    def end(self) -> None:
        """SIGTERM; it must end in order. Raises RuntimeError if it does not."""
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            code = -signal.SIGKILL
        if code:
            raise RuntimeError(f"{self.name} ended with {code}: {''.join(self._said[-20:])}")

    def kill(self) -> None:
        """After something else went wrong."""
        self._process.kill()
        self._process.wait()


class Hand(Peer):
    name = "hand loop"

    def command(self, place: Place) -> list[str]:
        given = {k: getattr(place, k) for k in ("address", "model", "source", "target", "group")}
        return ["-m", "tests.benchmarks.handloop", *(a for k, v in given.items() for a in (f"--{k}", str(v)))]

    def wait_ready(self) -> None:
        self.wait_for("ready")


class Eddy(Peer):
    name = "worker"
    program = "services"
    _url: str | None = None

    def command(self, place: Place) -> list[str]:
        flags = {
            "model": place.model,
            "input": place.source,
            "output": place.target,
            "bootstrap-servers": place.address,
            "group": place.group,
            "worker-id": place.group,
            "http-port": 0,
            "log-format": "json",
        }
        return ["-m", self.program, "run", *(a for k, v in flags.items() for a in (f"--{k}", str(v)))]

    @property
    def url(self) -> str:
        if self._url is None:
            self._url = self.wait_for(r'"url": "([^"]+)"')[1]
        return self._url

    def last_assignment(self) -> set[int]:
        """The partitions that it said it was given last."""
        said = re.findall(r"assigned partitions \[([\d, ]*)\]", "".join(self._said))
        return {int(p) for p in said[-1].split(",") if p.strip()} if said else set()

    def wait_ready(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            self.check()
            try:
                with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5):
                    return
            except OSError:  # 503 until it is ready
                time.sleep(ASK_S)
        raise RuntimeError(f"worker was not ready after {START_S:g} s: {''.join(self._said[-20:])}")

    def counters(self) -> dict[str, float]:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as page:
            text = page.read().decode()
        found = re.findall(r"^eddy_(\w+)\{[^}]*\} ([-+.e\d]+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found if not name.endswith("_bucket")}


class Accounted(Eddy):
    """Slower by a few percent."""

    program = "tests.benchmarks.accounted"

    def loop_cpu_s(self) -> dict[str, float]:
        """What the time of its event loop went into; when it has ended."""
        found: dict[str, float] = json.loads(self.wait_for("loop_cpu_s").string)["loop_cpu_s"]
        return found


@contextmanager
def running(kind: Callable[..., Peer], place: Place, more: Sequence[str] = ()) -> Iterator[Peer]:
    """Ready inside; ended at the end."""
    peer = kind(place, *more)
    try:
        peer.wait_ready()
        yield peer
    except BaseException:
        peer.kill()
        raise
    peer.end()


@dataclass
class Drained:
    """A backlog worked off: from the first commit that was seen to the last."""

    steps_per_s: float
    cpu_s_per_million: float
    cores: float
    others: float
    """Cores that processes beside the benchmark's took meanwhile."""
    counters: dict[str, float] = field(default_factory=dict)
    """Differences between the two moments."""


def drain(kind: type[Peer], place: Place, records: int, broker: int | None, more: Sequence[str] = ()) -> Drained:
    """Runs a peer over a backlog of ``records`` records. Raises RuntimeError if it ends or stands still."""
    watch = Watch(place)
    peer = kind(place, *more)
    try:
        first = last = watch.records()
        moved = time.monotonic()
        while last == first:
            time.sleep(ASK_S)
            last = _moved(peer, watch, last, moved)
        others = Others(broker, peer.pid)
        first, began, cpu, before = last, time.monotonic(), peer.cpu_s(), peer.counters()
        moved = began
        while last < records:
            time.sleep(ASK_S)
            now = _moved(peer, watch, last, moved)
            if now != last:
                last, moved = now, time.monotonic()
        spent, burnt, beside, after = moved - began, peer.cpu_s() - cpu, others.cores(), peer.counters()
    except BaseException:
        peer.kill()
        raise
    finally:
        watch.close()
    peer.end()
    done = records - first
    differences = {name: value - before.get(name, 0.0) for name, value in after.items()}
    return Drained(done / spent, burnt / done * 1e6, burnt / spent, beside, differences)


def _moved(peer: Peer, watch: Watch, last: int, since: float) -> int:
    peer.check()
    now = watch.records()
    if now == last and time.monotonic() - since > START_S:
        raise RuntimeError(f"{peer.name} stands still at {last} records")
    return now


def paced(
    kind: Callable[..., Peer],
    place: Place,
    load: Any,
    rate: float,
    skip: int,
    broker: int | None,
    more: Sequence[str] = (),
) -> dict[str, float]:
    """Latency under an open loop of ``rate`` records a second: what `load.judge` found, the cores that the peer took,
    and those that others took."""
    with running(kind, place, more) as peer:
        start = time.monotonic() + 1.5
        arguments = {
            "address": place.address,
            "partitions": place.partitions,
            "streams": load.streams,
            "records": load.records,
            "rate": rate,
            "start": start,
            "skip": skip,
        }
        shared = [a for k, v in arguments.items() for a in (f"--{k}", str(v))]
        module = [sys.executable, "-m", "tests.benchmarks.load"]
        judge = subprocess.Popen([*module, "judge", "--topic", place.target, *shared], stdout=subprocess.PIPE)
        pacer = subprocess.Popen([*module, "pace", "--topic", place.source, *shared])
        try:
            others, cpu = Others(broker, peer.pid), peer.cpu_s()
            told, _ = judge.communicate(timeout=load.records / rate + 60)
            burnt = peer.cpu_s() - cpu
            if judge.returncode or pacer.wait(30):
                raise RuntimeError(f"latency of {peer.name}: judge {judge.returncode}, producer {pacer.returncode}")
            beside = others.cores()  # both are reaped: their time is this process's children's
        finally:
            judge.kill()
            pacer.kill()
    return {**json.loads(told), "cores": burnt / (load.records / rate), "others' cores": beside}
