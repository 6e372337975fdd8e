"""What the demo drives: a worker on an embedded Kafka, or one on ``memory`` inside this process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.partitioner import DefaultPartitioner

from pipeline.beside import Beside
from pipeline.config import Config
from pipeline.errors import EddyError
from pipeline.metrics import Metrics
from pipeline.model_file import load_graph, read_contract
from pipeline.transport.memory import MemoryBroker, MemoryTransport
from pipeline.worker import Worker
from services.cluster import connected, ensure_topics
from services.demos.base import Came, Sent
from services.embedded import DIE_WITH_PARENT, Broker
from services.http import Pages
from services.jars import KAFKA_VERSION, Progress
from services.tail import batches, following

PARTITIONS = 4
ASK_S = 0.03
READY_MAX_S = 30.0
STARTING = "starting the worker"


class Road(Protocol):
    name: str
    url: str
    """Of the worker's pages."""
    ended: asyncio.Future[str]
    """Done, with the worker's last words, if it ends by itself."""

    async def send(self, record: Sent) -> None: ...

    def outputs(self) -> AsyncIterator[list[Came]]:
        """From the beginning, in lists as they arrive; never ends."""


class KafkaRoad:
    """Over Kafka; the worker is another process."""

    def __init__(
        self, worker: WorkerProcess, consumer: AIOKafkaConsumer, producer: AIOKafkaProducer, topic: str
    ) -> None:
        self.name = f"Apache Kafka {KAFKA_VERSION}"
        self.url = worker.url
        self.ended = worker.ended
        self._consumer, self._producer, self._topic = consumer, producer, topic

    async def send(self, record: Sent) -> None:
        headers = [(name, value.encode()) for name, value in record.headers.items()]
        await self._producer.send(self._topic, record.value, record.key.encode(), headers=headers)

    async def outputs(self) -> AsyncIterator[list[Came]]:
        async for records in batches(self._consumer):
            yield [Came((r.key or b"").decode(), r.value or b"", dict(r.headers), r.timestamp) for r in records]


@asynccontextmanager
async def kafka_road(model: Path, topic_in: str, topic_out: str, progress: Progress) -> AsyncIterator[KafkaRoad]:
    """Everything is ready inside; at the end the worker drains and the broker is gone. Raises BrokerUnavailable."""
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker.running(progress=progress))
        async with connected(broker.address) as client:
            await ensure_topics(client, (topic_in, topic_out), PARTITIONS, 1)
        worker = await stack.enter_async_context(worker_process(model, topic_in, topic_out, broker.address, progress))
        consumer = await stack.enter_async_context(following(broker.address, topic_out, from_beginning=True))
        producer = AIOKafkaProducer(bootstrap_servers=broker.address)
        await producer.start()
        stack.push_async_callback(producer.stop)
        await worker.until_ready()
        progress(STARTING, 1, 1)
        yield KafkaRoad(worker, consumer, producer, topic_in)


@asynccontextmanager
async def worker_process(
    model: Path, topic_in: str, topic_out: str, address: str, progress: Progress
) -> AsyncIterator[WorkerProcess]:
    """`eddy run`, started; at the end it drains. Raises EddyError with its own words if it fails."""
    progress(STARTING, 0, 1)
    command = [sys.executable, "-P", "-m", "services", "run", "--model", str(model), "--input", topic_in]
    command += ["--output", topic_out, "--bootstrap-servers", address, "--http-port", "0", "--log-format", "json"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid()), *command),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us: we end the worker in order
    )
    worker = WorkerProcess(process)
    try:
        yield worker
    finally:
        await worker.end()
    if process.returncode:
        raise EddyError(f"the worker ended with exit code {process.returncode}: {worker.last_words}")


class WorkerProcess:
    """Reads a worker's log for the address of its pages, and for its last words."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = loop.create_future()
        self.last_words = "it said nothing"
        self._address: asyncio.Future[str] = loop.create_future()
        self._process = process
        self._reading = asyncio.create_task(self._read())

    @property
    def url(self) -> str:
        """Known once ready."""
        return self._address.result()

    async def until_ready(self) -> None:
        """Raises EddyError if the worker ends instead, or takes longer than READY_MAX_S."""
        try:
            async with asyncio.timeout(READY_MAX_S):
                await asyncio.wait([self._address, self.ended], return_when=asyncio.FIRST_COMPLETED)
                while not self.ended.done() and not await asyncio.to_thread(_answers, f"{self.url}/health/ready"):
                    await asyncio.wait([self.ended], timeout=ASK_S)
        except TimeoutError:
            raise EddyError(f"the worker was not ready after {READY_MAX_S:g} s: {self.last_words}") from None
        if self.ended.done():
            raise EddyError(f"the worker ended while starting: {self.last_words}")

    async def end(self) -> None:
        """SIGTERM, and all it still has to say."""
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        stderr = self._process.stderr
        while stderr is not None and (line := await stderr.readline()):
            text = line.decode("utf-8", "replace").strip()
            try:
                entry = json.loads(text)
            except ValueError:
                entry = {"level": "error", "message": text}  # `eddy: ...`, or a traceback
            if "url" in entry and not self._address.done():
                self._address.set_result(entry["url"])
            if entry.get("level") in ("warning", "error", "critical"):
                self.last_words = entry["message"]
        self.ended.set_result(self.last_words)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return False


class MemoryRoad:
    """Inside this process; nothing survives it."""

    def __init__(
        self, broker: MemoryBroker, url: str, ended: asyncio.Future[str], topic_in: str, topic_out: str
    ) -> None:
        self.name = MemoryTransport.name
        self.url = url
        self.ended = ended
        self._broker, self._topic_in, self._topic_out = broker, topic_in, topic_out
        self._partition = DefaultPartitioner()

    async def send(self, record: Sent) -> None:
        key = record.key.encode()
        partition = self._partition(key, list(range(PARTITIONS)), list(range(PARTITIONS)))
        headers = [(name, value.encode()) for name, value in record.headers.items()]
        self._broker.produce(self._topic_in, partition, key, record.value, headers)

    async def outputs(self) -> AsyncIterator[list[Came]]:
        arrived = self._broker.listen()
        logs = self._broker.topics[self._topic_out]
        seen = [0] * len(logs)
        while True:
            fresh = [entry for at, log in zip(seen, logs) for entry in log[at:]]
            seen = [len(log) for log in logs]
            if fresh:
                yield [Came((e.key or b"").decode(), e.value or b"", dict(e.headers), e.timestamp) for e in fresh]
            await arrived.wait()
            arrived.clear()


@asynccontextmanager
async def memory_road(model: Path, topic_in: str, topic_out: str) -> AsyncIterator[MemoryRoad]:
    """The same worker in this process; at the end it drains."""
    graph = load_graph(model)
    contract = read_contract(graph, str(model))
    broker = MemoryBroker()
    for topic in (topic_in, topic_out):
        broker.create(topic, PARTITIONS)
    config = Config(
        input=topic_in, output=topic_out, group=f"eddy-{contract.name}", worker_id="demo", bootstrap_servers="memory"
    )
    metrics = Metrics(contract.name, contract.model_version)
    worker = Worker(config, MemoryTransport(broker, config), graph, contract, metrics, Beside(model.parent))
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    with Pages("127.0.0.1", 0, metrics.registry, lambda: True, lambda: worker.ready) as pages:
        running = asyncio.create_task(worker.run())
        running.add_done_callback(lambda task: ended.set_result(str(None if task.cancelled() else task.exception())))
        try:
            yield MemoryRoad(broker, pages.url, ended, topic_in, topic_out)
        finally:
            worker.stop()
            await running
