"""What goes wrong on the road, over the transport in memory: it costs only who is at fault (X11)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from prometheus_client import generate_latest

from export.memory import fit_memory
from pipeline.beside import NOTHING_BESIDE, Beside
from pipeline.columns import Committed, Membership, Part
from pipeline.config import Config
from pipeline.contract import CodecSpec, Contract, HeadSpec, Output, State, StepInput
from pipeline.errors import OutcomeUnknown
from pipeline.metrics import Metrics
from pipeline.model_file import load_graph, read_contract, write_contract
from pipeline.transport.base import Written
from pipeline.transport.memory import MemoryBroker, MemoryTransport
from pipeline.worker import Worker
from tests.models import rolling_hash, rolling_hash_reference
from tests.unit.test_worker import (
    check,
    counted,
    made,
    new_broker,
    outputs,
    partition_of,
    produce_steps,
    running,
    until,
)

POISON = 13


def value(x: int) -> bytes:
    return x.to_bytes(8, "little")


@pytest.fixture(scope="module")
def hash_model(tmp_path_factory) -> Path:
    return rolling_hash(tmp_path_factory.mktemp("hash") / "1")


def breaks_at(poison: int, file: Path, codec: CodecSpec, beside: Beside = NOTHING_BESIDE) -> Path:
    """h' = 31 h + x, y = h'; looks beyond the end of a table, which onnxruntime refuses, when x is ``poison``."""
    n = helper.make_node
    nodes = [
        n("Equal", ["x", "poison"], ["is_poison"]),
        n("Where", ["is_poison", "far", "zero"], ["at"]),
        n("Gather", ["table", "at"], ["nothing"]),
        n("Squeeze", ["h", "axis1"], ["h_flat"]),
        n("Mul", ["h_flat", "factor"], ["a"]),
        n("Add", ["a", "x"], ["b"]),
        n("Add", ["b", "nothing"], ["y"]),
        n("Unsqueeze", ["y", "axis1"], ["h2"]),
    ]
    constants = {"poison": poison, "far": 99, "zero": 0, "factor": 31, "axis1": [1], "table": [0]}
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "brittle",
        [info("x", TensorProto.INT64, ["B"]), info("h", TensorProto.INT64, ["B", 1])],
        [info("y", TensorProto.INT64, ["B"]), info("h2", TensorProto.INT64, ["B", 1])],
        [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    contract = Contract(
        "brittle",
        "1",
        (StepInput("x", "int64"),),
        (State("h", "h2", "int64", (1, 1), 0),),
        (Output("y", "int64", ()),),
        codec,
        HeadSpec("tensor"),
        batch_axis=0,
        time_axis=None,
    )
    write_contract(model, fit_memory(contract, beside))
    onnx.save(model, str(file))
    return file


@pytest.fixture(scope="module")
def brittle(tmp_path_factory) -> Path:
    return breaks_at(POISON, tmp_path_factory.mktemp("brittle") / "model.onnx", CodecSpec("tensor"))


async def test_a_record_that_makes_the_model_fail_is_a_dead_letter_and_all_others_are_exact(brittle):
    broker, rng = new_broker(), np.random.default_rng(3)
    want: dict[bytes, list[int]] = {}
    poisoned = 0
    for _ in range(300):
        key, x = b"k%d" % rng.integers(20), int(rng.integers(0, 1000))
        if rng.random() < 0.03:
            x, poisoned = POISON, poisoned + 1
        broker.produce("in", partition_of(key), key, value(x))
        if x != POISON:
            before = want.setdefault(key, [])
            before.append((before[-1] if before else 0) * 31 + x & (2**64 - 1))
    assert poisoned > 1
    worker, metrics = made(broker, brittle, max_batch=8)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 300 - poisoned and counted(broker, "in.dlq") == poisoned)
    got = {k: [y & (2**64 - 1) for y in ys] for k, ys in outputs(broker).items()}
    assert got == want
    dead = [e for _, _, e in broker.records("in.dlq")]
    assert all(dict(e.headers)["eddy-error"] == b"engine" and e.value == value(POISON) for e in dead)
    assert "eddy_takeovers_total" in generate_latest(metrics.registry).decode()


class Flaky(MemoryTransport):
    """Commits fail in every way they can: before anything is visible, and after all of it is."""

    def __init__(self, broker: MemoryBroker, config: Config, rng: np.random.Generator) -> None:
        super().__init__(broker, config)
        self._rng = rng
        self.failures = {"refused": 0, "lost request": 0, "lost answer": 0, "settle": 0}

    async def settle(self) -> None:
        if self._rng.random() < 0.3:
            self.failures["settle"] += 1
            raise OutcomeUnknown("no answer")
        await super().settle()

    async def commit(self, membership: Membership, parts: list[Part]) -> dict[int, Written]:  # type: ignore[override]
        dice = self._rng.random()
        if dice < 0.1:
            self.failures["lost request"] += 1
            self._settled = False
            raise OutcomeUnknown("the request was lost")
        written = await super().commit(membership, parts)
        if dice > 0.9:
            self.failures["lost answer"] += 1
            self._settled = False
            raise OutcomeUnknown("the answer was lost")
        return written


async def test_a_commit_whose_outcome_is_unknown_is_found_out_and_nothing_is_lost_or_repeated(hash_model, monkeypatch):
    monkeypatch.setattr("pipeline.commit.SETTLE_RETRY_S", (0.0,))
    broker, rng = new_broker(), np.random.default_rng(12)
    sent = produce_steps(broker, rng, 50, 3000)
    config = Config(model=str(hash_model), input="in", output="out", group="g", worker_id="w", max_steps=20)
    model = load_graph(hash_model)
    contract = read_contract(model, "hash")
    transport = Flaky(broker, config, rng)
    worker = Worker(config, transport, model, contract, Metrics("hash", "1"))
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) >= 3000)
    check(broker, sent)
    assert transport.failures["lost request"] > 2
    assert transport.failures["lost answer"] > 2
    assert transport.failures["settle"] > 1


async def test_a_worker_whose_membership_is_old_writes_nothing(hash_model):
    """A zombie: the group moved on without its hearing of it (X1)."""
    broker = new_broker()
    broker.produce("in", 0, b"a", value(5))
    worker, _ = made(broker, hash_model)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 1)
        group = broker.groups["g"]
        group.generation += 1
        broker.produce("in", 0, b"a", value(6))
        async with asyncio.timeout(10):
            while worker.ready:  # until the refusal has come
                await asyncio.sleep(0)
        assert counted(broker) == 1
        await broker.rebalance(group)
        await until(broker, task, lambda: counted(broker) == 2)
    assert outputs(broker) == {b"a": rolling_hash_reference(np.array([5, 6])).tolist()}


async def test_a_record_too_large_for_the_output_stops_its_partition_by_name_and_others_go_on(hash_model, caplog):
    broker = new_broker()
    broker.record_bytes_max = 1000
    broker.produce("in", 0, b"big", b"".join(value(i) for i in range(200)))
    broker.produce("in", 1, b"small", value(1))
    worker, _ = made(broker, hash_model)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 1)
        for i in range(5):
            broker.produce("in", 1, b"small", value(i))
        await until(broker, task, lambda: counted(broker) == 6)
        assert not worker.ready
    assert "partition 0 stops: a record of 1600 bytes" in caplog.text


async def test_a_partition_that_fails_a_check_stops_by_name_and_others_go_on(hash_model, caplog):
    broker = new_broker()
    for p in (0, 1):
        broker.produce("in", p, b"k%d" % p, value(1))
    worker, _ = made(broker, hash_model)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 2)
    del broker.groups["g"].offsets[0]  # as after seven idle days
    for p in (0, 1):
        broker.produce("in", p, b"k%d" % p, value(1))
    worker, _ = made(broker, hash_model)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 3)
        assert not worker.ready
    assert "partition 0: the changelog was written to but the group has no offset" in caplog.text


async def test_an_offset_that_a_tool_sets_is_noticed_before_any_state_was_saved(hash_model, caplog):
    """Where a group has begun is told in its changelog at once (X8)."""
    broker = new_broker()
    for p in (0, 1):
        broker.produce("in", p, b"k%d" % p, value(1))
    worker, _ = made(broker, hash_model)
    task = asyncio.create_task(worker.run())
    await until(broker, task, lambda: counted(broker) == 2)
    task.cancel()
    await asyncio.wait([task])
    assert not [e for _, _, e in broker.records("g-in-changelog") if e.value is not None], "no state was saved yet"
    broker.groups["g"].offsets[0] = Committed(0, "")
    worker, _ = made(broker, hash_model)
    async with running(worker) as task:
        broker.produce("in", 1, b"k1", value(1))
        await until(broker, task, lambda: counted(broker) == 3 and "partition 0" in caplog.text)
        assert not worker.ready
    assert "partition 0: the changelog was written to but the committed offset 0 has no metadata" in caplog.text
    assert counted(broker) == 3, "nothing was done twice"
