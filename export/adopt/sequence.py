"""The time axis and the hop: a call of many steps must be the same as many calls of one.

An axis is the time's where K steps along it, in one call, give what K calls give one after the other, states and
outputs. The hop is how many elements of it one step has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

from export.adopt.file import WHOLE_SCALE, Array, ops
from export.adopt.names import sounds_like_step
from export.adopt.pairing import Pairs
from export.adopt.runs import SIZES, Bench, close
from export.adopt.verdict import Fails, Refused

MANY = 5
"""Steps of the trials."""
PLACES = 8
"""Along an axis of a step, at which it is changed."""
PREFERRED = (512, 256, 1024, 160, 320, 480, 400, 128, 80, 240, 640, 960)
"""Hops of sound, for the question where any length runs."""


@dataclass(frozen=True)
class Timing:
    """``axes``: where each step input has its time, ``outputs`` where each step output has it; empty: one step a call.

    ``hop``: elements along it that make a step, None where no axis of a step could be longer.
    """

    axes: Mapping[str, int] = field(default_factory=dict)
    outputs: Mapping[str, int] = field(default_factory=dict)
    hop: int | None = None
    axis: int | None = None
    """Of the hop, in the first step input that has one: also where one call takes one step."""
    notes: tuple[str, ...] = ()
    question: tuple[str, str] | None = None


class Differs(Exception):
    """A call of many steps runs, but is not the same as many calls."""


@dataclass
class Trial:
    """One choice of axes, tried."""

    bench: Bench
    states: Mapping[str, str]
    outputs: list[str]
    tolerance: float
    slack: float = 1.0

    def steps(self, axes: Mapping[str, int], hops: Mapping[str, int], many: int, seed: int) -> list[dict[str, Array]]:
        """Feeds without states: ``many`` steps; what has no time keeps its values."""
        rng = np.random.default_rng(seed)
        first = {n: a for n, a in self.bench.feed(rng).items() if n not in self.states}
        found = []
        for _ in range(many):
            one = dict(first)
            for n, axis in axes.items():
                shape = list(self.bench.shapes[n])
                shape[axis] = hops[n]
                one[n] = self.bench.draw(n, rng, shape)
            found.append(one)
        return found

    def begin(self, seed: int) -> dict[str, Array]:
        """States after a few steps of something else."""
        rng = np.random.default_rng(seed)
        feed = self.bench.feed(rng)
        for _ in range(2):
            out = self.bench.run(feed)
            feed = {**self.bench.feed(rng), **{n: out[o] for n, o in self.states.items()}}
        return {n: feed[n] for n in self.states}

    def whole(
        self, steps: list[dict[str, Array]], axes: Mapping[str, int], states: dict[str, Array]
    ) -> dict[str, Array]:
        feed = dict(steps[0])
        for n, axis in axes.items():
            feed[n] = np.concatenate([s[n] for s in steps], axis=axis)
        out = self.bench.run({**feed, **states})
        if any(out[o].shape != states[n].shape for n, o in self.states.items()):
            raise Fails("a state changes its shape")
        return out

    def stepped(self, steps: list[dict[str, Array]], states: dict[str, Array]) -> list[dict[str, Array]]:
        found = []
        for one in steps:
            out = self.bench.run({**one, **states})
            states = {n: out[o] for n, o in self.states.items()}
            found.append(out)
        return found

    def compare(
        self, axes: Mapping[str, int], hops: Mapping[str, int], many: int = MANY, seed: int = 20
    ) -> dict[str, int | None]:
        """Where each output has its time, None for one that shows its last step only. Raises Fails, Differs."""
        steps, states = self.steps(axes, hops, many, seed), self.begin(seed)
        whole = self.whole(steps, axes, states)
        rows = self.stepped(steps, states)
        found: dict[str, int | None] = {}
        for o in self.outputs:
            ones = [r[o] for r in rows]
            if not all(one.size for one in ones):
                raise Differs(o)  # a call of one step gives nothing
            longer = [
                i
                for i in range(whole[o].ndim)
                if whole[o].ndim == ones[0].ndim
                and whole[o].shape[i] == sum(one.shape[i] for one in ones)
                and all(whole[o].shape[j] == ones[0].shape[j] for j in range(whole[o].ndim) if j != i)
            ]
            equal = [i for i in longer if close(whole[o], np.concatenate(ones, axis=i), self.allowed)]
            if equal:
                found[o] = equal[0]
            elif whole[o].shape == ones[-1].shape and close(whole[o], ones[-1], self.allowed):
                found[o] = None
            else:
                raise Differs(o)
        for n, o in self.states.items():
            if not close(whole[o], rows[-1][o], self.allowed):
                raise Differs(n)
        return found

    @property
    def allowed(self) -> float:
        return self.tolerance * self.slack

    def reads(self, axes: Mapping[str, int], hops: Mapping[str, int], which: int) -> bool:
        """Whether step ``which`` of MANY, in one call, changes anything that the call gives."""
        steps, states = self.steps(axes, hops, MANY, 30), self.begin(30)
        other = self.steps(axes, hops, MANY, 31)
        before = self.whole(steps, axes, states)
        after = self.whole([other[k] if k == which else s for k, s in enumerate(steps)], axes, states)
        return any(not np.array_equal(before[o], after[o]) for o in before)

    def looks_ahead(self, axes: Mapping[str, int], hops: Mapping[str, int]) -> bool:
        """Whether the last step, in one call, changes an output before its own."""
        steps, states = self.steps(axes, hops, MANY, 30), self.begin(30)
        other = self.steps(axes, hops, MANY, 31)
        before = self.whole(steps, axes, states)
        after = self.whole([*steps[:-1], other[-1]], axes, states)
        one = self.stepped(steps[:1], states)[0]
        for o in self.outputs:
            if after[o].shape != before[o].shape or before[o].ndim != one[o].ndim:
                continue
            for i, (many, single) in enumerate(zip(before[o].shape, one[o].shape)):
                if many != MANY * single:
                    continue
                earlier = [np.take(x[o], range(many - single), axis=i) for x in (before, after)]
                if not close(earlier[0], earlier[1], self.tolerance):
                    return True
        return False


def find_timing(bench: Bench, pairs: Pairs, tolerance: float, hop: int | None, wanted: str) -> Timing:
    """``hop``, ``wanted`` (auto, none or an axis): what the user says. Raises Refused."""
    timing = _find(bench, pairs, tolerance, hop, wanted)
    if hop is None and wanted == "auto" and not timing.axes:
        _refuse_backwards(bench, pairs)
    return timing


def _refuse_backwards(bench: Bench, pairs: Pairs) -> None:
    """Raises Refused where, inside a step, what stands later changes only what stands before it: a layer that was
    unrolled from the end of a sequence of fixed length to its beginning."""
    outputs = [o for o in bench.file.outputs if o not in pairs.states.values()]
    trial = Trial(bench, pairs.states, outputs, 0.0)
    feed = {**bench.feed(np.random.default_rng(40)), **trial.begin(40)}
    other = bench.feed(np.random.default_rng(41))
    before = bench.run(feed)
    for n, axis in [
        (n, a) for n, s in bench.shapes.items() if n not in pairs.states for a in range(len(s)) if s[a] > 2
    ]:
        size = bench.shapes[n][axis]
        places = np.unique(np.linspace(0, size - 1, PLACES).round().astype(int)).tolist()
        found: dict[tuple[str, int], list[int]] = {
            (o, b): [] for o in outputs for b, many in enumerate(before[o].shape) if many == size
        }
        for place in places if found else []:
            changed = feed[n].copy()
            at = (slice(None),) * axis + (place,)
            changed[at] = other[n][at]
            after = bench.run({**feed, n: changed})
            for o, b in list(found):
                differs = (before[o] != after[o]).any(axis=tuple(i for i in range(before[o].ndim) if i != b))
                if differs[place + 1 :].any():
                    del found[o, b]
                else:
                    found[o, b].append(int(differs.sum()))
        for (o, _), counts in found.items():
            if sum(counts) > 0.8 * sum(place + 1 for place in places):
                raise Refused(
                    f"along axis {axis} of {n}, inside a step, what stands later changes only what stands before it in"
                    f" {o}: a layer runs backwards over time, and in a stream the later steps are not there yet; if a"
                    f" step is meant to have all {size} of them, say so with --time-axis none"
                )


def _find(bench: Bench, pairs: Pairs, tolerance: float, hop: int | None, wanted: str) -> Timing:
    outputs = [o for o in bench.file.outputs if o not in pairs.states.values()]
    trial = Trial(bench, pairs.states, outputs, tolerance)
    if wanted == "none":
        return _one_step(bench, pairs, hop)
    differs: dict[str, int] | None = None
    last: dict[str, int] | None = None
    for axes in _choices(bench, pairs, wanted):
        sizes = [{n: bench.shapes[n][a] for n, a in axes.items()}]
        if hop is None and len(set(sizes[0].values())) == 1:
            sizes += [dict.fromkeys(axes, s) for s in SIZES if s != next(iter(sizes[0].values()))]
        for hops in sizes:
            try:
                found = trial.compare(axes, hops)
                trial.compare(axes, hops, 3, 21)
            except Fails:
                if hops is sizes[0] and bench.shapes[next(iter(axes))][next(iter(axes.values()))] == 1:
                    break  # one more of it does not run, so longer ones do not either
                continue
            except Differs:
                if hops is sizes[0]:
                    differs = differs or dict(axes)
                continue
            if None in found.values() or not found:
                last = last or dict(axes)
                _adopt_size(bench, axes, hops)
                break
            _adopt_size(bench, axes, hops)
            first = next(iter(axes))
            axis_of = {o: a for o, a in found.items() if a is not None}
            return Timing(dict(axes), axis_of, hops[first], axes[first])
        if last is not None:
            break
    if last is not None:
        return _last_only(bench, last)
    if differs is not None:
        return _differing(bench, trial, differs, hop)
    return _one_step(bench, pairs, hop)


def keeps_time(bench: Bench, states: Mapping[str, str], tolerance: float) -> bool:
    """Whether some axis is the time's with these pairs and the base's step."""
    outputs = [o for o in bench.file.outputs if o not in states.values()]
    trial = Trial(bench, states, outputs, tolerance)
    for axes in _choices(bench, Pairs(dict(states), {}), "auto"):
        try:
            found = trial.compare(axes, {n: bench.shapes[n][a] for n, a in axes.items()})
        except (Fails, Differs):
            continue
        if found and None not in found.values():
            return True
    return False


def _adopt_size(bench: Bench, axes: Mapping[str, int], hops: Mapping[str, int]) -> None:
    for n, axis in axes.items():
        shape = list(bench.shapes[n])
        shape[axis] = hops[n]
        bench.shapes[n] = tuple(shape)


def _last_only(bench: Bench, axes: Mapping[str, int]) -> Timing:
    first = next(iter(axes))
    note = f"an output shows only the last of many steps along axis {axes[first]} of {first}: one step a call"
    return Timing(hop=bench.shapes[first][axes[first]], axis=axes[first], notes=(note,))


def _differing(bench: Bench, trial: Trial, axes: dict[str, int], hop: int | None) -> Timing:
    """Many steps in one call run, and give something else. Why?"""
    first = next(iter(axes))
    sizes = {n: bench.shapes[n][a] for n, a in axes.items()}
    size = sizes[first]
    scales = ops(bench.file.model, WHOLE_SCALE)
    if scales:
        rough = replace(trial, slack=2000.0)
        try:
            rough.compare(axes, sizes)
        except Differs:
            pass
        else:
            note = f"{scales[0]} takes its scale over all that one call holds, so a call has one step"
            return Timing(hop=size, axis=axes[first], notes=(note,))
    read = [k for k in range(MANY) if trial.reads(axes, sizes, k)]
    if 0 in read and 0 < len(read) - 1 < MANY - 1:
        raise Refused(
            f"of {MANY} steps along axis {axes[first]} of {first} the graph reads only number"
            f" {', '.join(str(k + 1) for k in read)}: it was traced over another length, or has a layer that runs"
            " backwards over time; export it step by step"
        )
    if read == [0]:
        note = f"whatever is declared, the graph reads only the first {size} along axis {axes[first]} of {first}"
        return Timing(hop=size, axis=axes[first], notes=(note,))
    if hop is None and trial.looks_ahead(axes, sizes):
        raise Refused(
            f"what comes later along axis {axes[first]} of {first} changes outputs before it: a layer runs backwards"
            " over time (bidirectional), looks ahead or normalises over the sequence, and in a stream the later steps"
            " are not there yet; if a step is meant to have several of them, say how many with --hop N"
        )
    if hop is not None:
        return Timing(hop=size, axis=axes[first])
    return Timing(hop=size, axis=axes[first], question=_which_length(bench, first, axes[first]))


def _one_step(bench: Bench, pairs: Pairs, hop: int | None) -> Timing:
    """No axis is the time's. Where a step could still have another length, its length is the question."""
    for n, shape in bench.shapes.items():
        if n in pairs.states:
            continue
        for axis in reversed(bench.file.inputs[n].free):
            if hop is not None and shape[axis] == hop:
                return Timing(hop=hop, axis=axis)
            if hop is None and (shape[axis] > 1 or _takes_more(bench, pairs, n, axis)):
                question = _which_length(bench, n, axis)
                return Timing(hop=shape[axis], axis=axis, question=question)
    return Timing()


def _takes_more(bench: Bench, pairs: Pairs, name: str, axis: int) -> bool:
    """Whether the axis has another length with the states as they are, and what is more is read."""
    trial = Trial(bench, pairs.states, [], 1e-4)
    axes = {name: axis}
    try:
        return trial.reads(axes, {name: bench.shapes[name][axis]}, MANY - 1)
    except Fails:
        return False


def _which_length(bench: Bench, name: str, axis: int) -> tuple[str, str] | None:
    runs = [s for s in SIZES if _runs(bench, name, axis, s)]
    if len(runs) <= 1:
        return None
    best = next((s for s in PREFERRED if s in runs), runs[0])
    return (
        f"a step of {name} may have any length from {runs[0]} to {runs[-1]} or more along axis {axis}, and no run tells"
        " which one the model was made for",
        f"--hop {best}",
    )


def _runs(bench: Bench, name: str, axis: int, size: int) -> bool:
    shape = list(bench.shapes[name])
    shape[axis] = size
    rng = np.random.default_rng(4)
    try:
        bench.run(bench.feed(rng, {name: bench.draw(name, rng, shape)}))
    except Fails:
        return False
    return True


def _choices(bench: Bench, pairs: Pairs, wanted: str) -> Iterator[dict[str, int]]:
    """Axes of the step inputs that may be the time's together, the likeliest first."""
    free = {
        n: [a for a in bench.file.inputs[n].free if wanted == "auto" or a == int(wanted)]
        for n in bench.shapes
        if n not in pairs.states
    }
    names = [n for n in free if free[n]]
    every: list[dict[str, int]] = []
    for chosen in product(*([*free[n], None] for n in names)):
        axes = {n: a for n, a in zip(names, chosen) if a is not None}
        if axes:
            every.append(axes)

    def rank(axes: Mapping[str, int]) -> tuple[int, ...]:
        symbols = {str(bench.file.inputs[n].dims[a]) for n, a in axes.items()}
        batchy = sum(s.lower() in ("batch", "batch_size", "n", "b") for s in symbols)
        unlike = sum(not sounds_like_step(n) for n in axes)
        return (len(symbols), batchy, -len(axes), unlike)

    yield from sorted(every, key=rank)
