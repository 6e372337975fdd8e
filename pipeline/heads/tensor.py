"""Head ``tensor``: the outputs that the contract names, as little-endian bytes.

A record of T steps gets one output record: the first output ``[T, ...]``, then the second ``[T, ...]``, and so on. A
record without steps gets none.
"""

from __future__ import annotations

import numpy as np

from pipeline.beside import NOTHING_BESIDE, Beside
from pipeline.codecs.settings import Settings
from pipeline.columns import U8, AnyArray
from pipeline.contract import Contract
from pipeline.heads.base import NOTHING, Answered, Finished, Head


class TensorHead(Head):
    """See the module. ``output`` of the contract's head picks one output; without it all are written, in order.

    Raises ContractError for an output that is not there, and for any setting: there are none.
    """

    memory_bytes = 0
    keeps = "all"

    def __init__(self, contract: Contract, beside: Beside = NOTHING_BESIDE) -> None:
        Settings(contract, "head", beside).finish()
        chosen = contract.head.output
        outputs = contract.outputs if chosen is None else (contract.output(chosen),)
        self.reads = tuple(o.name for o in outputs)

    def answer(self, finished: Finished, memory: U8) -> Answered:
        """Values are a matrix ``uint8 [k, V]`` where all records have the same number of steps."""
        index = np.flatnonzero(finished.counts)
        if not len(index):
            return NOTHING
        counts = finished.counts[index]
        outputs = [_bytes_of_steps(o) for o in finished.outputs]
        if (counts == counts[0]).all():
            matrices = [o.reshape(len(index), -1) for o in outputs]
            return Answered(index, matrices[0] if len(matrices) == 1 else np.concatenate(matrices, axis=1))
        ends = np.cumsum(counts)
        columns = []
        for o in outputs:
            blob, width = o.tobytes(), o.shape[1]
            columns.append([blob[a:b] for a, b in zip(((ends - counts) * width).tolist(), (ends * width).tolist())])
        return Answered(index, list(columns[0]) if len(columns) == 1 else [b"".join(p) for p in zip(*columns)])


def _bytes_of_steps(output: AnyArray) -> U8:
    """``[n_steps, *shape]`` of any dtype -> ``uint8 [n_steps, W]``, little-endian."""
    little = np.ascontiguousarray(output, output.dtype.newbyteorder("<"))
    return little.reshape(len(output), -1).view(np.uint8)
