"""Running a file, plainly: sizes that it takes, values to try it with.

A ``Bench`` holds the open graph (nothing declared of any size), a base shape for one step of one stream of every input,
and a way to draw values for each. Everything the adoption claims, it claims after runs of this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import onnx
import onnxruntime as ort

from export.adopt.file import Array, File, opened
from export.adopt.verdict import Fails, Refused
from export.measure import measure

SIZES = (
    *range(1, 65),
    *(72, 80, 96, 100, 120, 128, 160, 192, 200, 240, 256, 257, 320, 400, 480, 512, 513, 576, 640, 720, 768, 800, 882),
    *(960, 1024, 1200, 1280, 1441, 1536, 1600, 1920, 2048, 2400, 2560, 3200, 4000, 4096, 4800, 8000, 8192, 16000),
)
"""Along an axis without a number: all small ones, and what frames, hops and chunks of sound usually are."""
LAYERS = (2, 3, 4, 6, 8)
WHOLE_LIMITS = (100, 16, 4, 2, 1)
"""Whole numbers are drawn below the largest of these that the graph takes: an index must be inside its table."""


class Session:
    """onnxruntime on one thread, quiet. Raises Fails where it does not load the graph."""

    def __init__(self, model: onnx.ModelProto, optimise: bool = True) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        if not optimise:  # then nodes keep their names, and an error says which it was
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no common base
            raise Fails(first_line(error)) from None
        self.outputs: list[str] = [o.name for o in self._session.get_outputs()]
        self._options = ort.RunOptions()
        self._options.log_severity_level = 4

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name. Raises Fails."""
        given = {name: np.asarray(a, order="C") for name, a in feed.items()}
        try:
            return dict(zip(self.outputs, self._session.run(self.outputs, given, self._options)))
        except Exception as error:  # noqa: BLE001 - see above
            raise Fails(first_line(error)) from None


def first_line(error: BaseException) -> str:
    """What onnxruntime says, without its own code for it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", lines[0])
    line = re.sub(r"^Non-zero status code returned while running (\w+) node\. ", r"\1 node does not run: ", line)
    return re.sub(r"(Status Message: )/\S+:\d+ .*?\) ", r"\1", line)[:400]


def close(a: Array, b: Array, tolerance: float = 1e-4) -> bool:
    """Whether two results agree, as far as rounding in another order lets them."""
    return measure(a, b, tolerance)[1] <= 1


@dataclass
class Bench:
    """See the module."""

    file: File
    session: Session
    constants: dict[str, Array]
    """Inputs whose value was given or guessed; they are in every feed."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    scale: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Of inputs of floats: what noise is multiplied with, what is added."""
    values: dict[str, list[Array]] = field(default_factory=dict)
    """What an input is drawn from, where not any number will do."""

    @staticmethod
    def of(file: File, constants: dict[str, Array]) -> Bench:
        """Raises Refused for a graph that onnxruntime does not load."""
        try:
            return Bench(file, Session(opened(file.model)), constants)
        except Fails as fails:
            raise Refused(f"onnxruntime cannot load the graph: {fails}") from None

    def draw(self, name: str, rng: np.random.Generator, shape: Sequence[int] | None = None) -> Array:
        """Values for one input, of its base shape or another."""
        if name in self.values:
            return self.values[name][int(rng.integers(len(self.values[name])))]
        shape = self.shapes[name] if shape is None else tuple(shape)
        dtype = self.file.inputs[name].dtype
        if dtype == "bool":
            return np.asarray(rng.integers(0, 2, shape), np.bool_)
        if not dtype.startswith("float"):
            return np.asarray(rng.integers(0, self.limits.get(name, 1), shape), dtype)
        factor, shift = self.scale.get(name, (1.0, 0.0))
        return np.asarray(rng.standard_normal(shape) * factor + shift, dtype)

    def feed(self, rng: np.random.Generator, given: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """One step of one stream: drawn, but for what is given."""
        given = given or {}
        fixed = {**self.constants, **given}
        return {name: fixed[name] if name in fixed else self.draw(name, rng) for name in self.file.inputs}

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        return self.session.run(feed)

    # ---- the base

    def find_base(self, shapes: Mapping[str, tuple[int, ...]], hop: int | None) -> None:
        """Sizes that one step of one stream may have. ``shapes``: what the user says. Raises Refused."""
        reason = ""
        for sizes in self._tries(shapes, hop):
            self.shapes = sizes
            self.limits = dict.fromkeys(self.file.inputs, 1)
            try:
                self.run(self.feed(np.random.default_rng(0)))
            except Fails as fails:
                reason = reason or str(fails)
                continue
            self._find_limits()
            return
        free = [str(p) for n, p in self.file.inputs.items() if p.free and n not in shapes]
        hint = f"; say what its free axes are with --shape NAME=1,2,3 ({', '.join(free)})" if free else ""
        raise Refused(f"no run of one step succeeds: {reason}{hint}")

    def _tries(self, given: Mapping[str, tuple[int, ...]], hop: int | None) -> Iterable[dict[str, tuple[int, ...]]]:
        ports = {n: p for n, p in self.file.inputs.items() if n not in self.constants}

        def sized(of: Mapping[tuple[str, int], int]) -> dict[str, tuple[int, ...]]:
            return {
                n: given.get(n) or tuple(d if isinstance(d, int) else of.get((n, i), 1) for i, d in enumerate(p.dims))
                for n, p in ports.items()
            }

        axes = [(n, i) for n, p in ports.items() if n not in given for i in p.free]
        symbols: dict[str, list[tuple[str, int]]] = {}
        for n, i in axes:
            symbols.setdefault(str(ports[n].dims[i]), []).append((n, i))
        # Last axes first: what comes before is more often streams.
        groups = sorted(symbols.values(), key=lambda g: -g[0][1])
        groups += [[a] for g in groups if len(g) > 1 for a in g]
        if hop is not None and hop > 1:
            for group in groups:
                yield sized(dict.fromkeys(group, hop))
            for group, other in product(groups, groups):
                for size in LAYERS:
                    yield sized(dict.fromkeys(other, size) | dict.fromkeys(group, hop))
            return
        yield sized({})
        for group in groups:
            for size in SIZES[1:]:
                yield sized(dict.fromkeys(group, size))
        for group, other in product(groups, groups):
            if group is not other:
                for layers, size in product(LAYERS, SIZES[1:64:8] + SIZES[64:]):
                    yield sized(dict.fromkeys(group, layers) | dict.fromkeys(other, size))

    def _find_limits(self) -> None:
        """The largest whole numbers that every run takes, and floats that end in finite results."""
        whole = [n for n in self.shapes if not self.file.inputs[n].dtype.startswith(("float", "bool"))]
        for name in whole:
            for limit in WHOLE_LIMITS:
                self.limits[name] = limit
                if self._survives(6, {name: np.full(self.shapes[name], limit - 1, self.file.inputs[name].dtype)}):
                    break
        for factor, shift in ((1.0, 0.0), (0.1, 0.5), (0.02, 0.0)):
            self.scale = dict.fromkeys(self.shapes, (factor, shift))
            if self._survives(2, {}, finite=True):
                return
        self.scale = {}

    def find_stream_constant(self, name: str, known: Sequence[Array]) -> None:
        """What a stream's own constant may be: ``known`` values that run, else any number that does."""
        rng = np.random.default_rng(6)
        shape = self.constants[name].shape
        runs = [v for v in known if self._takes(name, v)]
        if runs:
            self.values[name] = runs
            self.constants[name] = runs[0]
            return
        for limit in WHOLE_LIMITS:
            self.limits[name] = limit
            if all(self._takes(name, self.draw(name, rng, shape)) for _ in range(8)):
                break
        self.constants[name] = self.draw(name, rng, shape)

    def _takes(self, name: str, value: Array) -> bool:
        try:
            self.run(self.feed(np.random.default_rng(7), {name: value}))
        except Fails:
            return False
        return True

    def _survives(self, runs: int, given: Mapping[str, Array], finite: bool = False) -> bool:
        rng = np.random.default_rng(1)
        for k in range(runs):
            try:
                outputs = self.run(self.feed(rng, given if k == 0 else None))
            except Fails:
                return False
            if finite and not all(np.isfinite(o).all() for o in outputs.values() if o.dtype.kind == "f"):
                return False
        return True
