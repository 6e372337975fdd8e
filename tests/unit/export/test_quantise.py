"""Weights in fewer bits: what is stored is what is computed with, by everyone who runs the file."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export import Exported, ExportOptions, export_module  # noqa: E402
from export.quantise import ERROR_MAX, restored, store_weights  # noqa: E402
from pipeline.errors import ConfigError  # noqa: E402
from tests.unit.export import modules as m  # noqa: E402


def exported(folder: Path, module: nn.Module, precision: str) -> Exported:
    options = ExportOptions(precision=precision)
    return export_module(copy.deepcopy(module), folder / precision / "net" / "1", "float32[64]", options=options)


def one_weight(values: np.ndarray) -> onnx.ModelProto:
    """``y = x + w``."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(values.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(values.shape))],
        [numpy_helper.from_array(values, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def computed(model: onnx.ModelProto, shape: tuple[int, ...]) -> np.ndarray:
    """What onnxruntime has for ``w``."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.zeros(shape, np.float32)})
    return np.asarray(y)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(("precision", "share"), [("float16", 0.52), ("int8", 0.29)])
def test_files_shrink_and_results_stay(tmp_path: Path, kind: type[nn.RNNBase], precision: str, share: float) -> None:
    torch.manual_seed(0)
    module = m.Recurrent(kind)
    plain, small = (exported(tmp_path, module, p) for p in ("float32", precision))
    assert small.file.stat().st_size < share * plain.file.stat().st_size
    assert small.contract == plain.contract, "snapshots of one are read by the other"
    rows = {r.what: r for r in small.parity.rows}
    assert rows[f"{precision} as stored against as meant"].excess <= 1
    assert rows[f"{precision}, whole sequence against step by step"].excess <= 1
    assert rows[f"{precision}, alone against in a batch"].excess <= 1
    apart = rows[f"{precision} against float32"].largest
    assert 0 < apart < (0.002 if precision == "float16" else 0.05)
    card = small.file.with_name("README.md").read_text()
    assert f"{precision} against float32" in card


def test_only_weights_are_stored_in_fewer_bits(tmp_path: Path) -> None:
    """No activation is quantised: nothing in the graph takes a scale while it runs."""
    torch.manual_seed(0)
    small = exported(tmp_path, m.Recurrent(), "int8")
    graph = onnx.load(str(small.file)).graph
    made = {out for node in graph.node for out in node.output} | {i.name for i in graph.input}
    for node in graph.node:
        assert "Quantize" not in node.op_type
        assert not node.op_type.endswith("Integer")
        if node.name.startswith("stored:"):
            assert all(name.startswith("stored:") or name not in made for name in node.input)


floats = arrays(np.float32, (24, 40), elements=st.floats(-100, 100, width=32))


@given(floats, st.sampled_from(["float16", "int8"]))
def test_what_is_computed_with_is_what_was_stored(values: np.ndarray, precision: str) -> None:
    small, said = store_weights(one_weight(values), precision)
    again = computed(small, values.shape)
    assert (again == restored(small)["w"]).all()
    (stored,) = said
    whole = np.sqrt(np.square(values, dtype=np.float64).mean())
    change = np.sqrt(np.square(again.astype(np.float64) - values).mean())
    assert change == pytest.approx(stored.error * whole, rel=1e-4, abs=1e-12)
    if stored.precision == "int8":
        assert stored.error <= ERROR_MAX
        assert len(np.unique(again[0])) <= 255


def test_each_row_or_column_has_a_scale_of_its_own_where_they_differ() -> None:
    rng = np.random.default_rng(0)
    by_row = rng.standard_normal((64, 128)).astype(np.float32) * np.logspace(-6, 3, 64, dtype=np.float32)[:, None]
    for values, along in ((by_row, 1), (by_row.T.copy(), 0)):
        small, (stored,) = store_weights(one_weight(values), "int8")
        assert stored.precision == "int8"
        change = np.sqrt(np.square(restored(small)["w"] - values).mean(axis=along))
        assert (change < 0.01 * np.sqrt(np.square(values).mean(axis=along))).all(), "the smallest too"


def test_what_eight_bits_cannot_hold_is_kept_in_sixteen() -> None:
    values = np.full((64, 64), 0.001, np.float32)
    values[np.arange(64), np.arange(64)] = 10.0  # one large number in every row and column
    _, (stored,) = store_weights(one_weight(values), "int8")
    assert stored.precision == "int8", "the large ones are what counts"
    values = np.full((64, 64), 0.0018, np.float32)
    values[np.arange(64), np.arange(64)] = 0.5
    _, (stored,) = store_weights(one_weight(values), "int8")
    assert stored.precision == "float16"


@pytest.mark.parametrize("odd", [np.inf, np.nan, 1e6])
def test_what_sixteen_bits_cannot_hold_stays(odd: float) -> None:
    values = np.ones((32, 32), np.float32)
    values[3, 3] = odd
    model = one_weight(values)
    small, said = store_weights(model, "float16")
    assert said == ()
    assert small == model


def test_small_weights_and_vectors_are_not_worth_their_loss() -> None:
    assert store_weights(one_weight(np.ones((4, 4), np.float32)), "int8")[1] == ()
    _, (vector,) = store_weights(one_weight(np.linspace(0, 1, 2048, dtype=np.float32)[None]), "int8")
    assert vector.precision == "float16"


class Filtered(m.Recurrent):
    """With a fixed matrix that is no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.basis: torch.Tensor
        self.register_buffer("basis", torch.randn(64, 64) / 8)

    def forward(self, steps: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return super().forward(steps @ self.basis, *states)


def test_buffers_stay_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Filtered()
    small = exported(tmp_path, module, "int8")
    kept = {w.name: numpy_helper.to_array(w) for w in onnx.load(str(small.file)).graph.initializer}
    assert (kept["module.basis"] == module.basis.numpy()).all()


def test_a_precision_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match="'int4': expected one of float32, float16, int8"):
        store_weights(one_weight(np.ones((4, 4), np.float32)), "int4")
