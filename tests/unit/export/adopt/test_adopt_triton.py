"""A Triton configuration beside the file: read, not guessed, and proven all the same."""

from __future__ import annotations

import numpy as np
import pytest

from export.adopt import Refused, adopt
from export.adopt.report import as_json
from export.adopt.triton import parse
from pipeline.errors import ModelError
from tests.unit.export.adopt.graphs import Maker, elman
from tests.unit.export.adopt.serving import by_hand, floats, served

CONFIG = """
name: "made"
platform: "onnxruntime_onnx"   # a comment { with a brace
max_batch_size: 8
input [ { name: "a" data_type: TYPE_FP32 dims: [ 10 ] } ]
output [ { name: "p" data_type: TYPE_FP32 dims: [ 10 ] } ]
sequence_batching {
  max_sequence_idle_microseconds: 5000000
  state [
    {
      input_name: "b"
      output_name: "q"
      data_type: TYPE_FP32
      dims: [ 10 ]
      %s
    }
  ]
}
instance_group [ { count: 1, kind: KIND_CPU } ]
"""
ZEROS = 'initial_state: { data_type: TYPE_FP32 dims: [ 10 ] zero_data: true name: "first" }'
VALUES = 'initial_state: { data_type: TYPE_FP32 dims: [ 10 ] data_file: "first" name: "first" }'


def test_text_protobuf_is_read():
    assert parse('a: 1 b { c: "x\\"y" c: \'z\' } b <c: [1, 2]> d: [{e: true}, {e: false}];') == {
        "a": ["1"],
        "b": [{"c": ['x\\"y', "z"]}, {"c": ["1", "2"]}],
        "d": [{"e": ["true"]}, {"e": ["false"]}],
    }
    for text in ("a {", "}", "a: [1", "a:", "{}"):
        with pytest.raises(ValueError, match=r"file ends|closes|expected"):
            parse(text)


@pytest.mark.parametrize("initial", ["", ZEROS])
@pytest.mark.parametrize("layout", ["beside", "triton"])
def test_pairs_that_no_run_tells_are_read(tmp_path, layout, initial):
    folder = tmp_path / "repository" / "made"
    file = elman(folder / "1" if layout == "triton" else folder, ("a", "b", "p", "q"), 10)
    (folder / "config.pbtxt").write_text(CONFIG % initial)
    result = as_json(adopt(file, tmp_path / "out" / "1"))
    assert [(s["input"], s["output"], s["found"]) for s in result["states"]] == [("b", "q", "from config.pbtxt")]
    assert any("config.pbtxt" in note for note in result["notes"])


async def test_a_beginning_in_a_file_is_read(tmp_path):
    folder = tmp_path / "made"
    file = elman(folder, ("a", "b", "p", "q"), 10)
    (folder / "config.pbtxt").write_text(CONFIG % VALUES)
    first = np.linspace(-1, 1, 10, dtype=np.float32)
    with pytest.raises(Refused, match=r"first cannot be read"):
        adopt(file, tmp_path / "out" / "1")
    (folder / "initial_state").mkdir()
    (folder / "initial_state" / "first").write_bytes(first.tobytes())
    adopted = adopt(file, tmp_path / "out" / "1")
    assert as_json(adopted)["states"][0]["initial"] == "given"
    rng = np.random.default_rng(1)
    steps = [floats(rng, 10) for _ in range(4)]
    got, _, _ = await served(adopted.file, [(b"k", s.tobytes(), []) for s in steps])
    wanted = by_hand(file, [{"a": s[None]} for s in steps], {"b": ("q", first[None])}, "p")
    assert np.abs(np.frombuffer(got[b"k"], "<f4") - np.concatenate(wanted).reshape(-1)).max() <= 1e-4


def test_control_inputs_have_the_value_of_a_running_sequence(tmp_path):
    m = Maker()
    for name, dims in (("a", ["b", 4]), ("b", ["b", 4]), ("START", ["b", 1]), ("READY", ["b", 1])):
        m.give(name, dims)
    kept = m.op("Mul", "b", m.op("Sub", m.value(1.0), "START"))
    m.op("Add", m.op("Mul", kept, m.value(0.5)), m.op("Mul", "a", "READY"), out="q")
    m.op("Tanh", "q", out="p")
    m.show("p", ["b", 4])
    m.show("q", ["b", 4])
    file = m.save(tmp_path)
    (tmp_path / "config.pbtxt").write_text(
        "sequence_batching { control_input ["
        ' { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },'
        ' { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY fp32_false_true: [ 0, 1 ] } ] } ]'
        ' state [ { input_name: "b" output_name: "q" data_type: TYPE_FP32 dims: [ 4 ] } ] }'
    )
    result = as_json(adopt(file, tmp_path / "out" / "1"))
    assert {c["name"]: c["value"] for c in result["constants"]} == {"START": [0.0], "READY": [1.0]}


def test_a_configuration_that_does_not_fit_is_named(tmp_path):
    file = elman(tmp_path, ("a", "b", "p", "q"), 10)
    config = tmp_path / "config.pbtxt"
    config.write_text(CONFIG.replace('"q"', '"z"') % "")
    with pytest.raises(Refused, match=r"no output 'z'"):
        adopt(file, tmp_path / "out" / "1")
    config.write_text("sequence_batching {")
    with pytest.raises(ModelError, match=r"config.pbtxt: not a model configuration"):
        adopt(file, tmp_path / "out" / "1")


def test_a_pair_that_is_wrong_is_not_served(tmp_path):
    """The configuration says that the step is the state, but it does not come back in its shape."""
    file = elman(tmp_path, ("a", "b", "p", "q"), 6)
    (tmp_path / "config.pbtxt").write_text(CONFIG.replace('"q"', '"p"') % "")
    with pytest.raises(Refused, match=r"state b .* comes back as p"):
        adopt(file, tmp_path / "out" / "1")
