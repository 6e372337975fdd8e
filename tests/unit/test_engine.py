"""The engine: what it computes in the arena is what the plain graph computes outside, on any thread, in any batch."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from pipeline.contract import CodecSpec, Constant, Contract, HeadSpec, Output, State, StepInput
from pipeline.engine import Engine, Run
from pipeline.engine.arena import PIECE_BYTES, DeviceTensor, HostTensor
from pipeline.engine.graph import FIRST
from pipeline.errors import ContractError, ModelError, ProviderError
from pipeline.model_file import load_graph, read_contract, write_contract
from pipeline.scheduler import Limits, plan
from tests.models import lstm_tensor, rolling_hash, rolling_hash_reference

LIMITS = Limits()


async def run_poll(
    engine: Engine, slots, columns, fresh, *, limits=LIMITS, snapshot=None, kept=None, n_kept=None
) -> Run:
    calls = plan(slots, limits, engine.threads)
    n = len(slots)
    snap = np.unique(slots) if snapshot is None else snapshot
    run = engine.prepare(calls, columns, n, fresh, kept, n if n_kept is None else n_kept, snap)
    done = asyncio.get_running_loop().create_future()
    engine.submit(run, lambda r: done.set_result(r) if not done.done() else None)
    finished: Run = await done
    return finished


def opened(file: Path, reads: tuple[str, ...], **options) -> tuple[Engine, Contract]:
    model = load_graph(file)
    contract = read_contract(model, str(file))
    return Engine(model, contract, reads, slots=64, **options), contract


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("time_axis", [True, False])
async def test_a_hash_that_never_forgets_is_exact_over_many_polls(tmp_path, threads, time_axis):
    engine, _ = opened(rolling_hash(tmp_path, time_axis=time_axis), ("y",), threads=threads)
    engine.start(asyncio.get_running_loop().call_soon_threadsafe)
    fresh = np.ones(64 + FIRST, np.bool_)
    rng = np.random.default_rng(7)
    seen: dict[int, list[int]] = {}
    got: dict[int, list[int]] = {}
    last: dict[int, int] = {}
    for n in (1, 3, 700, 40, 2000):
        slots, x = rng.integers(FIRST, FIRST + 40, n), rng.integers(0, 2**40, n)
        run = await run_poll(engine, slots, (x,), fresh, limits=Limits(16, 100, 8 if time_axis else 1))
        assert run.error is None
        for slot, step, y in zip(slots.tolist(), x.tolist(), run.outputs[0].tolist()):
            seen.setdefault(slot, []).append(step)
            got.setdefault(slot, []).append(y)
        last.update(zip(run.snapshot_slots.tolist(), run.rows.view(np.int64)[:, 0].tolist()))
    engine.stop()
    for slot, steps in seen.items():
        want = rolling_hash_reference(np.array(steps))
        assert got[slot] == want.tolist()
        assert last[slot] == want[-1], "the row copied after the last call is the state"


@pytest.mark.parametrize("time_axis", [True, False])
async def test_what_a_stream_takes_by_itself_is_told(tmp_path, monkeypatch, time_axis):
    engine, _ = opened(rolling_hash(tmp_path, time_axis=time_axis), ("y",))
    told = []
    monkeypatch.setattr(engine.costs, "ran_few", told.append)
    slots = np.array([FIRST] * 20 + [FIRST + i for i in range(1, 11)])
    limits = Limits(16, 100, 8 if time_axis else 1)
    run = await run_poll(engine, slots, (np.arange(30),), np.ones(64 + FIRST, np.bool_), limits=limits)
    (few,) = told
    # Of the first one: 8, 8 and 4 steps, or each by itself but the first, which runs with those of all others.
    assert few.calls == (3 if time_axis else 19)
    assert few.part == ((8, few.longest[1]) if time_axis else (19, few.took_s))
    assert 0 < few.least_s <= few.longest[1] <= few.took_s <= run.seconds
    await run_poll(engine, np.arange(FIRST, FIRST + 10), (np.arange(10),), np.zeros(64 + FIRST, np.bool_))
    assert len(told) == 1


@pytest.mark.parametrize("device", [False, True])
async def test_rows_move_between_slots_and_engines_byte_for_byte(tmp_path, device):
    """What a snapshot holds, written elsewhere, goes on as if nothing had happened; on a device by its own graphs."""
    file = lstm_tensor(tmp_path / "1")
    engine, _ = opened(file, ("y",))
    other, _ = opened(file, ("y",))
    if device:
        tensor = DeviceTensor(64 + FIRST, other.arena.row_bytes // 4, "float32", "cpu", ["CPUExecutionProvider"])
        other.arena._tensors["float32"] = tensor
    rng = np.random.default_rng(1)
    x = rng.standard_normal((20, 64)).astype(np.float32)
    slot = np.full(10, FIRST)
    fresh = np.ones(64 + FIRST, np.bool_)
    first = await run_poll(engine, slot, (x[:10],), fresh)
    whole = await run_poll(engine, slot, (x[10:],), fresh)
    elsewhere = np.array([FIRST + 33])
    other.arena.write(elsewhere, first.rows)
    assert (other.arena.read(elsewhere) == first.rows).all()
    again = await run_poll(other, np.full(10, elsewhere[0]), (x[10:],), np.zeros(64 + FIRST, np.bool_))
    assert np.array_equal(again.outputs[0], whole.outputs[0])
    assert np.array_equal(again.rows, whole.rows)


@pytest.mark.parametrize("device", [False, True])
def test_more_rows_than_are_written_at_a_time_go_where_they_belong(tmp_path, device):
    """As a takeover brings them: cut out of wider values, a whole number of pieces and a rest."""
    engine, _ = opened(lstm_tensor(tmp_path / "1"), ("y",))
    arena, width = engine.arena, engine.arena.row_bytes
    n = 2 * (PIECE_BYTES // width) + 7
    tensor = (
        DeviceTensor(n + FIRST, width // 4, "float32", "cpu", ["CPUExecutionProvider"])
        if device
        else HostTensor(n + FIRST, width // 4, "float32")
    )
    arena._tensors["float32"] = tensor
    rng = np.random.default_rng(3)
    values = rng.integers(0, 256, (n, 32 + width), np.uint8)
    slots = FIRST + rng.permutation(n)
    arena.write(slots, values[:, 32:])
    assert (arena.read(slots) == values[:, 32:]).all()


async def test_the_lstm_in_the_arena_is_the_lstm_outside(tmp_path):
    file = lstm_tensor(tmp_path / "1")
    engine, contract = opened(file, ("y",))
    plain = ort.InferenceSession(str(file))
    rng = np.random.default_rng(2)
    slots = rng.integers(FIRST, FIRST + 20, 500)
    x = rng.standard_normal((500, 64)).astype(np.float32)
    run = await run_poll(engine, slots, (x,), np.ones(64 + FIRST, np.bool_))
    for slot in np.unique(slots):
        feeds = {s.input: np.zeros(s.shape, s.dtype) for s in contract.states}
        want = plain.run(["y"], {"x": x[slots == slot][:, None], **feeds})[0][:, 0]
        assert np.abs(run.outputs[0][slots == slot] - want).max() < 1e-5


async def test_only_the_outputs_that_are_wanted_are_kept(tmp_path):
    engine, _ = opened(rolling_hash(tmp_path), ("y",))
    slots, x = np.array([2, 3, 2, 2, 3]), np.arange(5)
    kept = np.array([-1, -1, -1, 0, 1])
    run = await run_poll(engine, slots, (x,), np.ones(66, np.bool_), kept=kept, n_kept=2)
    assert run.outputs[0].tolist() == [
        rolling_hash_reference(np.array([0, 2, 3]))[-1],
        rolling_hash_reference(np.array([1, 4]))[-1],
    ]


def small_model(states: list[State], constants: tuple[Constant, ...] = ()) -> tuple[onnx.ModelProto, Contract]:
    """y = x plus the sum of every state's first element; each state grows by one a step. Any dtype and batch axis."""
    kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int32": TensorProto.INT32}
    nodes, inputs, outputs = [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B"])], []
    total = "x"
    for i, s in enumerate(states):
        dims: list[str | int] = ["B" if a == s.batch_axis else d for a, d in enumerate(s.shape)]
        inputs.append(helper.make_tensor_value_info(s.input, kinds[s.dtype], dims))
        outputs.append(helper.make_tensor_value_info(s.output, kinds[s.dtype], dims))
        one = f"one{i}"
        nodes.append(helper.make_node("Constant", [], [one + "f"], value_float=1.0))
        nodes.append(helper.make_node("Cast", [one + "f"], [one], to=kinds[s.dtype]))
        nodes.append(helper.make_node("Add", [s.input, one], [s.output]))
        axes = [a for a in range(len(s.shape)) if a != s.batch_axis]
        nodes.append(helper.make_node("Cast", [s.input], [f"f{i}"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("ReduceMax", [f"f{i}"], [f"m{i}"], axes=axes, keepdims=0))
        nodes.append(helper.make_node("Add", [total, f"m{i}"], [f"t{i}"]))
        total = f"t{i}"
    for c in constants:
        inputs.append(helper.make_tensor_value_info(c.name, TensorProto.FLOAT, list(c.shape)))
        nodes.append(helper.make_node("Add", [total, c.name], [f"with_{c.name}"]))
        total = f"with_{c.name}"
    nodes.append(helper.make_node("Identity", [total], ["y"]))
    outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B"]))
    graph = helper.make_graph(nodes, "small", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    contract = Contract(
        "small",
        "1",
        (StepInput("x", "float32"),),
        tuple(states),
        (Output("y", "float32", ()),),
        CodecSpec("tensor"),
        HeadSpec("tensor"),
        batch_axis=0,
        time_axis=None,
        constants=constants,
    )
    write_contract(model, contract)
    return model, contract


async def test_states_of_several_dtypes_and_batch_axes_with_initial_values_and_a_constant():
    states = [
        State("a", "a2", "float32", (1, 1, 3), 1),
        State("b", "b2", "float16", (2, 1), 1, (5.0, 5.0)),
        State("c", "c2", "int32", (2, 3, 1), 2, (7,) * 6),
        State("d", "d2", "float32", (1, 4), 0, (1.0, 2.0, 3.0, 40.0)),
    ]
    model, contract = small_model(states, (Constant("bias", "float32", (), (1000.0,)),))
    engine = Engine(model, contract, ("y",), slots=8)
    slots = np.array([2, 5, 2, 5, 2])
    run = await run_poll(engine, slots, (np.zeros(5, np.float32),), np.ones(10, np.bool_), limits=Limits(8, 64, 1))
    assert run.outputs[0].tolist() == [1052.0, 1052.0, 1056.0, 1056.0, 1060.0]
    assert engine.arena.row_bytes == 4 * 3 + 2 * 2 + 4 * 6 + 4 * 4


async def test_a_model_without_states_is_served_too():
    model, contract = small_model([])
    engine = Engine(model, contract, ("y",), slots=4)
    run = await run_poll(engine, np.array([2, 3]), (np.array([1, 2], np.float32),), np.ones(6, np.bool_))
    assert run.outputs[0].tolist() == [1.0, 2.0]
    assert run.rows.shape == (2, 0)


async def test_a_run_that_raises_hands_its_error_back(tmp_path):
    """Division by zero of integers: a model that fails while it runs."""
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["y"]),
        helper.make_node("Identity", ["h"], ["h2"]),
    ]
    table = helper.make_tensor("table", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    state = ["B", 1]
    graph = helper.make_graph(
        nodes,
        "fails",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["B"]), helper.make_tensor_value_info("h", 1, state)],
        [helper.make_tensor_value_info("y", 1, ["B"]), helper.make_tensor_value_info("h2", 1, state)],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    contract = Contract(
        "fails",
        "1",
        (StepInput("x", "int64"),),
        (State("h", "h2", "float32", (1, 1), 0),),
        (Output("y", "float32", ()),),
        CodecSpec("tensor"),
        HeadSpec("tensor"),
        batch_axis=0,
        time_axis=None,
    )
    write_contract(model, contract)
    engine = Engine(model, contract, ("y",), slots=4)
    bad = await run_poll(engine, np.array([2]), (np.array([9]),), np.ones(6, np.bool_))
    assert bad.error is not None
    assert "out of" in str(bad.error)
    good = await run_poll(engine, np.array([2]), (np.array([1]),), np.ones(6, np.bool_))
    assert good.outputs[0].tolist() == [2.0]


# ---- providers


def test_a_missing_provider_is_an_error_or_a_loud_fall_back(tmp_path, caplog):
    file = rolling_hash(tmp_path)
    with pytest.raises(ProviderError, match="'CUDAExecutionProvider' is not in this onnxruntime"):
        opened(file, ("y",), providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    engine, _ = opened(file, ("y",), providers=["CUDAExecutionProvider"], provider_policy="prefer")
    assert engine.providers == ["CPUExecutionProvider"]
    assert "CUDAExecutionProvider" in caplog.text
    assert "running on CPUExecutionProvider" in caplog.text


@pytest.mark.skipif(
    "AzureExecutionProvider" not in ort.get_available_providers(), reason="this onnxruntime has no second provider"
)
def test_a_provider_that_takes_no_nodes_is_an_error_or_a_loud_fall_back(tmp_path, caplog):
    """onnxruntime itself falls back to the CPU without a word."""
    file = rolling_hash(tmp_path)
    for providers in (["AzureExecutionProvider"], ["AzureExecutionProvider", "CPUExecutionProvider"]):
        with pytest.raises(ProviderError, match="AzureExecutionProvider takes none of the model's nodes"):
            opened(file, ("y",), providers=providers)
    opened(file, ("y",), providers=["AzureExecutionProvider"], provider_policy="prefer")
    assert "AzureExecutionProvider takes none" in caplog.text


# ---- contracts and files that do not fit


def test_a_file_that_is_no_model_is_named(tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match=r"model\.onnx: not a readable ONNX model"):
        load_graph(file)


def test_a_model_without_contract_is_refused(tmp_path):
    model = load_graph(rolling_hash(tmp_path))
    del model.metadata_props[:]
    with pytest.raises(ContractError, match="no contract in the model's metadata"):
        read_contract(model, "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": (State("h", "gone", "int64", (1, 1), 0, (7,)),)}, "state output 'gone'"),
        ({"states": (State("h", "h_next", "float32", (1, 1), 0),)}, "'h' is int64 in the graph, float32"),
        ({"states": (State("h", "h_next", "int64", (1, 3), 0),)}, "has shape"),
        ({"states": ()}, "the graph needs input 'h'"),
        ({"steps": (StepInput("z", "int64"),)}, "step input 'z'"),
        ({"outputs": (Output("y", "int64", (2,)),)}, "output 'y' has shape"),
        ({"time_axis": 1}, "time_axis 1 with batch_axis 1"),
        ({"batching": "sometimes"}, "batching is 'sometimes'"),
        ({"head": HeadSpec("tensor", "nowhere")}, "no output named 'nowhere'"),
        ({"constants": (Constant("sr", "int64", (), (1,)),)}, "constant input 'sr'"),
    ],
)
def test_a_contract_that_does_not_fit_its_graph_is_refused_by_name(tmp_path, change, message):
    from dataclasses import replace

    model = load_graph(rolling_hash(tmp_path))
    contract = read_contract(model, "m")
    with pytest.raises(ContractError, match=message):
        write_contract(model, replace(contract, **change))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"version": 9}', "version is 9"),
        ('{"version": 1}', "is missing"),
    ],
)
def test_a_contract_that_cannot_be_read_says_where(text, message):
    with pytest.raises(ContractError, match=message):
        Contract.from_json(text)


def test_a_contract_comes_back_as_it_was_written(tmp_path):
    contract = read_contract(load_graph(lstm_tensor(tmp_path / "1")), "m")
    assert Contract.from_json(contract.to_json()) == contract


@pytest.mark.parametrize("states", [1, 2])
async def test_a_row_is_read_before_it_is_written_where_no_state_comes_from_what_it_was(states):
    """y is x less the step before; the new state is x itself, so the graph alone would let it be written first."""
    names = [f"s{i}" for i in range(states)]
    nodes = [helper.make_node("Identity", ["x"], [f"{n}_next"]) for n in names]
    nodes += [helper.make_node("Sub", ["x", names[-1]], ["y"])]
    given, made = (
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", 1]) for n in values]
        for values in (("x", *names), ("y", *(f"{n}_next" for n in names)))
    )
    model = helper.make_model(
        helper.make_graph(nodes, "delay", given, made), opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    contract = Contract(
        "delay",
        "1",
        (StepInput("x", "float32", (1,)),),
        tuple(State(n, f"{n}_next", "float32", (1, 1), 0) for n in names),
        (Output("y", "float32", (1,)),),
        CodecSpec("tensor"),
        HeadSpec("tensor"),
        0,
        None,
    )
    engine = Engine(model, contract, ("y",), slots=8)
    x = np.arange(1, 7, dtype=np.float32)[:, None]
    run = await run_poll(engine, np.full(6, FIRST), (x,), np.ones(8 + FIRST, np.bool_), limits=Limits(time=1))
    assert run.error is None
    assert run.outputs[0][:, 0].tolist() == [1, 1, 1, 1, 1, 1]
