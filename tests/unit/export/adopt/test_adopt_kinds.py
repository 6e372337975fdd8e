"""Kinds of streaming models that people publish, made small: caches, context, tokens, attention, resets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.adopt import Unclear, adopt
from tests.unit.export.adopt.graphs import Maker
from tests.unit.export.adopt.serving import by_hand, check, floats, found, served, steps


def _kept(m: Maker, cache: str, fresh: str, length: int, axis: int) -> None:
    """``cache`` and what is new, the last ``length`` of it, as ``new_cache``."""
    joined = m.op("Concat", cache, fresh, axis=axis)
    m.op("Slice", joined, m.value([-length]), m.value([2**31]), m.value([axis]), out=f"new_{cache}")


async def test_an_encoder_with_caches_of_many_layouts(tmp_path):
    """As zipformers have them: chunks that overlap, a counter ``[2, N]``, caches with their streams on axis 1 or 2."""
    m = Maker()
    caches = [
        ("cached_len_0", [2, "N"], "int64"),
        ("cached_avg_0", [2, "N", 24], "float32"),
        ("cached_key_0", [2, 16, "N", 12], "float32"),
        ("cached_val_0", [2, 16, "N", 12], "float32"),
        ("cached_conv1_0", [2, "N", 24, 7], "float32"),
        ("cached_conv2_0", [2, "N", 24, 7], "float32"),
    ]
    m.give("x", ["N", 9, 20])
    for name, dims, dtype in caches:
        m.give(name, dims, dtype)
    mean = m.op("ReduceMean", "x", axes=[1], keepdims=0)
    m.op("Add", "cached_len_0", m.value(16), out="new_cached_len_0")
    count = m.op("Unsqueeze", m.op("Cast", m.op("Add", "cached_len_0", m.value(1)), to=TensorProto.FLOAT), m.value([2]))
    weighted = m.op("Add", m.op("Mul", "cached_avg_0", count), m.op("Unsqueeze", m.linear(mean, 20, 24), m.value([0])))
    m.op("Div", weighted, m.op("Add", count, m.value(1.0)), out="new_cached_avg_0")
    for name in ("cached_key_0", "cached_val_0"):
        fresh = m.op("Reshape", m.linear(mean, 20, 96), m.value([0, 2, 4, 12]))
        _kept(m, name, m.op("Transpose", fresh, perm=[1, 2, 0, 3]), 16, 1)
    for name in ("cached_conv1_0", "cached_conv2_0"):
        fresh = m.op("Reshape", m.linear(mean, 20, 144), m.value([0, 2, 24, 3]))
        _kept(m, name, m.op("Transpose", fresh, perm=[1, 0, 2, 3]), 7, 3)
    parts = [m.op("ReduceSum", f"new_cached_conv{i}_0", m.value([0, 3]), keepdims=0) for i in (1, 2)]
    parts.append(m.op("ReduceSum", "new_cached_avg_0", m.value([0]), keepdims=0))
    held = m.op("Mul", m.op("Softmax", "new_cached_key_0", axis=1), "new_cached_val_0")
    m.op("Concat", *parts, m.op("ReduceSum", held, m.value([0, 1]), keepdims=0), axis=1, out="encoder_out")
    m.show("encoder_out", ["N", 84])
    for name, dims, dtype in caches:
        m.show(f"new_{name}", dims, dtype)
    states = {
        name: (f"new_{name}", np.zeros([1 if isinstance(d, str) else d for d in dims], dtype))
        for name, dims, dtype in caches
    }
    result = await check(m.save(tmp_path), tmp_path, lambda s: {"x": s[None]}, states, "encoder_out", steps(5, 9, 20))
    assert [s["batch_axis"] for s in result["states"]] == [1, 1, 2, 2, 1, 1]


@pytest.mark.parametrize("names", [("audio", "context", "context_out"), ("a", "q", "z")])
async def test_a_state_that_is_the_end_of_the_last_step(tmp_path, names):
    """It does not come from what it was: nothing in the graph says that it must be read before it is written."""
    audio, context, after = names
    m = Maker()
    m.give(audio, ["b", 64])
    m.give(context, ["b", 16])
    m.op("Slice", audio, m.value([-16]), m.value([2**31]), m.value([1]), out=after)
    m.op("Tanh", m.linear(m.op("Concat", context, audio, axis=1), 80, 3), out="y")
    m.show("y", ["b", 3])
    m.show(after, ["b", 16])
    states = {context: (after, np.zeros((1, 16), np.float32))}
    await check(m.save(tmp_path), tmp_path, lambda s: {audio: s[None]}, states, "y", steps(6, 64))


async def test_a_delay_of_one_step(tmp_path):
    m = Maker()
    m.give("x", ["b", 6])
    m.give("prev", ["b", 6])
    m.op("Identity", "x", out="next")
    m.op("Sub", m.linear("x", 6, 6), "prev", out="y")
    m.show("y", ["b", 6])
    m.show("next", ["b", 6])
    states = {"prev": ("next", np.zeros((1, 6), np.float32))}
    await check(m.save(tmp_path), tmp_path, lambda s: {"x": s[None]}, states, "y", steps(6, 6))


async def test_tokens(tmp_path):
    m = Maker()
    for name, dims in (("h", [1, "b", 16]), ("c", [1, "b", 16])):
        m.give(name, dims)
    m.give("tokens", ["b", "t"], "int64")
    embedded = m.op("Transpose", m.op("Gather", m.random(29, 8), "tokens"), perm=[1, 0, 2])
    y = m.op("Transpose", m.op("Squeeze", m.lstm(embedded, "h", "c", 8, 16, "hn", "cn"), m.value([1])), perm=[1, 0, 2])
    m.op("Identity", m.linear(y, 16, 29), out="logits")
    for name, dims in (("logits", ["b", "t", 29]), ("hn", [1, "b", 16]), ("cn", [1, "b", 16])):
        m.show(name, dims)
    zeros = np.zeros((1, 1, 16), np.float32)
    states = {"h": ("hn", zeros), "c": ("cn", zeros)}
    rng = np.random.default_rng(1)
    given = {b"s%d" % k: [rng.integers(0, 29, ()).astype(np.int64) for _ in range(6 + k)] for k in range(3)}
    result = await check(m.save(tmp_path), tmp_path, lambda s: {"tokens": s[None, None]}, states, "logits", given)
    assert (result["time_axis"], result["inputs"][0]["step"]) == (1, [])


async def test_attention_over_a_window_of_fixed_length(tmp_path):
    m = Maker()
    m.give("x", ["b", 8])
    for name, dims, dtype in (
        ("k", ["b", 2, 16, 4], "float32"),
        ("v", ["b", 2, 16, 4], "float32"),
        ("len", ["b"], "int64"),
    ):
        m.give(f"past_{name}", dims, dtype)
    query, key, value = (m.op("Reshape", m.linear("x", 8, 8), m.value([0, 2, 1, 4])) for _ in range(3))
    for name, fresh in (("k", key), ("v", value)):
        joined = m.op("Concat", f"past_{name}", fresh, axis=2)
        m.op("Slice", joined, m.value([-16]), m.value([2**31]), m.value([2]), out=f"present_{name}")
    m.op("Min", m.op("Add", "past_len", m.value(1)), m.value(16), out="present_len")
    first = m.op("Sub", m.value(16), m.op("Unsqueeze", "present_len", m.value([1])))
    there = m.op("GreaterOrEqual", m.op("Unsqueeze", m.value(np.arange(16)), m.value([0])), first)
    bias = m.op("Where", m.op("Unsqueeze", there, m.value([1, 2])), m.value(0.0), m.value(-1e9))
    scores = m.op("Add", m.op("MatMul", query, m.op("Transpose", "present_k", perm=[0, 1, 3, 2])), bias)
    seen = m.op("MatMul", m.op("Softmax", scores, axis=-1), "present_v")
    m.op("Reshape", seen, m.value([0, 8]), out="y")
    m.show("y", ["b", 8])
    for name, dims, dtype in (
        ("k", ["b", 2, 16, 4], "float32"),
        ("v", ["b", 2, 16, 4], "float32"),
        ("len", ["b"], "int64"),
    ):
        m.show(f"present_{name}", dims, dtype)
    cache = np.zeros((1, 2, 16, 4), np.float32)
    states = {
        "past_k": ("present_k", cache),
        "past_v": ("present_v", cache),
        "past_len": ("present_len", np.zeros(1, np.int64)),
    }
    await check(m.save(tmp_path), tmp_path, lambda s: {"x": s[None]}, states, "y", steps(20, 8))


async def test_a_step_input_that_resets_the_state(tmp_path):
    m = Maker()
    m.give("x", ["b", 6])
    m.give("reset", ["b"], "bool")
    m.give("h", ["b", 6])
    kept = m.op("Where", m.op("Unsqueeze", "reset", m.value([1])), m.value(0.0), "h")
    m.op("Add", m.op("Mul", kept, m.value(0.5)), "x", out="hn")
    m.op("Tanh", "hn", out="y")
    m.show("y", ["b", 6])
    m.show("hn", ["b", 6])
    file = m.save(tmp_path)
    adopted = adopt(file, tmp_path / "out" / "1")
    assert [s.name for s in adopted.contract.steps] == ["x", "reset"]
    rng = np.random.default_rng(2)
    x, reset = floats(rng, 8, 6), rng.integers(0, 3, 8) == 0
    got, _, _ = await served(adopted.file, [(b"k", x[t].tobytes() + reset[t].tobytes(), []) for t in range(8)])
    states = {"h": ("hn", np.zeros((1, 6), np.float32))}
    wanted = by_hand(file, [{"x": x[t][None], "reset": reset[t : t + 1]} for t in range(8)], states, "y")
    assert np.abs(np.frombuffer(got[b"k"], "<f4") - np.concatenate(wanted).reshape(-1)).max() <= 1e-5


def _coupled(folder: Path, over_time: bool) -> Path:
    """Two hidden states of one shape, each fed by both: nothing in one step tells which comes back as which."""
    m = Maker()
    m.give("a", ["t", "b", 4] if over_time else ["b", 4])
    m.give("p", ["b", 6])
    m.give("q", ["b", 6])
    nodes = []
    for made in ("u", "v"):
        terms = []
        for i, (value, width) in enumerate((("a_t", 4), ("p_t", 6), ("q_t", 6))):
            weight = (m.rng.standard_normal((width, 6)) * 0.5).astype(np.float32)
            m.weights.append(numpy_helper.from_array(weight, f"w_{made}{i}"))
            nodes.append(helper.make_node("MatMul", [value, f"w_{made}{i}"], [f"t_{made}{i}"]))
            terms.append(f"t_{made}{i}")
        nodes.append(helper.make_node("Sum", terms, [f"s_{made}"]))
        nodes.append(helper.make_node("Tanh", [f"s_{made}"], [f"{made}_t"]))
    nodes.append(helper.make_node("Sub", ["u_t", "v_t"], ["y_t"]))
    if over_time:
        values = {
            n: helper.make_tensor_value_info(n, TensorProto.FLOAT, None)
            for n in ("p_t", "q_t", "a_t", "u_t", "v_t", "y_t")
        }
        body = helper.make_graph(
            nodes, "step", [values[n] for n in ("p_t", "q_t", "a_t")], [values[n] for n in ("u_t", "v_t", "y_t")]
        )
        m.op("Scan", "p", "q", "a", outs=["u", "v", "y"], num_scan_inputs=1, body=body)
    else:
        for name in ("a", "p", "q"):
            m.op("Identity", name, out=f"{name}_t")
        m.nodes += nodes
        for name in ("u", "v", "y"):
            m.op("Identity", f"{name}_t", out=name)
    m.show("v", ["b", 6])
    m.show("u", ["b", 6])
    m.show("y", ["t", "b", 6] if over_time else ["b", 6])
    return m.save(folder)


def test_states_that_no_step_tells_apart_are_told_apart_by_a_whole_sequence(tmp_path):
    result = found(_coupled(tmp_path, True), tmp_path)
    assert [(s["input"], s["output"]) for s in result["states"]] == [("p", "u"), ("q", "v")]
    assert any("whole sequence" in note for note in result["notes"])


def test_where_there_is_no_sequence_either_they_are_asked_for(tmp_path):
    file = _coupled(tmp_path, False)
    with pytest.raises(Unclear, match=r"no run tells them apart"):
        adopt(file, tmp_path / "out" / "1")
    result = found(file, tmp_path, states=["p=u", "q=v"])
    assert [(s["input"], s["output"], s["found"]) for s in result["states"]] == [
        ("p", "u", "given"),
        ("q", "v", "given"),
    ]


@pytest.mark.parametrize("streams", ["b", 1])
async def test_one_frame_in_and_many_samples_out(tmp_path, streams):
    m = Maker()
    m.give("frames", [streams, "t", 8])
    m.give("h", [streams, 8])
    total = m.op("Add", m.op("CumSum", "frames", m.value(1)), m.op("Unsqueeze", "h", m.value([1])))
    m.op("Gather", total, m.value(np.array(-1)), axis=1, out="hn")
    samples = m.op("Tanh", m.op("MatMul", total, m.random(8, 160, scale=0.05)))
    shape = m.op("Concat", m.op("Slice", m.op("Shape", "frames"), m.value([0]), m.value([1])), m.value([-1]), axis=0)
    m.op("Reshape", samples, shape, out="wave")
    m.show("wave", [streams, "n"])
    m.show("hn", [streams, 8])
    states = {"h": ("hn", np.zeros((1, 8), np.float32))}
    result = await check(m.save(tmp_path), tmp_path, lambda s: {"frames": s[None, None]}, states, "wave", steps(7, 8))
    assert (result["time_axis"], result["hop"], result["outputs"][0]["step"]) == (1, 1, [160])


async def test_sound_without_an_axis_for_streams(tmp_path):
    m = Maker()
    m.give("audio", ["n"])
    m.give("tail", [4])
    joined = m.op("Concat", "tail", "audio", axis=0)
    frames = m.op("Conv", m.op("Reshape", joined, m.value([1, 1, -1])), m.random(3, 1, 8), strides=[4])
    m.op("Transpose", m.op("Squeeze", frames, m.value([0])), perm=[1, 0], out="y")
    m.op("Slice", joined, m.value([-4]), m.value([2**31]), m.value([0]), out="tail_out")
    m.show("y", ["t", 3])
    m.show("tail_out", [4])
    states = {"tail": ("tail_out", np.zeros(4, np.float32))}
    result = await check(m.save(tmp_path), tmp_path, lambda s: {"audio": s}, states, "y", steps(7, 4))
    assert (result["time_axis"], result["hop"], result["batching"]) == (0, 4, "single")


async def test_channels_time_streams_in_this_order(tmp_path):
    m = Maker()
    m.give("x", [3, "t", "b"])
    m.give("h", [3, "b"])
    m.op("Add", m.op("CumSum", "x", m.value(1)), m.op("Unsqueeze", "h", m.value([1])), out="y")
    m.op("Gather", "y", m.value(np.array(-1)), axis=1, out="hn")
    m.show("y", [3, "t", "b"])
    m.show("hn", [3, "b"])
    states = {"h": ("hn", np.zeros((3, 1), np.float32))}
    result = await check(m.save(tmp_path), tmp_path, lambda s: {"x": s[:, None, None]}, states, "y", steps(7, 3))
    assert (result["time_axis"], result["inputs"][0]["batch_axis"], result["states"][0]["batch_axis"]) == (1, 2, 1)
