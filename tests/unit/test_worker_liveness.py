"""Whatever drops a partition's memory, the others go on and its own bounds hold again afterwards."""

from __future__ import annotations

import numpy as np

from pipeline.config import Config
from pipeline.errors import OutcomeUnknown
from pipeline.metrics import Metrics
from pipeline.model_file import load_graph, read_contract
from pipeline.transport.memory import MemoryTransport
from pipeline.worker import Worker
from tests.unit.test_worker import (
    counted,
    hash_model,
    new_broker,
    running,
    until,
)
from tests.unit.test_worker_failures import brittle, value

__all__ = ["brittle", "hash_model"]


def made_over(transport_of, broker, file, **settings):
    config = Config(model=str(file), input="in", output="out", group="g", worker_id="w", **settings)
    model = load_graph(file)
    contract = read_contract(model, str(file))
    transport = transport_of(broker, config)
    return Worker(config, transport, model, contract, Metrics(contract.name, contract.model_version)), transport


class Failing(MemoryTransport):
    """The first commit with outputs fails before anything of it is visible."""

    failed = False

    async def commit(self, membership, parts):
        if not self.failed and any(len(p.outputs) for p in parts):
            self.failed = True
            self._settled = False
            raise OutcomeUnknown("the request was lost")
        await super().commit(membership, parts)


async def test_a_full_backlog_holds_its_partition_back_also_after_a_takeover(hash_model, monkeypatch):
    monkeypatch.setattr("pipeline.transport.memory.FETCH_RECORDS", 1000)
    broker, rng = new_broker(), np.random.default_rng(3)
    for _ in range(20_000):
        broker.produce("in", 0, b"k%d" % rng.integers(50), value(int(rng.integers(1000))))
    worker, transport = made_over(Failing, broker, hash_model, queue_bytes=65_536, max_steps=20)
    largest = 0

    def done() -> bool:
        nonlocal largest
        if transport.failed:
            largest = max(largest, *(m.backlog_bytes for m in worker._ownership.memories()), 0)
        return counted(broker) == 20_000

    async with running(worker) as task:
        await until(broker, task, done)
    assert transport.failed
    assert 0 < largest <= 65_536 + 1000 * 168, "at most one fetch more"
