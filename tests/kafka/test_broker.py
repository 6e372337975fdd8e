"""The embedded broker: what a user of ``eddy broker`` and of ``Broker`` gets."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from services import embedded, jars
from services.broker import Broker, add_broker_parser
from services.jars import BrokerUnavailable
from services.ports import answers, is_free

pytestmark = pytest.mark.kafka


def produce_and_read(address: str, topic: str, value: bytes) -> bytes | None:
    """The first value of the topic, after one more was produced."""
    producer = Producer({"bootstrap.servers": address})
    producer.produce(topic, value)
    assert producer.flush(20) == 0
    consumer = Consumer({"bootstrap.servers": address, "group.id": topic + "-g", "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    message = consumer.poll(20)
    consumer.close()
    assert message is not None
    assert message.error() is None
    return message.value()


async def test_a_temporary_broker_serves_and_leaves_nothing() -> None:
    async with Broker.running() as broker:
        port, data, pid = int(broker.address.rpartition(":")[2]), broker.data, broker.pid
        assert port < 32_768
        assert answers(port)
        assert data.is_dir()
    assert not data.exists()
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    assert is_free(port)


def test_a_killed_broker_comes_back_with_its_data(own_broker: Broker) -> None:
    address = own_broker.address
    producer = Producer({"bootstrap.servers": address})
    admin = AdminClient({"bootstrap.servers": address})
    admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result(20)
    producer.produce("kept", b"before")
    assert producer.flush(20) == 0
    own_broker.kill()
    assert own_broker.pid is None
    own_broker.restart()
    assert own_broker.address == address
    assert produce_and_read(address, "kept", b"after") == b"before"


def test_where_java_is_slow_to_write_its_class_archive_the_broker_starts_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "eddy" / f"kafka-{jars.KAFKA_VERSION}"
    folder.mkdir(parents=True)
    for jar in jars.verified_jars(jars.cache_folder() / folder.name):
        (folder / jar.name).symlink_to(jar)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(embedded, "ARCHIVE_TIMEOUT_S", 0.0)
    said: list[str] = []
    broker = Broker(progress=lambda what, done, total: said.append(what))

    def start() -> bool:
        """Starts and stops it; whether it waited for the archive."""
        said.clear()
        broker.start()
        try:
            assert answers(int(broker.address.rpartition(":")[2]))
            assert not list(folder.glob("*.aot"))
            assert not list(folder.glob(".train-*"))
        finally:
            broker.stop()
        return "preparing Java's class archive" in said

    assert start()
    assert not start(), "the next start waits for it again"
    (tried,) = folder.glob("*.tried")
    os.utime(tried, (0, time.time() - embedded.ARCHIVE_AGAIN_S - 1))
    assert start(), "it is never tried again"


def test_a_broker_ends_with_the_process_that_started_it() -> None:
    script = (
        "from services.broker import Broker; import sys\n"
        "b = Broker(); b.start(); print(b.pid, b.data, flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert child.stdout is not None
    pid, data = child.stdout.readline().split()
    child.kill()
    child.communicate()
    end = time.monotonic() + 5
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < end, f"Java {pid} outlived its parent"
        time.sleep(0.02)
    subprocess.run(["rm", "-r", data], check=True)


def command(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_broker_parser(parser.add_subparsers())
    return parser.parse_args(["broker", *words])


def test_the_command_starts_finds_and_stops_one_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The jars stay where they are; only the state file moves, so a developer's own broker is left alone.
    monkeypatch.setattr("services.broker.state_file", lambda: tmp_path / "broker.json")

    def run(*words: str) -> tuple[int, dict[str, object]]:
        args = command(*words, "--json")
        code = args.handler(args)
        return code, json.loads(capsys.readouterr().out)

    assert run("status") == (1, {"running": False})
    code, started = run("start", "--data", str(tmp_path / "kept"))
    try:
        assert code == 0
        assert started["data"] == str(tmp_path / "kept")
        assert run("status") == (0, started)
        assert run("start") == (0, started)
    finally:
        assert run("stop") == (0, {"running": False, "stopped": True})
    assert run("status") == (1, {"running": False})
    assert run("stop") == (0, {"running": False, "stopped": False})
    assert (tmp_path / "kept" / "log" / "meta.properties").exists()


def test_stop_spares_a_process_that_got_the_brokers_pid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("services.broker.state_file", lambda: tmp_path / "broker.json")
    other = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    left = {"pid": other.pid, "address": "127.0.0.1:9092", "data": str(tmp_path / "x"), "temporary": False}
    (tmp_path / "broker.json").write_text(json.dumps(left))
    args = command("stop")
    assert args.handler(args) == 0
    assert "no broker is running" in capsys.readouterr().out
    assert other.poll() is None
    other.communicate(b"")
    assert other.returncode == 0


def test_a_jar_with_another_hash_is_never_run(tmp_path: Path) -> None:
    good = next(jar for jar in jars.read_lock() if jar.artifact == "jspecify")
    lock = tmp_path / "one.lock"
    lock.write_text(f"{good.group}:{good.artifact}:{good.version} {good.sha256} {good.size}\n")
    (tmp_path / good.filename).write_bytes(b"not a jar")
    with pytest.raises(BrokerUnavailable, match=r"jspecify-.*\.jar is not the jar that was locked"):
        jars.verified_jars(tmp_path, lock=lock)


def test_a_jar_that_cannot_be_had_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "one.lock"
    lock.write_text(f"org.example:nothing:1.0 {'0' * 64} 1\n")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(BrokerUnavailable, match=r"cannot fetch nothing-1\.0\.jar"):
        jars.verified_jars(tmp_path, lock=lock)


def test_a_taken_port_is_said(broker: Broker, tmp_path: Path) -> None:
    port = int(broker.address.rpartition(":")[2])
    with pytest.raises(BrokerUnavailable, match=f"port {port} on 127.0.0.1 is in use"):
        Broker(tmp_path, port).start()


def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match=r"cannot format .*num\.io\.threads"):
        Broker(tmp_path / "d", settings={"num.io.threads": "none"}).start()


def test_terminate_is_the_operators_signal(own_broker: Broker) -> None:
    pid = own_broker.pid
    began = time.monotonic()
    own_broker.terminate()
    assert time.monotonic() - began < 3
    assert own_broker.pid is None
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("unset", [("HOME",), ("HOME", "XDG_CACHE_HOME")])
def test_the_cache_is_found_without_a_home(unset: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in unset:
        monkeypatch.delenv(name, raising=False)
    assert jars.cache_folder().name == "eddy"
