"""Streams that feed themselves, over the transport in memory: the same text whatever happens to the workers."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.memory import fit_memory
from pipeline.beside import NOTHING_BESIDE, Beside
from pipeline.contract import CodecSpec, Contract, HeadSpec, Output, State, StepInput
from pipeline.model_file import write_contract
from pipeline.transport.memory import MemoryBroker
from tests.models import FACTOR, GAIN, OFFSET, PRIME
from tests.unit.test_worker import counted, made, new_broker, partition_of, running, until

LETTERS = "abcdefghijklmnopqrstuvwxyzé \n"


def talking(file: Path, size: int, codec: CodecSpec, beside: Beside = NOTHING_BESIDE) -> Path:
    """Its next token depends on every token before it, in integers: one step lost or repeated changes all after."""
    n = helper.make_node
    constants = {"prime": PRIME, "gain": GAIN, "offset": OFFSET, "factor": FACTOR, "size": size}
    nodes = [
        n("Squeeze", ["h", "axis1"], ["h_flat"]),
        n("Mul", ["h_flat", "factor"], ["a"]),
        n("Mul", ["x", "gain"], ["b"]),
        n("Add", ["a", "b"], ["c"]),
        n("Add", ["c", "offset"], ["d"]),
        n("Mod", ["d", "prime"], ["e"]),
        n("Unsqueeze", ["e", "axis1"], ["h_next"]),
        n("Mod", ["h_next", "size"], ["letter"]),
        n("Sub", ["letters", "letter"], ["distance"]),
        n("Abs", ["distance"], ["far"]),
        n("Neg", ["far"], ["near"]),
        n("Cast", ["near"], ["logits"], to=TensorProto.FLOAT),
    ]
    initial = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in constants.items()]
    initial.append(numpy_helper.from_array(np.array([1], np.int64), "axis1"))
    initial.append(numpy_helper.from_array(np.arange(size)[None], "letters"))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "talking_hash",
        [info("x", TensorProto.INT64, ["B"]), info("h", TensorProto.INT64, ["B", 1])],
        [info("logits", TensorProto.FLOAT, ["B", size]), info("h_next", TensorProto.INT64, ["B", 1])],
        initial,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    contract = Contract(
        "talking-hash",
        "1",
        (StepInput("x", "int64"),),
        (State("h", "h_next", "int64", (1, 1), 0, (7,)),),
        (Output("logits", "float32", (size,)),),
        codec,
        HeadSpec("generate", "logits", settings={"max_steps": 150, "temperature": 1.0}),
        batch_axis=0,
        time_axis=None,
    )
    write_contract(model, fit_memory(contract, beside))
    onnx.save(model, str(file))
    return file


@pytest.fixture(scope="module")
def talking_hash(tmp_path_factory) -> Path:
    codec = CodecSpec("text", settings={"unit": "characters", "vocabulary": list(LETTERS)})
    return talking(tmp_path_factory.mktemp("talk") / "model.onnx", len(LETTERS), codec)


def prompt(broker: MemoryBroker, key: bytes, text: str, *headers: tuple[str, bytes]) -> None:
    broker.produce("in", partition_of(key), key, text.encode(), headers)


def finished(broker: MemoryBroker) -> int:
    return sum(any(h[0] == "eddy-finish" for h in e.headers) for _, _, e in broker.records("out"))


def texts(broker: MemoryBroker) -> dict[tuple[bytes, bytes], str]:
    """(key, eddy-source) -> text, having checked that the steps are continuous and end once."""
    got: dict[tuple[bytes, bytes], str] = defaultdict(str)
    over: set[tuple[bytes, bytes]] = set()
    for _, _, e in broker.records("out"):
        headers = dict(e.headers)
        stream = (e.key, headers["eddy-source"])
        assert stream not in over, "nothing comes after the last piece"
        assert int(headers["eddy-step"]) == len(got[stream]), "steps are continuous"
        got[stream] += e.value.decode()
        if "eddy-finish" in headers:
            over.add(stream)
    assert over == set(got)
    return got


PROMPTS = [(b"k%d" % (i % 9), f"prompt {'abcdefghi'[i % 9]} é {i * 'x'}".replace(" ", "\n")) for i in range(24)]


async def undisturbed(file: Path, **settings) -> dict[tuple[bytes, bytes], str]:
    broker = new_broker()
    for key, text in PROMPTS:
        prompt(broker, key, text, ("eddy-seed", b"11"))
    worker, _ = made(broker, file, **settings)
    async with running(worker) as task:
        await until(broker, task, lambda: finished(broker) == len(PROMPTS))
    return texts(broker)


async def test_streams_generate_side_by_side_and_a_new_record_waits_for_its_streams_generation(talking_hash):
    alone = await undisturbed(talking_hash, max_batch=1)
    together = await undisturbed(talking_hash, engine_threads=2)
    assert alone == together
    assert len(alone) == len(PROMPTS)
    assert all(len(text) == 150 for text in alone.values())


async def test_generations_survive_the_death_of_their_worker_at_any_step(talking_hash):
    want = await undisturbed(talking_hash)
    broker, rng = new_broker(), np.random.default_rng(4)
    for key, text in PROMPTS:
        prompt(broker, key, text, ("eddy-seed", b"11"))
    lives = 0
    while finished(broker) < len(PROMPTS):
        worker, _ = made(broker, talking_hash, worker_id=f"w{lives}", generate_flush_ms=0)
        task = asyncio.create_task(worker.run())
        enough = counted(broker) + int(rng.integers(1, 60))
        await until(broker, task, lambda n=enough: counted(broker) >= n or finished(broker) == len(PROMPTS))
        for _ in range(int(rng.integers(0, 20))):  # at any moment of what comes next
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        lives += 1
    assert lives > 10, "the generations were cut many times"
    assert finished(broker) == len(PROMPTS)
    assert texts(broker) == want


async def test_settings_come_with_the_record_and_a_wrong_one_is_a_dead_letter(talking_hash):
    broker = new_broker()
    prompt(broker, b"a", "x", ("eddy-max-steps", b"3"), ("eddy-temperature", b"0"))
    prompt(broker, b"b", "x", ("eddy-temperature", b"warm"))
    prompt(broker, b"c", "caf\u00e9 \u4e2d", ("eddy-max-steps", b"3"))
    prompt(broker, b"d", "x", ("eddy-max-steps", b"0"))
    worker, _ = made(broker, talking_hash)
    async with running(worker) as task:
        await until(broker, task, lambda: finished(broker) == 1 and counted(broker, "in.dlq") == 2)
    assert [len(t) for t in texts(broker).values()] == [3]
    dead = {e.key: dict(e.headers) for _, _, e in broker.records("in.dlq")}
    assert dead[b"b"]["eddy-error"] == b"header"
    assert b"eddy-temperature" in dead[b"b"]["eddy-message"]
    assert dead[b"c"]["eddy-error"] == b"vocabulary"


async def test_a_null_record_waits_for_the_generation_and_ends_the_stream(talking_hash):
    broker = new_broker()
    settings = (("eddy-max-steps", b"20"), ("eddy-temperature", b"0"))
    prompt(broker, b"a", "hello", *settings)
    broker.produce("in", partition_of(b"a"), b"a", None)
    prompt(broker, b"a", "hello", *settings)
    worker, _ = made(broker, talking_hash)
    async with running(worker) as task:
        await until(broker, task, lambda: finished(broker) == 2)
    first, second = texts(broker).values()
    assert first == second, "the stream began anew"
    assert len(first) == 20


async def test_half_a_character_waits_in_the_row_across_a_restart(talking_hash):
    broker = new_broker()
    settings = (("eddy-max-steps", b"0"),)
    p = partition_of(b"a")
    broker.produce("in", p, b"a", b"caf\xc3", settings)
    worker, _ = made(broker, talking_hash)
    async with running(worker) as task:
        await until(broker, task, lambda: p in broker.groups["g"].offsets and broker.groups["g"].offsets[p].offset == 1)
    greedy = (("eddy-max-steps", b"5"), ("eddy-temperature", b"0"))
    broker.produce("in", p, b"a", b"\xa9", greedy)
    worker, _ = made(broker, talking_hash)
    async with running(worker) as task:
        await until(broker, task, lambda: finished(broker) == 1)
    whole = new_broker()
    whole.produce("in", p, b"a", "café".encode(), greedy)
    worker, _ = made(whole, talking_hash)
    async with running(worker) as task:
        await until(whole, task, lambda: finished(whole) == 1)
    assert list(texts(broker).values()) == list(texts(whole).values())


async def test_streams_move_between_workers_while_they_generate(talking_hash):
    """Slots are as many as streams: those of a partition that left must come free, and clean, for the next to come."""
    want = await undisturbed(talking_hash)
    broker = new_broker()
    for key, text in PROMPTS:
        prompt(broker, key, text, ("eddy-seed", b"11"))
    streams = len({key for key, _ in PROMPTS})
    first, _ = made(broker, talking_hash, worker_id="a", slots=streams, engine_threads=2)
    first._engine.costs.run_s = lambda steps: 1e9  # so that every run is on its thread when the partitions leave
    async with running(first) as task:
        for turn in range(6):
            second, _ = made(broker, talking_hash, worker_id=f"b{turn}", slots=streams)
            before = counted(broker)
            async with running(second) as other:
                await until(broker, other, lambda n=before: counted(broker) >= n + 40 or finished(broker) == len(want))
        await until(broker, task, lambda: finished(broker) == len(want))
        assert first._slots.used == streams
    assert texts(broker) == want


async def test_a_slot_keeps_nothing_of_the_stream_that_had_it_before(talking_hash):
    broker = new_broker()
    broker.produce("in", 0, b"a", b"caf\xc3", [("eddy-max-steps", b"0")])
    broker.produce("in", 0, b"a", None)
    broker.produce("in", 0, b"b", b"x", [("eddy-max-steps", b"5")])
    worker, _ = made(broker, talking_hash, slots=1)
    async with running(worker) as task:
        await until(broker, task, lambda: finished(broker) == 1 or counted(broker, "in.dlq") == 1)
    assert counted(broker, "in.dlq") == 0


async def test_a_poll_feeds_no_more_streams_than_the_queue_has_room_for_their_rows(talking_hash, monkeypatch):
    broker = new_broker()
    for i in range(300):
        prompt(broker, b"k%d" % i, "x", ("eddy-max-steps", b"4"))
    worker, _ = made(broker, talking_hash, queue_bytes=65_536)
    rows: list[int] = []
    submit = worker._engine.submit
    monkeypatch.setattr(worker._engine, "submit", lambda run, done: (rows.append(len(run.rows)), submit(run, done)))
    async with running(worker) as task:
        await until(broker, task, lambda: finished(broker) == 300)
    assert all(len(text) == 4 for text in texts(broker).values())
    assert max(rows) * 238 <= 65_536, "records and generated steps of a poll, with a row of 238 bytes each"


async def test_a_record_cuts_a_generation_short_where_it_may(talking_hash):
    """A worker dies in between, too: what was shown of the first text stays, and the second follows it."""
    broker = new_broker()
    settings = {"on_input": "interrupt", "generate_flush_ms": 0}
    endless = ("eddy-max-steps", b"1000000")
    prompt(broker, b"k", "a", endless)
    prompt(broker, b"other", "a")
    worker, _ = made(broker, talking_hash, **settings)
    task = asyncio.create_task(worker.run())
    await until(broker, task, lambda: counted(broker) > 40)
    prompt(broker, b"k", "b", endless)
    await until(broker, task, lambda: finished(broker) == 2)
    task.cancel()
    await asyncio.wait([task])
    worker, _ = made(broker, talking_hash, "w2", **settings)
    async with running(worker) as task:
        broker.produce("in", partition_of(b"k"), b"k", None)
        await until(broker, task, lambda: finished(broker) == 3)
    got = texts(broker)  # having checked that steps are continuous and end once
    assert len(got) == 3
    finishes = [(e.key, dict(e.headers).get("eddy-finish")) for _, _, e in broker.records("out")]
    assert sorted(f for f in finishes if f[1]) == [(b"k", b"interrupt")] * 2 + [(b"other", b"length")]
    assert [len(t) for (key, _), t in got.items() if key == b"other"] == [150]


async def test_a_record_waits_for_the_generation_unless_it_may_interrupt(talking_hash):
    broker = new_broker()
    prompt(broker, b"k", "a", ("eddy-max-steps", b"300"))
    prompt(broker, b"k", "b", ("eddy-max-steps", b"5"))
    worker, _ = made(broker, talking_hash)
    async with running(worker) as task:
        await until(broker, task, lambda: finished(broker) == 2)
    assert sorted(map(len, texts(broker).values())) == [5, 300]
