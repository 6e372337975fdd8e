"""What a served model promises. It lives in the ONNX file's own metadata (``eddy.contract``): one file is a model.

The plain graph has the step inputs, one input and one output per state, and the outputs. Axes: step inputs and
outputs are ``[T, B, ...]`` (``time_axis`` 0, ``batch_axis`` 1), ``[B, T, ...]`` (1, 0) or, without a time axis,
``[B, ...]`` (None, 0). A state has a batch axis of its own.

``model_file.py`` reads and writes it, and holds it against its graph.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from pipeline.errors import ContractError

METADATA_KEY = "eddy.contract"
VERSION = 1
RESERVED = "eddy."
"""Names in the graph that begin with this are the loader's."""

DTYPES: dict[str, int] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "int16": TensorProto.INT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
}


@dataclass(frozen=True, slots=True)
class StepInput:
    """One input of a step. ``shape`` is one step's, without time and batch axis: ``()`` for a token, ``(64,)``."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of one step of this input."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Constant:
    """An input that stays the same: for every call (a sample rate, say), or for a whole stream (a speaker's number).

    With ``header`` it is a stream's own: ``header`` names the record header that has it, ``value`` is what a stream
    gets that never names one (none: its records are dead letters until one does), ``shape`` has 1 at ``batch_axis``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    value: tuple[float | int | bool, ...]
    """Flat, row-major."""
    header: str | None = None
    batch_axis: int | None = None
    """None: a model of one stream a call may take it without a batch axis."""

    @property
    def nbytes(self) -> int:
        """Bytes of one stream's value."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def array(self) -> NDArray[Any]:
        return np.array(self.value, self.dtype).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class State:
    """One tensor that a stream carries from step to step. ``shape`` has 1 at ``batch_axis``; None, for a model of one
    stream a call: it has no batch axis, ``shape`` is one stream's."""

    input: str
    output: str
    dtype: str
    shape: tuple[int, ...]
    batch_axis: int | None
    initial: tuple[float | int | bool, ...] | None = None
    """Flat, row-major; None is zeros."""

    @property
    def size(self) -> int:
        """Elements per stream."""
        return int(np.prod(self.shape, dtype=np.int64))

    def initial_array(self) -> NDArray[Any]:
        """The state of a new stream, flat ``[size]``, laid out with the batch axis first (as in a row)."""
        if self.initial is None:
            return np.zeros(self.size, self.dtype)
        whole = np.array(self.initial, self.dtype).reshape(self.shape)
        return np.moveaxis(whole, self.batch_axis or 0, 0).reshape(-1) if whole.ndim else whole.reshape(-1)


@dataclass(frozen=True, slots=True)
class Output:
    """One output of the model; ``shape`` is one step's, without time and batch axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """Which codec turns record bytes into steps. ``memory_bytes``: what it keeps of a stream in the row."""

    kind: str
    memory_bytes: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """Which head turns outputs into records. ``output`` feeds it (None: all outputs, in order)."""

    kind: str
    output: str | None = None
    memory_bytes: int = 0
    labels: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contract:
    """See the module. Frozen: what is derived from it is computed once."""

    name: str
    model_version: str
    steps: tuple[StepInput, ...]
    states: tuple[State, ...]
    outputs: tuple[Output, ...]
    codec: CodecSpec
    head: HeadSpec
    batch_axis: int = 1
    time_axis: int | None = 0
    batching: str = "batched"
    """``batched``, or ``single`` where one stream's result would depend on its neighbours."""
    constants: tuple[Constant, ...] = ()

    @cached_property
    def stream_constants(self) -> tuple[Constant, ...]:
        """Those that are a stream's own."""
        return tuple(c for c in self.constants if c.header is not None)

    @cached_property
    def given_bytes(self) -> int:
        """What the row keeps of a stream's own constants: whether it has them, and their bytes."""
        return 1 + sum(c.nbytes for c in self.stream_constants) if self.stream_constants else 0

    @property
    def label(self) -> str:
        """``name/version``: the ``eddy-model`` header and the metrics' label."""
        return f"{self.name}/{self.model_version}"

    @cached_property
    def digest(self) -> bytes:
        """Eight bytes of the state schema: what is in a row, and how wide. (Snapshots: ``snapshots.digest_of``.)"""
        schema: dict[str, list[Any]] = {
            "states": [[s.input, s.dtype, list(s.shape), s.batch_axis] for s in self.states],
            "codec": [self.codec.kind, self.codec.memory_bytes],
            "head": [self.head.kind, self.head.memory_bytes],
        }
        if self.stream_constants:
            schema["constants"] = [[c.name, c.dtype, list(c.shape)] for c in self.stream_constants]
        return hashlib.sha256(json.dumps(schema, separators=(",", ":")).encode()).digest()[:8]

    @cached_property
    def step_bytes(self) -> int:
        """Bytes of one step, all inputs side by side."""
        return sum(s.nbytes for s in self.steps)

    def states_by_dtype(self) -> dict[str, tuple[State, ...]]:
        """States that share an arena, in contract order; arenas in order of first appearance."""
        groups: dict[str, list[State]] = {}
        for state in self.states:
            groups.setdefault(state.dtype, []).append(state)
        return {dtype: tuple(group) for dtype, group in groups.items()}

    def output(self, name: str) -> Output:
        for output in self.outputs:
            if output.name == name:
                return output
        known = ", ".join(o.name for o in self.outputs)
        raise ContractError(f"contract of {self.label}: no output named {name!r} (there are: {known})")

    # ---- JSON

    def to_json(self) -> str:
        return json.dumps(
            {
                "version": VERSION,
                "name": self.name,
                "model_version": self.model_version,
                "steps": [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in self.steps],
                "batch_axis": self.batch_axis,
                "time_axis": self.time_axis,
                "batching": self.batching,
                "constants": [
                    {"name": c.name, "dtype": c.dtype, "shape": list(c.shape), "value": list(c.value)}
                    | ({} if c.header is None else {"header": c.header, "batch_axis": c.batch_axis})
                    for c in self.constants
                ],
                "states": [
                    {
                        "input": s.input,
                        "output": s.output,
                        "dtype": s.dtype,
                        "shape": list(s.shape),
                        "batch_axis": s.batch_axis,
                        "initial": None if s.initial is None else list(s.initial),
                    }
                    for s in self.states
                ],
                "outputs": [{"name": o.name, "dtype": o.dtype, "shape": list(o.shape)} for o in self.outputs],
                "codec": {
                    "kind": self.codec.kind,
                    "memory_bytes": self.codec.memory_bytes,
                    "settings": dict(self.codec.settings),
                },
                "head": {
                    "kind": self.head.kind,
                    "output": self.head.output,
                    "memory_bytes": self.head.memory_bytes,
                    "labels": list(self.head.labels),
                    "settings": dict(self.head.settings),
                },
                "digest": self.digest.hex(),
            },
            ensure_ascii=False,
            indent=1,
        )

    @staticmethod
    def from_json(text: str, where: str = "contract") -> Contract:
        """Raises ContractError naming ``where``, the key and the value."""
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise ContractError(f"{where}: not JSON ({error})") from None
        if not isinstance(raw, dict):
            raise ContractError(f"{where}: expected a JSON object, found {type(raw).__name__}")
        if raw.get("version") != VERSION:
            raise ContractError(
                f"{where}: version is {raw.get('version')!r}, this Eddy reads {VERSION}; export the model again"
            )
        contract = _read(raw, where)
        contract.check(where)
        digest = raw.get("digest")
        if digest is not None and digest != contract.digest.hex():
            raise ContractError(
                f"{where}: digest {digest!r} does not match the states listed ({contract.digest.hex()});"
                " export the model again"
            )
        return contract

    def check(self, where: str) -> None:
        """What can be told without the graph. Raises ContractError naming ``where`` and what is wrong."""

        def need(condition: bool, message: str) -> None:
            if not condition:
                raise ContractError(f"{where}: {message}")

        def one_stream(what: str, shape: tuple[int, ...], axis: int | None) -> None:
            if axis is None:
                need(self.batching == "single", f"{what}: batch axis null: only where batching is single")
                return
            need(0 <= axis < len(shape), f"{what}: batch axis {axis} of shape {list(shape)}")
            need(shape[axis] == 1, f"{what}: shape {list(shape)} must have 1 at its batch axis {axis}")

        need(bool(self.steps), "no step inputs: a model needs at least one")
        need(bool(self.outputs), "no outputs: a model needs at least one")
        need(
            (self.time_axis, self.batch_axis) in {(0, 1), (1, 0), (None, 0)},
            f"time_axis {self.time_axis} with batch_axis {self.batch_axis}: expected 0 and 1, 1 and 0, or null and 0",
        )
        need(self.batching in ("batched", "single"), f"batching is {self.batching!r}: expected batched or single")
        names = [s.name for s in self.steps] + [c.name for c in self.constants] + [s.input for s in self.states]
        doubled = sorted({n for n in names if names.count(n) > 1})
        need(not doubled, f"input named twice: {', '.join(doubled)}")
        named = [(t.name, t.dtype, t.shape) for group in (self.steps, self.constants, self.outputs) for t in group]
        for label, dtype, shape in [*named, *((s.input, s.dtype, s.shape) for s in self.states)]:
            need(dtype in DTYPES, f"{label}: dtype {dtype!r} is none of {', '.join(DTYPES)}")
            need(all(d > 0 for d in shape), f"{label}: shape {list(shape)} must be fixed and positive")
        for c in self.constants:
            count = int(np.prod(c.shape, dtype=np.int64))
            need(
                len(c.value) == count or (c.header is not None and not c.value),
                f"constant {c.name}: {len(c.value)} values for shape {list(c.shape)}",
            )
            need(c.header is None or bool(c.header), f"constant {c.name}: the header's name is empty")
            if c.header is not None:
                one_stream(f"constant {c.name}", c.shape, c.batch_axis)
        for s in self.states:
            one_stream(f"state {s.input}", s.shape, s.batch_axis)
            need(
                s.initial is None or len(s.initial) == s.size,
                f"state {s.input}: {len(s.initial or ())} initial values for shape {list(s.shape)}",
            )
        if self.head.output is not None:
            self.output(self.head.output)


def _read(raw: dict[str, Any], where: str) -> Contract:
    """The literal reading; whatever is missing or of the wrong type is named."""

    def take(source: Mapping[str, Any], key: str, kind: type | tuple[type, ...], path: str) -> Any:
        if key not in source:
            raise ContractError(f"{where}: {path}{key} is missing")
        value = source[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise ContractError(f"{where}: {path}{key} is {value!r}, of type {type(value).__name__}")
        return value

    def shape(source: Mapping[str, Any], path: str) -> tuple[int, ...]:
        dims = take(source, "shape", list, path)
        if not all(isinstance(d, int) and not isinstance(d, bool) for d in dims):
            raise ContractError(f"{where}: {path}shape is {dims!r}: expected integers")
        return tuple(dims)

    def each(key: str) -> list[tuple[Mapping[str, Any], str]]:
        items = take(raw, key, list, "")
        for i, item in enumerate(items):
            if not isinstance(item, dict):
                raise ContractError(f"{where}: {key}[{i}] is {item!r}: expected an object")
        return [(item, f"{key}[{i}].") for i, item in enumerate(items)]

    none = type(None)
    codec, head = take(raw, "codec", dict, ""), take(raw, "head", dict, "")
    return Contract(
        name=take(raw, "name", str, ""),
        model_version=take(raw, "model_version", str, ""),
        steps=tuple(
            StepInput(take(i, "name", str, p), take(i, "dtype", str, p), shape(i, p)) for i, p in each("steps")
        ),
        states=tuple(
            State(
                take(i, "input", str, p),
                take(i, "output", str, p),
                take(i, "dtype", str, p),
                shape(i, p),
                take(i, "batch_axis", (int, none), p),
                None if i.get("initial") is None else tuple(take(i, "initial", list, p)),
            )
            for i, p in each("states")
        ),
        outputs=tuple(
            Output(take(i, "name", str, p), take(i, "dtype", str, p), shape(i, p)) for i, p in each("outputs")
        ),
        constants=tuple(
            Constant(
                take(i, "name", str, p),
                take(i, "dtype", str, p),
                shape(i, p),
                tuple(take(i, "value", list, p)),
                take(i, "header", (str, none), p) if "header" in i else None,
                take(i, "batch_axis", (int, none), p) if "batch_axis" in i else None,
            )
            for i, p in each("constants")
        ),
        codec=CodecSpec(
            take(codec, "kind", str, "codec."),
            take(codec, "memory_bytes", int, "codec."),
            take(codec, "settings", dict, "codec."),
        ),
        head=HeadSpec(
            take(head, "kind", str, "head."),
            take(head, "output", (str, none), "head."),
            take(head, "memory_bytes", int, "head."),
            tuple(take(head, "labels", list, "head.")),
            take(head, "settings", dict, "head."),
        ),
        batch_axis=take(raw, "batch_axis", int, ""),
        time_axis=take(raw, "time_axis", (int, none), ""),
        batching=take(raw, "batching", str, ""),
    )
