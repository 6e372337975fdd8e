"""The proof: what a worker will run gives what the file gives by hand, one stream, one step a call.

The measure is the file as it was found, its own declared sizes included. Against it runs the real engine: streams side
by side at different places, whole sequences, both at once; every output of every step and every state at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from export.adopt.batch import compare
from export.adopt.edges import Plan
from export.adopt.file import Array
from export.adopt.runs import Bench, Session
from export.adopt.verdict import Fails
from export.measure import measure
from pipeline.contract import Contract, State
from pipeline.engine import Engine
from pipeline.engine.graph import FIRST
from pipeline.errors import EddyError
from pipeline.scheduler import Limits
from pipeline.scheduler import plan as rectangles

LENGTHS = (3, 17, 8, 12)
"""Steps of each stream: they are never at the same place."""
LOUDNESS = (1.0, 4.0, 0.25, 1.0)
"""Of each stream's floats: a scale that is shared shows."""
AFTER, ROUNDS = 12, 4
"""Steps after which a forgotten state is looked for, and how often: a step may well reset it."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One comparison: largest differences of step outputs and of states, and the worst ratio to what is allowed."""

    what: str
    outputs: float
    states: float
    excess: float
    where: str


@dataclass(frozen=True)
class Proof:
    """All comparisons; ``matters``: how much what follows changes without each state."""

    figures: tuple[Figure, ...]
    matters: tuple[tuple[str, float], ...]

    @property
    def worst(self) -> Figure:
        return max(self.figures, key=lambda f: f.excess)


@dataclass
class _Streams:
    """Steps of some streams, and what the file gives for them: outputs ``[n, *shape]`` and last states, flat."""

    steps: list[dict[str, Array]]
    outputs: list[dict[str, Array]]
    states: list[dict[str, Array]]
    constants: list[dict[str, Array]]


def by_hand(bench: Bench, plan: Plan, contract: Contract) -> _Streams:
    """The file's own session, one stream and one step a call. Raises Fails."""
    session = Session(bench.file.model)
    rng = np.random.default_rng(50)
    streams = _Streams([], [], [], [])
    inputs = {p.name: p for p in plan.inputs}
    outputs = {p.name: p for p in plan.outputs}
    shown = {f"{s.output}_shown": s for s in contract.states} if not outputs else {}
    for length, loudness in zip(LENGTHS, LOUDNESS):
        own = {c.name: bench.draw(c.name, rng) for c in contract.stream_constants}
        columns: dict[str, Array] = {}
        for n, p in inputs.items():
            values = np.stack([bench.draw(n, rng, p.step_shape) for _ in range(length)])
            columns[n] = (values * loudness).astype(values.dtype) if values.dtype.kind == "f" else values
        states = first_states(bench, contract)
        rows: dict[str, list[Array]] = {o.name: [] for o in contract.outputs}
        for t in range(length):
            feed = {n: columns[n][t].reshape(inputs[n].shape) for n in inputs}
            out = session.run({**bench.constants, **feed, **states, **own})
            states = {s.input: out[s.output] for s in contract.states}
            for o in contract.outputs:
                source = shown[o.name].output if o.name in shown else o.name
                rows[o.name].append(_step_of(out[source], o.shape, shown.get(o.name)))
        streams.steps.append(columns)
        streams.outputs.append({o: np.stack(r) for o, r in rows.items()})
        streams.states.append({s.input: _row_of(states[s.input], s.batch_axis) for s in contract.states})
        streams.constants.append(own)
    return streams


def first_states(bench: Bench, contract: Contract) -> dict[str, Array]:
    """As a new stream begins, in the file's own shapes."""
    found = {}
    for s in contract.states:
        flat = np.zeros(s.size, s.dtype) if s.initial is None else np.array(s.initial, s.dtype)
        found[s.input] = flat.reshape(bench.shapes[s.input])
    return found


def _step_of(value: Array, shape: tuple[int, ...], shown: State | None) -> Array:
    """One step's output as the contract has it. ``shown``: the state that it is."""
    if shown is not None and shown.batch_axis is not None:
        value = np.moveaxis(value, shown.batch_axis, 0)
    return value.reshape(shape)


def _row_of(state: Array, axis: int | None) -> Array:
    return (np.moveaxis(state, axis, 0) if axis is not None else state).reshape(-1)


def prove(bench: Bench, plan: Plan, model: onnx.ModelProto, contract: Contract, tolerance: float | None) -> Proof:
    """Raises Fails where the file, or what was made of it, does not run."""
    streams = by_hand(bench, plan, contract)
    single = contract.batching == "single"
    side = "one stream a call" if single else "different streams batched"
    figures = [
        _served(f"{side}, against each alone", model, contract, streams, Limits(1 if single else 64, 64, 1), tolerance)
    ]
    if contract.time_axis is not None:
        figures.append(
            _served("whole sequence, against step by step", model, contract, streams, Limits(1, 64, 64), tolerance)
        )
        if not single:
            figures.append(_served("both at once", model, contract, streams, Limits(64, 256, 64), tolerance))
    return Proof(tuple(figures), _matters(bench, contract, streams))


def _served(
    what: str, model: onnx.ModelProto, contract: Contract, streams: _Streams, limits: Limits, tolerance: float | None
) -> Figure:
    """All streams through the engine in three polls, the later ones beginning in the middle."""
    count = len(streams.steps)
    names = [o.name for o in contract.outputs]
    try:
        engine = Engine(model, contract, names, slots=count)
        fresh = np.ones(count + FIRST, np.bool_)
        got: list[list[tuple[Array, ...]]] = [[] for _ in range(count)]
        rows: dict[int, Array] = {}
        given = _given(contract, streams)
        for part in range(3):
            mine = [(k, len(next(iter(s.values())))) for k, s in enumerate(streams.steps)]
            spans = [(k, part * n // 3, (part + 1) * n // 3) for k, n in mine]
            slots = np.concatenate([np.full(b - a, k + FIRST) for k, a, b in spans])
            columns = tuple(
                np.concatenate([streams.steps[k][s.name][a:b] for k, a, b in spans]) for s in contract.steps
            )
            moved = np.unique(slots)
            run = engine.prepare(rectangles(slots, limits), columns, len(slots), fresh, None, len(slots), moved, given)
            engine.submit(run, lambda _: None)
            if run.error is not None:
                raise Fails(str(run.error).strip().splitlines()[0])
            at = 0
            for k, a, b in spans:
                got[k].append(tuple(o[at : at + b - a] for o in run.outputs))
                at += b - a
            rows.update(zip((moved - FIRST).tolist(), run.rows))
    except EddyError as error:
        raise Fails(str(error)) from None
    return _compared(what, contract, streams, got, rows, tolerance)


def _given(contract: Contract, streams: _Streams) -> Array | None:
    """The streams' own constants, as the row holds them."""
    if not contract.stream_constants:
        return None
    memory = np.zeros((len(streams.steps) + FIRST, contract.given_bytes), np.uint8)
    for k, own in enumerate(streams.constants):
        memory[k + FIRST, 0] = 1
        blob = b"".join(own[c.name].tobytes() for c in contract.stream_constants)
        memory[k + FIRST, 1:] = np.frombuffer(blob, np.uint8)
    return memory


def _compared(
    what: str,
    contract: Contract,
    streams: _Streams,
    got: list[list[tuple[Array, ...]]],
    rows: Mapping[int, Array],
    tolerance: float | None,
) -> Figure:
    outputs, states, excess, where = 0.0, 0.0, 0.0, ""
    for k, wanted in enumerate(streams.outputs):
        for i, o in enumerate(contract.outputs):
            values = np.concatenate([part[i] for part in got[k]])
            gap, ratio = compare(values, wanted[o.name], False, tolerance)
            outputs = max(outputs, gap)
            if ratio > excess:
                excess, where = ratio, o.name
        at = 0
        for dtype, group in contract.states_by_dtype().items():
            for s in group:
                size = s.size * np.dtype(dtype).itemsize
                value = rows[k][at : at + size].copy().view(dtype)
                at += size
                gap, ratio = compare(value, streams.states[k][s.input], True, tolerance)
                states = max(states, gap)
                if ratio > excess:
                    excess, where = ratio, f"state {s.input}"
    return Figure(what, outputs, states, excess, where)


def _matters(bench: Bench, contract: Contract, streams: _Streams) -> tuple[tuple[str, float], ...]:
    """Goes on once with all states, and once for each with that one as in a new stream."""
    session = Session(bench.file.model)
    rng = np.random.default_rng(60)
    fresh = first_states(bench, contract)
    own = streams.constants[0]
    sizes = dict.fromkeys((s.input for s in contract.states), 0.0)
    for _ in range(ROUNDS):
        states = dict(fresh)
        for _ in range(AFTER):
            out = session.run(bench.feed(rng, {**states, **own}))
            states = {s.input: out[s.output] for s in contract.states}
        ahead = [bench.feed(rng, {**states, **own}) for _ in range(4)]
        kept = _onward(session, contract, ahead, states)
        for s in contract.states:
            without = _onward(session, contract, ahead, {**states, s.input: fresh[s.input]})
            sizes[s.input] = max(sizes[s.input], _gap(bench, contract, s, kept, without))
    return tuple(sizes.items())


def _onward(
    session: Session, contract: Contract, ahead: list[dict[str, Array]], states: dict[str, Array]
) -> list[dict[str, Array]]:
    found = []
    for feed in ahead:
        out = session.run({**feed, **states})
        states = {s.input: out[s.output] for s in contract.states}
        found.append(out)
    return found


def _gap(
    bench: Bench, contract: Contract, state: State, kept: list[dict[str, Array]], without: list[dict[str, Array]]
) -> float:
    """Largest difference in what is not the state itself; where the model shows nothing else, in it."""
    others = [o for o in bench.file.outputs if o != state.output]
    shows = [o for o in others if o not in {s.output for s in contract.states}]
    names = others if shows else list(bench.file.outputs)
    pairs = [(a[o], b[o]) for a, b in zip(kept, without) for o in names]
    return max((measure(a, b, 1.0)[0] for a, b in pairs), default=0.0)
