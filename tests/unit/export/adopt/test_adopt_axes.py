"""Streams' axes, the time axis, the hop, constants and beginnings: found by running, served by a worker."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import TensorProto

from export.adopt import adopt
from export.adopt.report import as_json, table
from tests.unit.export.adopt.graphs import Maker, elman, lstm
from tests.unit.export.adopt.serving import by_hand, check, floats, found, served, steps


@pytest.mark.parametrize("opset", [11, 13, 17])
async def test_time_and_streams_are_found_in_an_lstm_of_any_opset(tmp_path, opset):
    m = Maker(opset)
    for name, dims in (("x", ["t", "b", 8]), ("h", [1, "b", 16]), ("c", [1, "b", 16])):
        m.give(name, dims)
    y = m.lstm("x", "h", "c", 8, 16, "hn", "cn")
    m.op("Reshape", m.op("Transpose", y, perm=[0, 2, 1, 3]), m.value([0, 0, 16]), out="y")
    for name, dims in (("y", ["t", "b", 16]), ("hn", [1, "b", 16]), ("cn", [1, "b", 16])):
        m.show(name, dims)
    zeros = np.zeros((1, 1, 16), np.float32)
    states = {"h": ("hn", zeros), "c": ("cn", zeros)}
    result = await check(m.save(tmp_path), tmp_path, lambda s: {"x": s[None, None]}, states, "y", steps(9, 8))
    assert (result["time_axis"], result["hop"], result["batching"]) == (0, 1, "batched")
    assert [s["batch_axis"] for s in result["states"]] == [1, 1]


@pytest.mark.parametrize(
    ("x", "state"),
    [
        (["batch", "time", 8], [1, "time", 16]),
        (["N", "N", 8], [1, "N", 16]),
        (["a", "b", 8], ["c", "d", "e"]),
    ],
)
def test_declared_symbols_that_lie_are_not_believed(tmp_path, x, state):
    result = found(lstm(tmp_path, x, state), tmp_path, shapes=["h=1,1,16", "c=1,1,16"] if state[0] == "c" else [])
    assert (result["time_axis"], result["hop"]) == (0, 1)
    assert [s["batch_axis"] for s in result["states"]] == [1, 1]


def test_rows_that_a_symbol_calls_streams_are_time_where_runs_say_so(tmp_path):
    result = found(lstm(tmp_path, ["batch", 1, 8], [1, 1, 16]), tmp_path)
    assert (result["time_axis"], result["batching"]) == (0, "relaxed")
    assert [s["batch_axis"] for s in result["states"]] == [1, 1]


async def test_a_time_axis_that_the_graph_does_not_follow_is_none(tmp_path):
    """Declared free, but traced over one step: what is behind it is never read."""
    m = Maker()
    m.give("x", ["b", "t", 6])
    m.give("h", ["b", 6])
    one = m.op("Gather", "x", m.value(np.array(0)), axis=1)
    m.op("Tanh", m.op("Add", one, m.op("Mul", "h", m.value(0.5))), out="hn")
    m.op("Unsqueeze", "hn", m.value([1]), out="y")
    m.show("y", ["b", "t", 6])
    m.show("hn", ["b", 6])
    states = {"h": ("hn", np.zeros((1, 6), np.float32))}
    result = await check(m.save(tmp_path), tmp_path, lambda s: {"x": s[None, None]}, states, "y", steps(5, 6))
    assert (result["time_axis"], result["hop"]) == (None, 1)
    assert "reads only the first 1" in result["notes"][0]


async def test_channels_first_with_a_cache(tmp_path):
    m = Maker()
    m.give("feats", ["b", 6, "t"])
    m.give("cache", ["b", 6, 2])
    joined = m.op("Concat", "cache", "feats", axis=2)
    m.op("Conv", joined, m.random(4, 6, 3), out="y")
    m.op("Slice", joined, m.value([-2]), m.value([2**31]), m.value([2]), out="cache_out")
    m.show("y", ["b", 4, "t"])
    m.show("cache_out", ["b", 6, 2])
    states = {"cache": ("cache_out", np.zeros((1, 6, 2), np.float32))}
    file = m.save(tmp_path)
    result = await check(file, tmp_path, lambda s: {"feats": s[None, :, None]}, states, "y", steps(9, 6))
    assert (result["time_axis"], result["hop"]) == (2, 1)


@pytest.mark.parametrize(("hop", "window"), [(4, 8), (160, 400)])
async def test_the_hop_is_the_shortest_step_that_is_the_same_in_pieces(tmp_path, hop, window):
    m = Maker()
    m.give("audio", ["b", "n"])
    m.give("tail", ["b", window - hop])
    joined = m.op("Concat", "tail", "audio", axis=1)
    frames = m.op("Conv", m.op("Unsqueeze", joined, m.value([1])), m.random(4, 1, window, scale=0.1), strides=[hop])
    m.op("Transpose", frames, perm=[0, 2, 1], out="y")
    m.op("Slice", joined, m.value([hop - window]), m.value([2**31]), m.value([1]), out="tail_out")
    m.show("y", ["b", "frames", 4])
    m.show("tail_out", ["b", window - hop])
    states = {"tail": ("tail_out", np.zeros((1, window - hop), np.float32))}
    result = await check(m.save(tmp_path), tmp_path, lambda s: {"audio": s[None]}, states, "y", steps(6, hop))
    assert (result["time_axis"], result["hop"]) == (1, hop)
    assert result["inputs"][0]["step"] == [hop]


async def test_two_step_inputs_of_different_layouts_and_a_loop_over_time(tmp_path):
    """A Scan in the graph carries the state over the steps of a call; the second input has time first, streams last."""
    from onnx import helper

    m = Maker()
    m.give("x", ["t", "b", 5])
    m.give("gate", ["t", "b"])
    m.give("h", ["b", 5])
    m.value(0.7, name="decay")
    body = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["g", "one"], ["g2"]),
            helper.make_node("Mul", ["xs", "g2"], ["gated"]),
            helper.make_node("Mul", ["before", "decay"], ["kept"]),  # `decay` and `one` are the outer graph's
            helper.make_node("Add", ["kept", "gated"], ["after"]),
            helper.make_node("Tanh", ["after"], ["seen"]),
        ],
        "step",
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
            for n, s in (("before", None), ("xs", None), ("g", None))
        ],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("after", "seen")],
    )
    m.value([1], name="one")
    m.op("Scan", "h", "x", "gate", outs=["hn", "y"], num_scan_inputs=2, body=body)
    m.show("y", ["t", "b", 5])
    m.show("hn", ["b", 5])
    file = m.save(tmp_path)
    rng = np.random.default_rng(8)
    adopted = adopt(file, tmp_path / "out" / "1")
    result = as_json(adopted)
    assert (result["time_axis"], result["hop"], [i["name"] for i in result["inputs"]]) == (0, 1, ["x", "gate"])
    x, gate = floats(rng, 7, 5), floats(rng, 7)
    records = [(b"a", x[a:b].tobytes() + gate[a:b].tobytes(), []) for a, b in ((0, 3), (3, 4), (4, 7))]
    got, _, _ = await served(adopted.file, records)
    states = {"h": ("hn", np.zeros((1, 5), np.float32))}
    wanted = by_hand(file, [{"x": x[t][None, None], "gate": gate[t][None, None]} for t in range(7)], states, "y")
    assert np.abs(np.frombuffer(got[b"a"], "<f4") - np.concatenate(wanted).reshape(-1)).max() <= 1e-5


async def test_a_loop_whose_body_takes_the_state_from_outside(tmp_path):
    from onnx import helper

    m = Maker()
    m.give("x", ["b", 5])
    m.give("h", ["b", 5])
    m.value(np.array(3), name="times")
    m.value(np.array(True), dtype="bool", name="go")
    m.value(0.5, name="half")
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["v", "half"], ["w"]),
            helper.make_node("Add", ["w", "h"], ["v_next"]),  # h is an input of the outer graph
            helper.make_node("Identity", ["on"], ["on_next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on_next", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_next", TensorProto.FLOAT, None),
        ],
    )
    m.op("Loop", "times", "go", "x", outs=["z"], body=body)
    m.op("Tanh", "z", out="hn")
    m.op("MatMul", "hn", m.random(5, 2), out="y")
    m.show("y", ["b", 2])
    m.show("hn", ["b", 5])
    states = {"h": ("hn", np.zeros((1, 5), np.float32))}
    result = await check(m.save(tmp_path), tmp_path, lambda s: {"x": s[None]}, states, "y", steps(6, 5))
    assert result["batching"] == "batched"


async def test_states_with_different_batch_axes_and_dtypes_and_a_counter_that_changes_what_is_done(tmp_path):
    m = Maker()
    m.give("x", ["b", 4])
    m.give("fast", ["b", 4])
    m.give("slow", [2, "b", 4])
    m.give("half", [4, "b"], "float16")
    m.give("position", ["b"], "int64")
    late = m.op("Cast", m.op("Greater", m.op("Mod", "position", m.value(5)), m.value(2)), to=TensorProto.FLOAT)
    late = m.op("Unsqueeze", late, m.value([1]))
    m.op("Add", "position", m.value(1), out="position_out")
    m.op("Add", m.op("Mul", "fast", m.value(0.5)), m.op("Mul", "x", late), out="fast_out")
    m.op(
        "Add",
        m.op("Mul", "slow", m.value([[[0.9]], [[0.8]]])),
        m.op("Unsqueeze", "fast_out", m.value([0])),
        out="slow_out",
    )
    turned = m.op("Cast", m.op("Transpose", "fast_out", perm=[1, 0]), to=TensorProto.FLOAT16)
    m.op("Add", m.op("Mul", "half", m.value(0.25, "float16")), turned, out="half_out")
    back = m.op("Cast", m.op("Transpose", "half_out", perm=[1, 0]), to=TensorProto.FLOAT)
    m.op("Tanh", m.op("Add", back, m.op("ReduceSum", "slow_out", m.value([0]), keepdims=0)), out="y")
    m.show("y", ["b", 4])
    m.show("fast_out", ["b", 4])
    m.show("slow_out", [2, "b", 4])
    m.show("half_out", [4, "b"], "float16")
    m.show("position_out", ["b"], "int64")
    states = {
        "fast": ("fast_out", np.zeros((1, 4), np.float32)),
        "slow": ("slow_out", np.zeros((2, 1, 4), np.float32)),
        "half": ("half_out", np.zeros((4, 1), np.float16)),
        "position": ("position_out", np.zeros(1, np.int64)),
    }
    result = await check(m.save(tmp_path), tmp_path, lambda s: {"x": s[None]}, states, "y", steps(12, 4))
    assert [(s["input"], s["batch_axis"], s["dtype"]) for s in result["states"]] == [
        ("fast", 0, "float32"),
        ("slow", 1, "float32"),
        ("half", 1, "float16"),
        ("position", 0, "int64"),
    ]


async def test_half_precision_throughout(tmp_path):
    m = Maker()
    m.give("x", ["b", 6], "float16")
    m.give("h", ["b", 5], "float16")
    m.op(
        "Tanh",
        m.op("Add", m.linear("x", 6, 5, "float16"), m.op("MatMul", "h", m.random(5, 5, dtype="float16"))),
        out="hn",
    )
    m.op("Identity", m.linear("hn", 5, 3, "float16"), out="y")
    m.show("y", ["b", 3], "float16")
    m.show("hn", ["b", 5], "float16")
    states = {"h": ("hn", np.zeros((1, 5), np.float16))}
    given = steps(6, 6, dtype="float16")
    result = await check(m.save(tmp_path), tmp_path, lambda s: {"x": s[None]}, states, "y", given, "<f2")
    assert result["batching"] == "batched"


@pytest.mark.parametrize("dims", [[1], []])
async def test_a_counter_without_streams_keeps_them_apart_one_a_call(tmp_path, dims):
    """Streams side by side would share it: that shows only where they are at different places."""
    m = Maker()
    m.give("x", ["b", 6])
    m.give("h", ["b", 6])
    m.give("pos", dims, "int64")
    one = m.value([1] if dims else np.array(1))
    m.op("Add", "pos", one, out="pos_out")
    late = m.op(
        "Cast", m.op("Greater", m.op("Mod", "pos", m.value([7] if dims else np.array(7))), one), to=TensorProto.FLOAT
    )
    m.op("Add", m.op("Mul", "h", m.value(0.5)), m.op("Mul", "x", late), out="hn")
    m.op("Tanh", "hn", out="y")
    m.show("y", ["b", 6])
    m.show("hn", ["b", 6])
    m.show("pos_out", dims, "int64")
    states = {"h": ("hn", np.zeros((1, 6), np.float32)), "pos": ("pos_out", np.zeros(dims, np.int64))}
    result = await check(m.save(tmp_path), tmp_path, lambda s: {"x": s[None]}, states, "y", steps(9, 6))
    assert result["batching"] == "single"
    assert all(s["batch_axis"] is None for s in result["states"])


async def test_a_step_that_is_one_number_and_a_state_that_is_one_row(tmp_path):
    m = Maker()
    m.give("x", [])
    m.give("h", [8])
    m.op("Tanh", m.op("Add", m.op("Mul", "x", m.random(8)), m.op("MatMul", "h", m.random(8, 8))), out="hn")
    m.op("ReduceSum", "hn", keepdims=0, out="y")
    m.show("y", [])
    m.show("hn", [8])
    states = {"h": ("hn", np.zeros(8, np.float32))}
    given = steps(6)
    result = await check(m.save(tmp_path), tmp_path, lambda s: {"x": np.array(s)}, states, "y", given)
    assert (result["batching"], result["states"][0]["batch_axis"], result["inputs"][0]["step"]) == ("single", None, [])


async def test_streams_on_the_last_axis_of_the_steps(tmp_path):
    m = Maker()
    m.give("x", [6, "b"])
    m.give("h", [2, "b", 4])
    fresh = m.op("Unsqueeze", m.linear(m.op("Transpose", "x", perm=[1, 0]), 6, 4), m.value([0]))
    m.op("Add", m.op("Mul", "h", m.value([[[0.5]], [[0.9]]])), fresh, out="hn")
    m.op("Transpose", m.op("ReduceSum", "hn", m.value([0]), keepdims=0), perm=[1, 0], out="y")
    m.show("y", [4, "b"])
    m.show("hn", [2, "b", 4])
    states = {"h": ("hn", np.zeros((2, 1, 4), np.float32))}
    result = await check(m.save(tmp_path), tmp_path, lambda s: {"x": s[:, None]}, states, "y", steps(6, 6))
    assert (result["inputs"][0]["batch_axis"], result["states"][0]["batch_axis"]) == (1, 1)


async def test_an_output_of_the_last_step_only_is_served_step_by_step(tmp_path):
    m = Maker()
    for name, dims in (("x", ["t", "b", 8]), ("h", [1, "b", 16]), ("c", [1, "b", 16])):
        m.give(name, dims)
    m.lstm("x", "h", "c", 8, 16, "hn", "cn")
    m.op("Identity", m.linear(m.op("Squeeze", "hn", m.value([0])), 16, 3), out="y")
    for name, dims in (("y", ["b", 3]), ("hn", [1, "b", 16]), ("cn", [1, "b", 16])):
        m.show(name, dims)
    zeros = np.zeros((1, 1, 16), np.float32)
    states = {"h": ("hn", zeros), "c": ("cn", zeros)}
    result = await check(m.save(tmp_path), tmp_path, lambda s: {"x": s[None, None]}, states, "y", steps(7, 8))
    assert (result["time_axis"], result["hop"]) == (None, 1)


async def test_a_cell_that_shows_its_state_only(tmp_path):
    m = Maker()
    m.give("x", ["b", 6])
    m.give("hx", ["b", 5])
    m.op("Tanh", m.op("Add", m.linear("x", 6, 5), m.op("MatMul", "hx", m.random(5, 5))), out="hy")
    m.show("hy", ["b", 5])
    states = {"hx": ("hy", np.zeros((1, 5), np.float32))}
    await check(m.save(tmp_path), tmp_path, lambda s: {"x": s[None]}, states, "hy", steps(6, 6))


# ---- batches that must not be, and that were not meant


def test_a_scale_over_the_batch_is_found_and_streams_are_served_alone(tmp_path):
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(elman(tmp_path)), str(tmp_path / "q.onnx"))
    result = found(tmp_path / "q.onnx", tmp_path)
    assert result["batching"] == "single"
    assert "DynamicQuantizeLinear" in " ".join(result["notes"])


def test_a_scale_over_the_sequence_is_found_and_steps_are_served_alone(tmp_path):
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(lstm(tmp_path, ["t", "b", 8], [1, "b", 16])), str(tmp_path / "q.onnx"))
    result = found(tmp_path / "q.onnx", tmp_path)
    assert (result["batching"], result["time_axis"], result["hop"]) == ("single", None, 1)


async def test_a_batch_of_one_in_constant_shapes_is_rewritten(tmp_path):
    m = Maker()
    m.give("x", [1, 8])
    m.give("h", [1, 4, 2])
    fresh = m.op("Reshape", m.linear("x", 8, 8), m.value([1, 4, 2]))
    m.op("Add", m.op("Mul", "h", m.value(0.5)), fresh, out="hn")
    m.op("Reshape", "hn", m.value([8]), out="flat")
    m.op("Reshape", m.op("Tanh", "flat"), m.value([1, 8]), out="y")
    m.show("y", [1, 8])
    m.show("hn", [1, 4, 2])
    states = {"h": ("hn", np.zeros((1, 4, 2), np.float32))}
    result = await check(m.save(tmp_path), tmp_path, lambda s: {"x": s[None]}, states, "y", steps(6, 8))
    assert (result["batching"], result["states"][0]["batch_axis"]) == ("rewritten", 0)


async def test_a_batch_of_one_that_cannot_be_lifted_is_served_one_stream_at_a_time_and_says_so(tmp_path):
    m = Maker()
    m.give("x", [1, 8])
    m.give("h", [1, 8])
    flat, held = (m.op("Squeeze", name, m.value([0])) for name in ("x", "h"))
    mixed_ = m.op("Add", m.op("Mul", held, m.value(0.5)), m.op("Tanh", flat))
    m.op("Unsqueeze", mixed_, m.value([0]), out="hn")
    m.op("Softmax", "hn", axis=1, out="y")
    m.show("y", [1, 8])
    m.show("hn", [1, 8])
    states = {"h": ("hn", np.zeros((1, 8), np.float32))}
    result = await check(m.save(tmp_path), tmp_path, lambda s: {"x": s[None]}, states, "y", steps(6, 8))
    assert result["batching"] == "single"
    assert "Squeeze" in result["notes"][0]


def test_single_may_be_asked_for(tmp_path):
    assert found(elman(tmp_path), tmp_path, single=True)["batching"] == "single"


# ---- what it tells


def test_the_table_the_json_and_the_card_tell_the_same(tmp_path):
    adopted = adopt(lstm(tmp_path, ["t", "b", 8], [1, "b", 16]), tmp_path / "out" / "1")
    lines = "\n".join(table(adopted))
    for word in ("h -> hn", "batch axis 1", "time axis", "hop 1", "batched", "whole sequence", "without state c"):
        assert word in lines
    result = json.loads(json.dumps(as_json(adopted)))
    assert result["parity"]["outputs"] <= 1e-4
    assert set(result["parity"]["state_matters"]) == {"h", "c"}
    card = adopted.file.with_name("README.md").read_text()
    assert "h -> hn" in card
    assert "whole sequence" in card
