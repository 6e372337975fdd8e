"""Many conversations at once through a served model, message by message, as the worker would run them: the model's own
codec, its graph, a state for each conversation. Needs onnxruntime and numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pipeline.beside import Beside
from pipeline.codecs import make_codec
from pipeline.columns import AnyArray
from pipeline.errors import ModelError
from pipeline.model_file import load_graph, read_contract


def converse(model: Path, conversations: Sequence[Sequence[bytes]]) -> NDArray[np.float32]:
    """``conversations[p][i]``: the record at position p of conversation i, ``[P][n]`` -> what the head's output says
    after each, float32 ``[P, n, classes]``; zeros for a record that makes no step.

    Conversations run side by side; those whose records have as many steps share a call. Raises ModelError for a model
    that is not served in batches over a time axis.
    """
    file = model / "model.onnx"
    contract = read_contract(load_graph(file), str(file))
    codec = make_codec(contract, Beside(model))
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    output = contract.output(contract.head.output or contract.outputs[0].name)
    count = len(conversations[0])
    memory = np.zeros((count, contract.codec.memory_bytes), np.uint8)
    axes = [s.batch_axis for s in contract.states if s.batch_axis is not None]
    if len(axes) < len(contract.states) or contract.time_axis != 0:
        raise ModelError(f"{file}: conversations need a time axis and states of many streams; export the model again")
    # The batch axis first, as in a row.
    states = [_wide(np.array(s.initial_array()), s.shape, axis, count) for s, axis in zip(contract.states, axes)]
    said = np.zeros((len(conversations), count, *output.shape), np.float32)
    names = [output.name, *(s.output for s in contract.states)]
    for p, records in enumerate(conversations):
        steps = codec.decode(list(records), np.arange(count), memory)
        begins = np.cumsum(steps.counts) - steps.counts
        for length in np.unique(steps.counts[steps.counts > 0]):
            who = np.flatnonzero(steps.counts == length)
            given = steps.values[0][begins[who] + np.arange(length)[:, None]]
            carried = {
                s.input: np.moveaxis(h[who], 0, axis) for s, h, axis in zip(contract.states, states, axes, strict=True)
            }
            answer, *after = session.run(names, {contract.steps[0].name: given, **carried})
            said[p, who] = answer[-1]
            for h, new, axis in zip(states, after, axes, strict=True):
                h[who] = np.moveaxis(new, axis, 0)
    return said


def _wide(initial: AnyArray, shape: tuple[int, ...], axis: int, count: int) -> AnyArray:
    """A row's initial state, flat with the batch axis first, ``count`` times."""
    one = initial.reshape(1, *shape[:axis], *shape[axis + 1 :])
    return np.repeat(one, count, axis=0)
