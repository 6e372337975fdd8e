"""Recurrent models that Keras exported to ONNX: names without meaning, a time axis that is declared and not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export.adopt import adopt
from export.adopt.report import as_json
from tests.unit.export.adopt.packages import package
from tests.unit.export.adopt.serving import by_hand, floats, mixed, served, session

PACKAGES = (
    *("keras==3.15.1", "absl-py==2.5.1", "rich==15.0.0", "namex==0.1.0", "h5py==3.16.0", "optree==0.20.0"),
    *("markdown-it-py==4.3.0", "mdurl==0.1.2", "pygments==2.21.0", "onnxscript==0.7.2", "onnx-ir==1.1.0"),
)
MAKE = """
import numpy as np, keras
from keras import layers
keras.utils.set_random_seed(3)
x, h, c = keras.Input((%(steps)s, 8)), keras.Input((16,)), keras.Input((16,))
states = [h, c] if "%(cell)s" == "LSTM" else [h]
layer = layers.%(cell)s(16, return_sequences=True, return_state=True)
y, *after = layer(x, initial_state=states if len(states) > 1 else h)
model = keras.Model([x, *states], [layers.Dense(4)(y), *after])
model([np.zeros((1, 1, 8), "float32"), *(np.zeros((1, 16), "float32") for _ in states)])
model.export("%(file)s", format="onnx", verbose=False)
"""


def _exported(folder: Path, cell: str, steps: int | None) -> Path:
    file = folder / "keras.onnx"
    place = package(*PACKAGES)
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MAKE % {"cell": cell, "steps": steps, "file": file}],
        check=True,
        timeout=200,
        env={**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": str(place)},
        capture_output=True,
    )
    return file


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "steps"), [("LSTM", None), ("GRU", 1)])
async def test_a_recurrent_layer_of_keras(tmp_path: Path, cell: str, steps: int | None):
    file = _exported(tmp_path, cell, steps)
    adopted = adopt(file, tmp_path / "keras" / "1")
    found = as_json(adopted)
    inputs, outputs = ([v.name for v in values()] for values in (session(file).get_inputs, session(file).get_outputs))
    assert [s["input"] for s in found["states"]] == inputs[1:]
    assert [s["output"] for s in found["states"]] == outputs[1:]
    assert all(s["batch_axis"] == 0 for s in found["states"])
    assert (found["batching"], found["time_axis"]) == ("batched", None)
    rng = np.random.default_rng(1)
    streams = {b"s%d" % k: [floats(rng, 1, 8) for _ in range(6)] for k in range(3)}
    got, _, _ = await served(adopted.file, mixed(streams))
    zeros = np.zeros((1, 16), np.float32)
    for key, given in streams.items():
        states = dict(zip(inputs[1:], [(o, zeros) for o in outputs[1:]]))
        wanted = by_hand(file, [{inputs[0]: s[None]} for s in given], states, outputs[0])
        assert np.abs(np.frombuffer(got[key], "<f4") - np.concatenate(wanted).reshape(-1)).max() <= 1e-4
