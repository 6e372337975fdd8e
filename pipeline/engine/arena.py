"""The rows of all resident streams: one tensor ``[slots, row]`` per dtype, on the device that runs the model.

``read`` and ``write`` move whole rows as bytes, states side by side in the order of the dtypes: what a snapshot holds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from pipeline.columns import I64, U8, AnyArray
from pipeline.contract import DTYPES, Contract
from pipeline.engine.graph import FIRST, INITIAL, arena_in, arena_out

PIECE_BYTES = 1 << 20
"""Rows are cut out and written so many at a time: a copy of all that a takeover brings would cost twice as much."""


class Tensor(ABC):
    """One dtype's rows. ``value`` is what gets bound, as input and as output of the same run."""

    value: ort.OrtValue
    width: int
    dtype: np.dtype

    @abstractmethod
    def read(self, slots: I64) -> AnyArray:
        """A copy, ``[n, width]``."""

    @abstractmethod
    def write(self, slots: I64, rows: AnyArray) -> None: ...


class HostTensor(Tensor):
    """In the host's memory: numpy and onnxruntime look at the same bytes."""

    def __init__(self, slots: int, width: int, dtype: str) -> None:
        self.width, self.dtype = width, np.dtype(dtype)
        self._rows = np.zeros((slots, width), self.dtype)
        self.value = ort.OrtValue.ortvalue_from_numpy(self._rows, "cpu", 0)
        if self.value.data_ptr() != self._rows.ctypes.data:  # then the arena would not be updated in place
            raise MemoryError("onnxruntime copied the arena instead of sharing it")

    def read(self, slots: I64) -> AnyArray:
        return self._rows[slots]

    def write(self, slots: I64, rows: AnyArray) -> None:
        self._rows[slots] = rows


class DeviceTensor(Tensor):
    """In a device's memory: rows are gathered and scattered there by two small graphs."""

    def __init__(self, slots: int, width: int, dtype: str, device: str, providers: list[str]) -> None:
        self.width, self.dtype = width, np.dtype(dtype)
        self.value = ort.OrtValue.ortvalue_from_numpy(np.zeros((slots, width), self.dtype), device, 0)
        kind = DTYPES[dtype]
        arena = helper.make_tensor_value_info("arena", kind, ["slots", width])
        rows = helper.make_tensor_value_info("rows", kind, ["n", width])
        where = helper.make_tensor_value_info("where", TensorProto.INT64, ["n", 1])
        after = helper.make_tensor_value_info("after", kind, ["slots", width])
        self._gather = self._session(
            [helper.make_node("GatherND", ["arena", "where"], ["rows"])], [arena, where], [rows], providers
        )
        self._scatter = self._session(
            [helper.make_node("ScatterND", ["arena", "where", "rows"], ["after"])],
            [arena, where, rows],
            [after],
            providers,
        )

    @staticmethod
    def _session(
        nodes: list[onnx.NodeProto],
        inputs: list[onnx.ValueInfoProto],
        outputs: list[onnx.ValueInfoProto],
        providers: list[str],
    ) -> ort.InferenceSession:
        graph = helper.make_graph(nodes, "rows", inputs, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return ort.InferenceSession(model.SerializeToString(), providers=providers)

    def read(self, slots: I64) -> AnyArray:
        binding = self._gather.io_binding()
        binding.bind_ortvalue_input("arena", self.value)
        binding.bind_cpu_input("where", slots[:, None])
        binding.bind_output("rows", "cpu")
        self._gather.run_with_iobinding(binding)
        rows: AnyArray = binding.get_outputs()[0].numpy()
        return rows

    def write(self, slots: I64, rows: AnyArray) -> None:
        binding = self._scatter.io_binding()
        binding.bind_ortvalue_input("arena", self.value)
        binding.bind_cpu_input("where", slots[:, None])
        binding.bind_cpu_input("rows", np.ascontiguousarray(rows))
        binding.bind_ortvalue_output("after", self.value)
        self._scatter.run_with_iobinding(binding)


class Arena:
    """All of a model's states for ``slots`` streams (beside scratch and the initial row)."""

    def __init__(self, contract: Contract, slots: int, device: str = "cpu", providers: list[str] | None = None) -> None:
        self.slots = slots
        total = slots + FIRST
        self._tensors: dict[str, Tensor] = {}
        self._initial: dict[str, AnyArray] = {}
        for dtype, states in contract.states_by_dtype().items():
            width = sum(s.size for s in states)
            tensor: Tensor
            if device == "cpu" and providers is None:
                tensor = HostTensor(total, width, dtype)
            else:
                tensor = DeviceTensor(total, width, dtype, device, providers or [])
            initial = self._initial[dtype] = np.concatenate([s.initial_array() for s in states])
            tensor.write(np.array([INITIAL]), initial[None])
            self._tensors[dtype] = tensor
        self.row_bytes = sum(t.width * t.dtype.itemsize for t in self._tensors.values())

    def bind(self, binding: ort.IOBinding) -> None:
        """The arenas as inputs and outputs of the same run."""
        for dtype, tensor in self._tensors.items():
            binding.bind_ortvalue_input(arena_in(dtype), tensor.value)
            binding.bind_ortvalue_output(arena_out(dtype), tensor.value)

    def reset(self, slots: I64) -> None:
        """The initial row, for streams that have a row before their first step."""
        for dtype, tensor in self._tensors.items():
            tensor.write(slots, np.tile(self._initial[dtype], (len(slots), 1)))

    def read(self, slots: I64) -> U8:
        """Rows as bytes, ``uint8 [n, row_bytes]``."""
        pieces = [np.ascontiguousarray(t.read(slots)).view(np.uint8) for t in self._tensors.values()]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces, axis=1) if pieces else np.empty((len(slots), 0), np.uint8)

    def write(self, slots: I64, rows: U8) -> None:
        """Rows from bytes, ``uint8 [n, row_bytes]``."""
        at = 0
        for tensor in self._tensors.values():
            size = tensor.width * tensor.dtype.itemsize
            n = max(1, PIECE_BYTES // max(1, size))
            for a in range(0, len(slots), n):
                piece = np.ascontiguousarray(rows[a : a + n, at : at + size]).view(tensor.dtype)
                tensor.write(slots[a : a + n], piece)
            at += size
