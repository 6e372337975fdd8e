"""What a user's module becomes: a contract that was found out, and a graph that does the same."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export import ExportOptions, export_module  # noqa: E402
from pipeline.codecs import make_codec  # noqa: E402
from pipeline.contract import CodecSpec, HeadSpec  # noqa: E402
from pipeline.errors import ConfigError, ContractError, ModelError  # noqa: E402
from pipeline.heads import make_head  # noqa: E402
from pipeline.model_file import find_model, load_graph, read_contract  # noqa: E402
from tests.unit.export import modules as m  # noqa: E402


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("kind", "node", "states"),
    [(nn.LSTM, "LSTM", ["h", "c"]), (nn.GRU, "GRU", ["h"]), (nn.RNN, "RNN", ["h"])],
    ids=["lstm", "gru", "elman"],
)
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
def test_recurrent_layers_become_one_node_each(
    tmp_path: Path, kind: type[nn.RNNBase], node: str, states: list[str], batch_first: bool
) -> None:
    module = m.Recurrent(kind, batch_first)
    done = export_module(module, tmp_path / "net" / "1", "float32[64]", options=ExportOptions(state_names=states))
    contract = done.contract
    assert (contract.time_axis, contract.batch_axis) == ((1, 0) if batch_first else (0, 1))
    assert [(s.input, s.dtype, s.shape, s.batch_axis, s.initial) for s in contract.states] == [
        (name, "float32", (2, 1, 128), 1, None) for name in states
    ]
    assert [(o.dtype, o.shape) for o in contract.outputs] == [("float32", (10,))]
    graph = load_graph(done.file)
    nodes = collections.Counter(n.op_type for n in graph.graph.node)
    assert nodes[node] == 2
    assert not nodes.keys() & {"If", "Loop", "Scan"}
    assert read_contract(graph, "file") == contract
    assert max(row.largest for row in done.parity.rows) < 1e-5
    assert all(size > 1e-4 for _, size in done.parity.matters)
    assert {row.what for row in done.parity.rows} >= {
        "PyTorch against onnxruntime",
        "whole sequence against step by step",
        "alone against in a batch",
    }


@pytest.mark.parametrize("time", [1, 3, 40])
@pytest.mark.parametrize("batch", [1, 9])
def test_any_time_and_batch(tmp_path: Path, time: int, batch: int) -> None:
    module = m.Recurrent().eval()
    done = export_module(module, tmp_path / "net" / "1", "float32[64]", options=ExportOptions(state_names=["h", "c"]))
    x = torch.randn(time, batch, 64)
    with torch.inference_mode():
        expected = module(x, *module.initial_state(batch))
    zero = np.zeros((2, batch, 128), np.float32)
    names = ["output", "h_next", "c_next"]
    found = onnxruntime.InferenceSession(str(done.file)).run(names, {"steps": x.numpy(), "h": zero, "c": zero})
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-5)


def test_odd_module_keeps_its_states(tmp_path: Path) -> None:
    done = export_module(m.Odd(), tmp_path / "odd" / "1", "float32[8]", options=ExportOptions(output_names=["y", "at"]))
    contract = done.contract
    assert (contract.time_axis, contract.batch_axis) == (1, 0)
    h, position, total = contract.states
    assert (h.input, h.dtype, h.shape, h.batch_axis) == ("h", "float16", (1, 1, 16), 1)
    np.testing.assert_allclose(h.initial_array(), np.linspace(-1, 1, 16), atol=1e-3)
    assert (position.input, position.dtype, position.shape, position.initial) == ("position", "int64", (1,), None)
    assert (total.input, total.shape, total.initial) == ("total", (1, 2), (-3.0, -3.0))
    assert [(o.name, o.dtype, o.shape) for o in contract.outputs] == [("y", "float32", (16,)), ("at", "int64", ())]
    assert dict(done.parity.matters)["position"] > 0
    session = onnxruntime.InferenceSession(str(done.file))
    states = {s.input: np.array(s.initial or [0] * s.size, s.dtype).reshape(s.shape) for s in contract.states}
    at, moved = session.run(["at", "position_next"], {"x": np.zeros((1, 4, 8), np.float32), **states})
    assert at.tolist() == [[0, 1, 2, 3]]
    assert moved.tolist() == [4]


def test_no_time_axis(tmp_path: Path) -> None:
    done = export_module(m.Cell(), tmp_path / "cell" / "1", "float32[8]")
    assert (done.contract.time_axis, done.contract.batch_axis) == (None, 0)
    assert not done.notes


def test_states_may_begin_at_infinity(tmp_path: Path) -> None:
    done = export_module(m.Peak(), tmp_path / "peak" / "1", "float32[3]")
    peak, most = read_contract(load_graph(done.file), "peak").states
    assert peak.initial_array().tolist() == [-np.inf] * 3
    assert (most.shape, most.batch_axis, most.initial) == ((2, 1), 1, (-(2**62), -(2**62)))


@pytest.mark.parametrize("module", [m.Loop, m.OneStep])
def test_what_cannot_take_many_steps_takes_one(tmp_path: Path, module: type[nn.Module]) -> None:
    done = export_module(module(), tmp_path / "net" / "1", "float32[8]")
    assert (done.contract.time_axis, done.contract.batch_axis) == (None, 0)
    assert "one step of a stream at a time" in done.notes[0]


def test_two_step_inputs(tmp_path: Path) -> None:
    done = export_module(m.Two(), tmp_path / "two" / "1", ["sound:float32[8]", "gain:float32"])
    assert [(s.name, s.shape) for s in done.contract.steps] == [("sound", (8,)), ("gain", ())]


def test_training_mode_is_left_behind(tmp_path: Path) -> None:
    module = m.Cell().train()
    done = export_module(module, tmp_path / "cell" / "1", "float32[8]")
    assert not module.training
    assert "Dropout" not in {n.op_type for n in load_graph(done.file).graph.node}


def test_names_that_clash_are_kept_apart(tmp_path: Path) -> None:
    done = export_module(m.Cell(), tmp_path / "cell" / "1", "float32[8]", options=ExportOptions(output_names=["h"]))
    assert [(s.input, s.output) for s in done.contract.states] == [("h_state", "h_state_next")]


def test_tokens_are_drawn_below_the_embedding_s_size(tmp_path: Path) -> None:
    done = export_module(m.Tokens(), tmp_path / "tokens" / "1", "int64")
    assert [(s.name, s.dtype, s.shape) for s in done.contract.steps] == [("tokens", "int64", ())]


def test_codec_and_head_know_their_memory(tmp_path: Path) -> None:
    done = export_module(
        m.Tokens(3),
        tmp_path / "label" / "2",
        "tokens:int64",
        codec=CodecSpec("text", settings={"unit": "characters", "vocabulary": list("abcdef?"), "unknown": 6}),
        head=HeadSpec("classify", labels=("x", "y", "z")),
    )
    contract = read_contract(load_graph(find_model(tmp_path / "label")), "label")
    assert contract.label == "label/2"
    assert make_codec(contract).memory_bytes == contract.codec.memory_bytes > 0
    assert make_head(contract).memory_bytes == contract.head.memory_bytes == 0
    assert done.file == tmp_path / "label" / "2" / "model.onnx"


def test_card_says_what_was_proven(tmp_path: Path) -> None:
    done = export_module(m.Cell(), tmp_path / "cell" / "1", "float32[8]")
    card = (tmp_path / "cell" / "1" / "README.md").read_text()
    assert card.startswith("# cell/1\n")
    for row in done.parity.rows:
        assert f"| {row.what} | {row.where} | {row.largest:.2g} |" in card
    assert "Not stated by the model's maker." in card


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (m.NoInitialState, r"NoInitialState has no initial_state\(batch\): add one"),
        (m.NoState, "initial_state returned no tensor"),
        (m.ReturnsOne, r"forward returned a tensor \[3, 16\]; expected \(outputs, state\)"),
        (m.ReturnsThree, r"forward returned 3 values .* expected \(outputs, state\)"),
        (m.Forgets, "no state changes what follows"),
        (m.Draws, "two runs of the same steps differ in eval mode"),
        (m.Neighbours, "depends on its neighbours in the batch"),
        (m.LooksAhead, "looks ahead, or drops its state"),
        (m.Branches, r"tracing froze a value at .*modules\.py:\d+"),
        (m.FixedBatch, r"tracing froze a value at .*modules\.py:\d+"),
        (m.Unused, "forward makes no use of its input idle"),
        (m.Unsupported, "torch cannot export the module to ONNX opset 17: .*cummax"),
        (m.TakesTuple, "each state as an argument of its own"),
        (m.ChangesDtype, "state h is float32 in initial_state and float64 after a step"),
        (m.DifferentStarts, "state h differs from stream to stream"),
        (m.Bfloat, "state h is bfloat16: a state is one of float32"),
        (m.NoBatch, r"state h has shape \[16\] for 2 streams and \[16\] for 3"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_cannot_be_served_is_named(
    tmp_path: Path, module: type[nn.Module], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        export_module(module(), tmp_path / "net" / "1", "float32[8]")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""
    assert not (tmp_path / "net").exists()


def test_wrong_step_shape_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not serve steps float32\[63\].*Expected 64, got 63.*correct --steps"):
        export_module(m.Recurrent(), tmp_path / "net" / "1", "float32[63]")


def test_tokens_beyond_the_embedding_name_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"lower --step-limit \(tried below 50\)"):
        export_module(m.Tokens(), tmp_path / "net" / "1", "int64", options=ExportOptions(step_limit=50))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("floats[3]", "--steps 'floats\\[3\\]': dtype 'floats' is none of"),
        ("float32[3", "expected \\[NAME:\\]DTYPE\\[SHAPE\\]"),
        ("float32[0]", "at least 1"),
        ("", "expected"),
    ],
)
def test_steps_that_cannot_be_read(tmp_path: Path, steps: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export_module(m.Cell(), tmp_path / "net" / "1", steps)


def test_heads_ask_for_what_they_need(tmp_path: Path) -> None:
    folder = tmp_path / "net" / "1"
    with pytest.raises(ConfigError, match=r"a label for each class of output output \[3\]: give --labels"):
        export_module(m.Tokens(), folder, "int64", head="classify")
    with pytest.raises(ContractError, match="2 labels"):
        export_module(m.Tokens(), folder, "int64", head=HeadSpec("classify", labels=("a", "b")))
    with pytest.raises(ConfigError, match=r"one of the outputs output_0, output_1: give --head-output"):
        export_module(m.Odd(), folder, "float32[8]", head=HeadSpec("classify", labels=("a",)))
    with pytest.raises(ConfigError, match=r"label for each class of output output \[3\], an empty one for the blank"):
        export_module(m.Tokens(), folder, "int64", head="transcribe")
    with pytest.raises(ConfigError, match="how long a step of the model is: give --head-setting step_s=SECONDS"):
        export_module(m.Tokens(), folder, "int64", head=HeadSpec("transcribe", labels=("", "a", "b")))
    with pytest.raises(ConfigError, match="--codec-setting unit=bytes"):
        export_module(m.Tokens(), folder, "int64", codec="text")
    with pytest.raises(ContractError, match="unknown codec 'morse'"):
        export_module(m.Tokens(), folder, "int64", codec="morse")
    with pytest.raises(ContractError, match="unknown head 'oracle'"):
        export_module(m.Tokens(), folder, "int64", head="oracle")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("folder", "message"), [("net/latest", "expected NAME/VERSION"), ("a net/1", "may have letters")]
)
def test_folder_must_be_name_and_version(tmp_path: Path, folder: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export_module(m.Cell(), tmp_path / folder, "float32[8]")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="export the module that it was made from"):
        export_module(torch.jit.script(nn.Linear(3, 3)), tmp_path / "net" / "1", "float32[3]")


def test_large_graphs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="raise --max-megabytes"):
        export_module(m.Recurrent(), tmp_path / "net" / "1", "float32[64]", options=ExportOptions(max_megabytes=0.5))


def test_tolerance_is_held(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"differs by .* more than allowed \(1e-12\)"):
        export_module(m.Recurrent(), tmp_path / "net" / "1", "float32[64]", options=ExportOptions(tolerance=1e-12))
