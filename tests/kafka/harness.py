"""Eddy as its user has it, a process of its own, and plain Kafka clients that feed and judge it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic
from prometheus_client.parser import text_string_to_metric_families

START_S = 30.0
"""A worker imports, joins and takes over in about two seconds on a quiet machine."""
LOOK_S = 0.01
"""Between two looks at what tells nobody when it changes: a process's memory, a page."""

Value = bytes | None


def new_seed() -> int:
    """Of this run: ``EDDY_TEST_SEED``, or a fresh one; printed, so that a failing run says how to repeat it."""
    seed = int(os.environ.get("EDDY_TEST_SEED", "") or int.from_bytes(os.urandom(4), "big"))
    print(f"repeat with EDDY_TEST_SEED={seed}")
    return seed


def eventually(condition: Callable[[], Any], timeout_s: float, what: str) -> None:
    """Looks until it holds. Fails with ``what``."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}"
        time.sleep(LOOK_S)


# ---- the worker


class Worker:
    """``eddy run`` as a process. ``settings`` become flags; ``start`` may be called again after its end.

    ``lines`` holds what it has logged in this life, one object a line.
    """

    def __init__(
        self,
        address: str,
        model: Path,
        topic_in: str,
        topic_out: str,
        worker_id: str,
        *,
        program: str = "services",
        **settings: Any,
    ):
        """``program``: the module that is run, for a worker that is broken on purpose."""
        settings = {"group": f"{topic_in}-g", **settings}
        self.worker_id = worker_id
        self._program = program
        group = str(settings["group"])
        self.lane = f"{group}-{topic_in}-{worker_id}"
        """Its transactional id."""
        self._flags = [
            *("--bootstrap-servers", address, "--model", str(model), "--input", topic_in, "--output", topic_out),
            *("--worker-id", worker_id, "--http-port", "0", "--log-format", "json"),
            *(x for name, value in settings.items() for x in (f"--{name.replace('_', '-')}", str(value))),
        ]
        self._process: subprocess.Popen[str] | None = None
        self._said = threading.Condition()
        self._reader: threading.Thread | None = None
        self.lines: list[dict[str, Any]] = []

    def start(self) -> Worker:
        """Returns at once."""
        self.lines = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._program, "run", *self._flags],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._listen, args=(self._process, self.lines), daemon=True)
        self._reader.start()
        return self

    def _listen(self, process: subprocess.Popen[str], lines: list[dict[str, Any]]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            try:
                said = json.loads(line)
            except ValueError:
                said = {"message": line.rstrip("\n"), "level": "raw"}
            with self._said:
                lines.append(said)
                self._said.notify_all()
        with self._said:
            lines.append({"message": "(ended)", "level": "end"})
            self._said.notify_all()

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None, "not started"
        return self._process

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it said, for people."""
        with self._said:
            return "\n".join(f"{self.worker_id}| {line['message']}" for line in self.lines)

    def heard(self, words: str, timeout_s: float = START_S, *, times: int = 1) -> dict[str, Any]:
        """Waits until so many log lines of this life have these words, and returns the last of them."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.lines if words in line["message"]]

        def over() -> bool:
            return len(found()) >= times or (bool(self.lines) and self.lines[-1]["level"] == "end")

        with self._said:
            self._said.wait_for(over, timeout_s)
            lines = found()
        assert len(lines) >= times, f"{self.worker_id} did not say {words!r} within {timeout_s:g} s, but\n{self.log}"
        return lines[times - 1]

    def page(self, path: str) -> tuple[int, str]:
        """Status and body of one of its pages."""
        url = self.heard("pages at")["url"]
        try:
            with urllib.request.urlopen(url + path, timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    @property
    def ready(self) -> bool:
        return self.page("/health/ready")[0] == 200

    def wait_ready(self, timeout_s: float = START_S) -> Worker:
        eventually(lambda: self.alive and self.ready, timeout_s, f"{self.worker_id} is ready\n{self.log}")
        return self

    def metrics(self) -> dict[str, float]:
        """Every sample by its name, summed over its labels."""
        samples: dict[str, float] = {}
        for family in text_string_to_metric_families(self.page("/metrics")[1]):
            for sample in family.samples:
                samples[sample.name] = samples.get(sample.name, 0.0) + sample.value
        return samples

    @property
    def rss_bytes(self) -> int:
        """Resident memory, as the kernel counts it."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self.process.kill()
        self._gone(10)

    def terminate(self) -> None:
        """SIGTERM; returns at once."""
        self.process.send_signal(signal.SIGTERM)

    def ended(self, timeout_s: float = START_S) -> int:
        """Waits for its end, and returns its exit code."""
        return self._gone(timeout_s)

    def drained(self, timeout_s: float = START_S) -> None:
        """SIGTERM, and it must end well."""
        self.terminate()
        assert self.ended(timeout_s) == 0, self.log

    def _gone(self, timeout_s: float) -> int:
        code = self.process.wait(timeout_s)
        if self._reader is not None:
            self._reader.join(5)
        return code


@contextlib.contextmanager
def workers(*starting: Worker, later: Sequence[Worker] = ()) -> Iterator[None]:
    """Starts the first, and leaves none of all behind; after a failure their last words are printed."""
    all_of_them = (*starting, *later)
    try:
        for worker in starting:
            worker.start()
        yield
    except BaseException:
        for worker in all_of_them:
            print(worker.log[-6000:])
        raise
    finally:
        for worker in all_of_them:
            if worker.alive:
                worker.kill()


# ---- topics and records


class Topics(NamedTuple):
    """The two topics of a worker, on one broker."""

    address: str
    input: str
    output: str

    @property
    def dead_letters(self) -> str:
        return f"{self.input}.dlq"

    @property
    def partitions(self) -> int:
        """Of each of them; asks the broker."""
        return len(admin(self.address).list_topics(self.input, 10).topics[self.input].partitions)

    @property
    def changelog(self) -> str:
        """Of the group that ``worker`` gives."""
        return f"{self.input}-g-{self.input}-changelog"

    def worker(self, model: Path, worker_id: str = "w", **settings: Any) -> Worker:
        return Worker(self.address, model, self.input, self.output, worker_id, **settings)

    def drop(self) -> None:
        """Frees the broker's disk: for tests that fill it."""
        names = [self.input, self.output, self.dead_letters, self.changelog]
        client = admin(self.address)
        for future in client.delete_topics(names).values():
            with contextlib.suppress(Exception):  # one that was never made
                future.result(30)


def admin(address: str) -> AdminClient:
    """Hold it until its futures are done: they end with it."""
    return AdminClient({"bootstrap.servers": address, "log_level": 0})


def make_topic(address: str, name: str, partitions: int, **configs: str) -> str:
    """With the cluster's own number of replicas; ``max_message_bytes="1000"`` for ``max.message.bytes``."""
    config = {key.replace("_", "."): value for key, value in configs.items()}
    client = admin(address)
    client.create_topics([NewTopic(name, partitions, -1, config=config)])[name].result(30)

    def known() -> bool:  # a moment after it was made
        there = client.list_topics(name, 10).topics[name].partitions.values()
        return len(there) == partitions and all(p.leader >= 0 for p in there)

    eventually(known, 30, f"topic {name} is known")
    return name


def alter_topic(address: str, name: str, **configs: str) -> None:
    """Sets these of the topic's settings."""
    entries = [
        ConfigEntry(key.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for key, value in configs.items()
    ]
    resource = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=entries)
    client = admin(address)
    client.incremental_alter_configs([resource])[resource].result(30)


def make_topics(address: str, unique: Callable[[str], str], partitions: int = 4, **configs: str) -> Topics:
    """A new input and output."""
    return Topics(
        address,
        make_topic(address, unique("in"), partitions, **configs),
        make_topic(address, unique("out"), partitions, **configs),
    )


def new_producer(address: str, **more: Any) -> Producer:
    """Fast, without repetitions, and with Java's partitioner."""
    return Producer(
        {
            "bootstrap.servers": address,
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "linger.ms": 2,
            "queue.buffering.max.kbytes": 131_072,
            "log_level": 0,
            **more,
        }
    )


def produce(
    address: str,
    topic: str,
    records: Iterable[tuple[Value, Value]] | Iterable[tuple[Value, Value, list[tuple[str, bytes]]]],
    partition: int | None = None,
    **more: Any,
) -> int:
    """Writes (key, value) or (key, value, headers), returns how many; the partition is the key's unless it is given."""
    producer = new_producer(address, **more)
    where = {} if partition is None else {"partition": partition}
    failed: list[Any] = []

    def told(error: Any, _: Message) -> None:
        if error is not None:
            failed.append(error)

    n = 0
    for n, (key, value, *headers) in enumerate(records, 1):
        while True:
            try:
                producer.produce(topic, value, key, headers=headers[0] if headers else None, on_delivery=told, **where)
                break
            except BufferError:
                producer.poll(0.05)
        if n % 1024 == 0:
            producer.poll(0)
    assert producer.flush(60) == 0
    assert not failed, failed[0]
    return n
