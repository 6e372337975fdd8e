"""Codec ``tensor``: little-endian arrays of the contract's step inputs, in its order, with no framing.

A record of T steps holds the first input ``[T, ...]``, then the second ``[T, ...]``, and so on; T follows from the
record's length. A record without bytes has no steps. The hosts that Eddy runs on are little-endian, so for one input
the bytes of all records, joined, are the array.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from pipeline.beside import NOTHING_BESIDE, Beside
from pipeline.codecs.base import Codec, Steps
from pipeline.codecs.settings import Settings
from pipeline.columns import I64, U8, AnyArray
from pipeline.contract import Contract
from pipeline.errors import RecordError


class TensorCodec(Codec):
    """See the module. Keeps nothing of a stream. Raises ContractError for any setting: there are none."""

    memory_bytes = 0

    def __init__(self, contract: Contract, beside: Beside = NOTHING_BESIDE) -> None:
        Settings(contract, "codec", beside).finish()
        self._inputs = contract.steps
        self.step_bytes = contract.step_bytes
        self._starts = [0, *accumulate(s.nbytes for s in contract.steps)][:-1]
        self._layout = " + ".join(f"{s.name} {s.dtype}{list(s.shape)}" for s in contract.steps)

    def decode(self, values: list[bytes], slots: I64, memory: U8) -> Steps:
        """Fails with reason ``length`` what is no whole number of steps."""
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        counts, left = np.divmod(lengths, self.step_bytes)
        if not left.any():
            return Steps(self._arrays(values, counts), counts)
        wrong = np.flatnonzero(left)
        counts[wrong] = 0
        failed = {i: self._error(len(values[i])) for i in wrong.tolist()}
        kept = [b"" if i in failed else value for i, value in enumerate(values)]
        return Steps(self._arrays(kept, counts), counts, failed)

    def _error(self, length: int) -> RecordError:
        return RecordError(
            "length", f"{length} bytes are no whole number of steps: one step is {self.step_bytes} ({self._layout})"
        )

    def _arrays(self, values: list[bytes], counts: I64) -> tuple[AnyArray, ...]:
        blob = np.frombuffer(b"".join(values), np.uint8)
        if len(self._inputs) == 1:
            return (self._typed(blob, 0),)
        # Input j of record i begins counts[i] * starts[j] bytes into the record; its steps follow each other.
        n_steps = int(counts.sum())
        first_step = np.cumsum(counts) - counts
        within = np.arange(n_steps) - np.repeat(first_step, counts)
        record_start = np.repeat(first_step * self.step_bytes, counts)
        record_steps = np.repeat(counts, counts)
        out = []
        for j, step in enumerate(self._inputs):
            begins = record_start + record_steps * self._starts[j] + within * step.nbytes
            raw = np.empty((0, step.nbytes), np.uint8)
            if n_steps:
                raw = np.lib.stride_tricks.sliding_window_view(blob, step.nbytes)[begins]
            out.append(self._typed(raw.reshape(-1), j))
        return tuple(out)

    def _typed(self, raw: U8, j: int) -> AnyArray:
        """``uint8 [n_steps * nbytes]`` -> ``[n_steps, *shape]``. Of bool, any byte but zero is true."""
        step = self._inputs[j]
        array: AnyArray = raw != 0 if step.dtype == "bool" else raw.view(np.dtype(step.dtype).newbyteorder("<"))
        return array.reshape(-1, *step.shape)
