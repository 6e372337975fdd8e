"""The models that other tests serve are what they say they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from pipeline.model_file import load_graph, read_contract
from tests.models import HASH_INITIAL, PRIME, lstm_module, lstm_tensor, rolling_hash, rolling_hash_reference


def run_hash(file: Path, steps: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(str(file))
    return tuple(session.run(["y", "h_next"], {"x": steps, "h": h}))  # type: ignore[return-value]


@pytest.mark.parametrize("length", [1, 2, 255, 256, 257, 5000])
def test_hash_over_time_is_the_recurrence(tmp_path: Path, length: int) -> None:
    rng = np.random.default_rng(length)
    steps = rng.integers(-(2**63), 2**63 - 1, (length, 3))
    y, h = run_hash(rolling_hash(tmp_path), steps, np.full((3, 1), HASH_INITIAL))
    for b in range(3):
        np.testing.assert_array_equal(y[:, b], rolling_hash_reference(steps[:, b]))
    np.testing.assert_array_equal(h[:, 0], y[-1])


def test_hash_without_time_axis_is_the_recurrence(tmp_path: Path) -> None:
    file = rolling_hash(tmp_path, time_axis=False)
    steps = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, (40, 2))
    h, rows = np.full((2, 1), HASH_INITIAL), []
    for x in steps:
        y, h = run_hash(file, x, h)
        rows.append(y)
    for b in range(2):
        np.testing.assert_array_equal(np.array(rows)[:, b], rolling_hash_reference(steps[:, b]))


def test_hash_never_forgets() -> None:
    steps = np.arange(1000)
    swapped, doubled = steps.copy(), np.insert(steps, 3, steps[3])
    swapped[[0, 1]] = swapped[[1, 0]]
    right = rolling_hash_reference(steps)[-1]
    assert 0 <= right < PRIME
    assert rolling_hash_reference(swapped)[-1] != right
    assert rolling_hash_reference(doubled)[-1] != right
    assert rolling_hash_reference(steps[1:])[-1] != right


def test_both_have_contracts_that_fit(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    for file in (rolling_hash(tmp_path / "hash" / "1"), lstm_tensor(tmp_path / "lstm" / "1")):
        contract = read_contract(load_graph(file), str(file))
        assert (contract.codec.kind, contract.head.kind) == ("tensor", "tensor")
        assert (contract.time_axis, contract.batch_axis) == (0, 1)


def test_lstm_is_the_module_of_its_seed(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    file = lstm_tensor(tmp_path / "lstm" / "1", seed=3)
    x = np.random.default_rng(0).standard_normal((7, 4, 64)).astype(np.float32)
    zero = np.zeros((2, 4, 128), np.float32)
    with torch.inference_mode():
        expected = lstm_module(3)(torch.from_numpy(x), torch.from_numpy(zero), torch.from_numpy(zero))[0].numpy()
    found = onnxruntime.InferenceSession(str(file)).run(["y"], {"x": x, "h": zero, "c": zero})[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
