"""How streams begin, and what stays the same for all of them or for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from export.adopt import AdoptOptions, Unclear, adopt
from export.adopt.report import as_json
from tests.unit.export.adopt.graphs import Maker, elman
from tests.unit.export.adopt.serving import by_hand, check, floats, served, steps

# ---- beginnings


def _beginning(ir_version: int, tmp_path: Path) -> tuple[Path, np.ndarray]:
    m = Maker()
    first = np.arange(5, dtype=np.float32)[None] + 1
    m.give("x", ["b", 6])
    m.give("h", ["b", 5])
    m.weights.append(numpy_helper.from_array(first, "h"))
    m.op("Add", m.op("Mul", "h", m.value(0.5)), m.op("Tanh", m.linear("x", 6, 5)), out="hn")
    m.op("Identity", m.linear("hn", 5, 3), out="y")
    m.show("y", ["b", 3])
    m.show("hn", ["b", 5])
    return m.save(tmp_path, ir_version=ir_version), first


@pytest.mark.parametrize("ir_version", [4, 8])
async def test_a_states_default_in_the_file_is_how_a_stream_begins(tmp_path, ir_version):
    file, first = _beginning(ir_version, tmp_path)
    result = await check(file, tmp_path, lambda s: {"x": s[None]}, {"h": ("hn", first)}, "y", steps(5, 6))
    assert (result["states"][0]["initial"], result["batching"]) == ("given", "batched")


async def test_a_beginning_may_be_given(tmp_path):
    first = np.linspace(-1, 1, 10, dtype=np.float32)[None]
    np.save(tmp_path / "first.npy", first)
    states = {"h": ("hn", first)}
    options = {"initial": [f"h=@{tmp_path / 'first.npy'}"]}
    await check(elman(tmp_path), tmp_path, lambda s: {"x": s[None]}, states, "y", steps(5, 6), **options)


# ---- constants


def _speaker(tmp_path: Path) -> Path:
    m = Maker()
    m.give("x", ["b", "t", 6])
    m.give("speaker", ["b"], "int64")
    m.give("h", ["b", 6])
    voice = m.op("Unsqueeze", m.op("Gather", m.random(9, 6), "speaker"), m.value([1]))
    total = m.op("CumSum", m.op("Add", "x", voice), m.value(1))
    m.op("Add", total, m.op("Unsqueeze", m.op("Mul", "h", m.value(1.0)), m.value([1])), out="y")
    m.op("Gather", "y", m.value(np.array(-1)), axis=1, out="hn")
    m.show("y", ["b", "t", 6])
    m.show("hn", ["b", 6])
    return m.save(tmp_path)


def test_a_constants_value_is_asked_for(tmp_path):
    with pytest.raises(Unclear, match=r"--stream-constant speaker") as asked:
        adopt(_speaker(tmp_path), tmp_path / "out" / "1")
    assert asked.value.flags == ["--stream-constant speaker"]


async def test_a_constant_for_all_streams(tmp_path):
    states = {"h": ("hn", np.zeros((1, 6), np.float32))}
    voice = {"speaker": np.array([3])}
    given = steps(5, 6)
    result = await check(
        _speaker(tmp_path),
        tmp_path,
        lambda s: {"x": s[None, None]},
        states,
        "y",
        given,
        hand=voice,
        constants=["speaker=3"],
    )
    assert [(c["value"], c["header"]) for c in result["constants"]] == [([3], None)]


async def test_streams_with_constants_of_their_own_share_a_call_and_a_takeover_knows_them(tmp_path):
    file = _speaker(tmp_path)
    adopted = adopt(file, tmp_path / "out" / "1", AdoptOptions(stream_constants=["speaker"]))
    assert as_json(adopted)["batching"] == "batched"
    rng = np.random.default_rng(9)
    given = {b"s%d" % k: [floats(rng, 6) for _ in range(6)] for k in range(5)}
    voices = {key: k for k, key in enumerate(given)}

    def records(part: slice, named: bool) -> list:
        return [
            (key, b"".join(s.tobytes() for s in one[part]), [("eddy-speaker", b"%d" % voices[key])] if named else [])
            for key, one in given.items()
        ]

    _, _, broker = await served(adopted.file, records(slice(0, 3), True))
    # Another worker takes over: the constants are in the streams' snapshots, no header names them again.
    got, dead, broker = await served(adopted.file, records(slice(3, 6), False), broker)
    assert not dead
    for key, own_steps in given.items():
        states = {"h": ("hn", np.zeros((1, 6), np.float32))}
        own = {"speaker": np.array([voices[key]])}
        wanted = by_hand(file, [{"x": s[None, None]} for s in own_steps], states, "y", own)
        assert np.abs(np.frombuffer(got[key], "<f4") - np.concatenate(wanted).reshape(-1)).max() <= 1e-4
    step = given[b"s0"][0].tobytes()
    wrong = [
        (b"s1", step, [("eddy-speaker", b"7")]),  # another than it has
        (b"s2", step, [("eddy-speaker", b"two")]),
        (b"new", step, []),
        (b"s3", step, [("eddy-speaker", b"3")]),  # the same again: fine
    ]
    _, dead, _ = await served(adopted.file, wrong, broker)
    assert {e.key for e in dead} == {b"s1", b"s2", b"new"}
    assert {dict(e.headers)["eddy-error"] for e in dead} == {b"constant"}


async def test_a_streams_constant_may_have_a_default(tmp_path):
    adopted = adopt(
        _speaker(tmp_path),
        tmp_path / "out" / "1",
        AdoptOptions(stream_constants=["speaker=voice"], constants=["speaker=2"]),
    )
    step = np.zeros(6, np.float32)
    got, _, _ = await served(adopted.file, [(b"a", step.tobytes(), []), (b"b", step.tobytes(), [("voice", b"4")])])
    table_of = numpy_helper.to_array(next(i for i in adopted.plan.lifted.model.graph.initializer if i.dims == [9, 6]))
    assert np.allclose(np.frombuffer(got[b"a"], "<f4"), table_of[2], atol=1e-6)
    assert np.allclose(np.frombuffer(got[b"b"], "<f4"), table_of[4], atol=1e-6)


def _lengths(tmp_path: Path) -> Path:
    """``[B]`` lengths beside steps ``[B, T, 8]``: the same for every step of a call."""
    m = Maker()
    m.give("x", ["b", "t", 8])
    m.give("weights", ["b", 8])
    m.give("h", ["b", 8])
    total = m.op("CumSum", m.op("Mul", "x", m.op("Unsqueeze", "weights", m.value([1]))), m.value(1))
    m.op("Add", total, m.op("Unsqueeze", "h", m.value([1])), out="y")
    m.op("Gather", "y", m.value(np.array(-1)), axis=1, out="hn")
    m.show("y", ["b", "t", 8])
    m.show("hn", ["b", 8])
    return m.save(tmp_path)


def test_an_input_without_the_time_axis_of_the_others_is_asked_about(tmp_path):
    file = _lengths(tmp_path)
    with pytest.raises(Unclear, match=r"weights .* is no step") as asked:
        adopt(file, tmp_path / "out" / "1")
    assert asked.value.flags == ["--stream-constant weights"]
    assert as_json(adopt(file, tmp_path / "a" / "1", AdoptOptions(stream_constants=["weights"])))["time_axis"] == 1
    as_step = as_json(adopt(file, tmp_path / "b" / "1", AdoptOptions(steps=["weights"])))
    assert (as_step["time_axis"], [i["name"] for i in as_step["inputs"]]) == (None, ["x", "weights"])


async def test_a_streams_vector_of_a_size_that_the_file_leaves_open(tmp_path):
    m = Maker()
    for name, dims in (("x", ["b", 4]), ("voice", ["b", "d"]), ("h", ["b", 4])):
        m.give(name, dims)
    toned = m.op("Add", "x", m.op("ReduceSum", "voice", m.value([1]), keepdims=1))
    m.op("Add", m.op("Mul", "h", m.value(0.5)), toned, out="hn")
    m.op("Tanh", "hn", out="y")
    m.show("y", ["b", 4])
    m.show("hn", ["b", 4])
    options = AdoptOptions(stream_constants=["voice"], shapes=["voice=1,3"])
    adopted = adopt(m.save(tmp_path), tmp_path / "out" / "1", options)
    assert adopted.contract.constants[0].shape == (1, 3)
    step = np.zeros(4, np.float32).tobytes()
    got, _, _ = await served(adopted.file, [(b"a", step, [("eddy-voice", b"0.25, 0.5, -1")])])
    assert np.allclose(np.frombuffer(got[b"a"], "<f4"), np.tanh(-0.25))
