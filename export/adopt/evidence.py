"""What runs, and the graph, say of one input and one output: does the one come back as the other?

The output may *follow* the input at all; *hold* it (each element moves the same element most, and in proportion, as a
cell, an average or a counter does); *shift* it (its very numbers stand in the output, as in a cache); be a hidden state
(*bounded* by its gates, however loud all else is); or merely *pass* it on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.adopt.file import Array, Carrier
from export.adopt.runs import Bench
from export.adopt.verdict import Fails

PROBED, PROBES = 16, 240
"""Elements of an input that are moved one by one, and of all inputs together."""
DRAWS = 6
LOUD = 1000.0
"""How much larger than its own draws everything else is, where a state's bounds are looked for."""


@dataclass(frozen=True)
class Evidence:
    """What runs and the graph say of one input and one output."""

    follows: bool = False
    holds: float = 0.0
    """Share of the probed elements."""
    shifts: float = 0.0
    """Share of the input's numbers that stand in the output."""
    passes: bool = False
    """The output is the input, whatever else is given."""
    node: bool = False
    """A recurrent node begins with the one and ends with the other."""
    bounded: bool = False
    """However loud all else is, no element is beyond 1 or the input's own, and some are negative: behind its gates, a
    hidden state cannot be more; a probability is never less than zero."""
    twin: bool = False
    """A later output is always the same: outputs come first, states last."""

    @property
    def strong(self) -> bool:
        return self.node or (not self.passes and (self.holds >= 0.2 or self.shifts >= 0.2))

    @property
    def score(self) -> float:
        if self.passes:
            return 0.6
        return (
            0.75 * (self.bounded - self.twin)
            + 32 * self.node
            + 8 * (self.shifts >= 0.2)
            + 8 * (self.holds >= 0.2) * self.holds
            + 1 * self.follows
        )


def evidence_of(bench: Bench, graph: Carrier, name: str, others: list[str], probed: int) -> dict[str, Evidence]:
    rng = np.random.default_rng(3)
    draws = []
    for seed in range(3):
        one = bench.feed(np.random.default_rng(10 + seed))
        draws.append((one, bench.run(one)))
    moved: dict[str, bool] = dict.fromkeys(others, False)
    for one, before in draws:
        try:
            after = bench.run({**one, name: bench.draw(name, rng)})
        except Fails:
            continue
        for o in others:
            moved[o] |= not np.array_equal(before[o], after[o], equal_nan=before[o].dtype.kind == "f")
    holds = _holds(bench, name, others, rng, probed)
    bounded = _bounded(bench, name, others, rng)
    found = {}
    for o in others:
        shifts = min(shared(one[name], out[o]) for one, out in draws)
        passes = all(np.array_equal(one[name], out[o]) for one, out in draws)
        node = bool(graph.begins.get(name, set()) & graph.ends.get(o, set()))
        later = others[others.index(o) + 1 :]
        twin = any(all(np.array_equal(out[o], out[p]) for _, out in draws) for p in later)
        found[o] = Evidence(moved[o], holds[o], shifts, passes, node, o in bounded, twin)
    return found


def shared(given: Array, out: Array) -> float:
    """Share of the second's numbers that stand in the first; whole numbers are too few to tell."""
    if given.dtype.kind != "f" or given.size < 4:
        return 0.0
    return float(np.isin(out, given[given != 0]).mean())


def _holds(bench: Bench, name: str, others: list[str], rng: np.random.Generator, probed: int) -> dict[str, float]:
    """Share of probed elements that move their own place most, and in proportion."""
    feed = bench.feed(rng)
    at = feed[name]
    if at.dtype == np.bool_:
        return dict.fromkeys(others, 0.0)
    before = bench.run(feed)
    places = rng.choice(at.size, min(probed, at.size), replace=False)
    delta = at.dtype.type(1 if at.dtype.kind in "iu" else 0.5)
    slack = 0.02 if at.dtype == np.float16 else 5e-4
    counted = dict.fromkeys(others, 0)
    for place in places.tolist():
        moved = []
        for times in (1, 2):
            one = at.copy()
            one.reshape(-1)[place] += delta * at.dtype.type(times)
            try:
                moved.append(bench.run({**feed, name: one}))
            except Fails:
                break
        if len(moved) < 2:
            continue
        for o in others:
            first, second = (m[o].astype(np.float64) - before[o].astype(np.float64) for m in moved)
            own, twice = first.reshape(-1)[place], second.reshape(-1)[place]
            elsewhere = np.delete(np.abs(first.reshape(-1)), place)
            alone = abs(own) > 2 * (float(elsewhere.max()) if elsewhere.size else 0.0)
            counted[o] += bool(abs(own) > 1e-4 and alone and abs(twice - 2 * own) <= slack * abs(twice))
    return {o: n / len(places) for o, n in counted.items()}


def _bounded(bench: Bench, name: str, others: list[str], rng: np.random.Generator) -> set[str]:
    """See Evidence."""
    within, below = set(others), set()
    for _ in range(DRAWS):
        feed = bench.feed(rng)
        if feed[name].dtype.kind != "f":
            return set()
        others_loud = [n for n in bench.shapes if n != name and feed[n].dtype.kind == "f"]
        try:
            out = bench.run({**feed, **{n: feed[n] * feed[n].dtype.type(LOUD) for n in others_loud}})
        except Fails:
            return set()
        most = np.maximum(1.0, np.abs(feed[name].astype(np.float64))) + 1e-2
        within = {o for o in within if (np.abs(out[o]) <= most).all()}
        below |= {o for o in within if (out[o] < -0.1).any()}
    return within & below


def stretches(bench: Bench, name: str) -> bool:
    """Whether the input alone may be longer along a free axis, and then some outputs are longer and others are not: it
    is a step's, and the others are states."""
    rng = np.random.default_rng(8)
    before = bench.run(bench.feed(rng))
    for axis in bench.file.inputs[name].free:
        shape = list(bench.shapes[name])
        shape[axis] *= 3
        try:
            after = bench.run(bench.feed(rng, {name: bench.draw(name, rng, shape)}))
        except Fails:
            continue
        changed = [before[o].shape != after[o].shape for o in before]
        if any(changed) and not all(changed):
            return True
    return False


def is_tail(bench: Bench, name: str, output: str) -> bool:
    """Whether the output is the end of a longer input, number by number: what a model keeps as context."""
    for seed in range(2):
        feed = bench.feed(np.random.default_rng(80 + seed))
        out = bench.run(feed)[output]
        others = [
            feed[m] for m in bench.shapes if m != name and feed[m].dtype == out.dtype and feed[m].size >= out.size
        ]
        if not any(shared(given, out) == 1.0 for given in others):
            return False
    return True


def uses(bench: Bench, name: str) -> bool:
    """Whether the input changes anything at all."""
    rng = np.random.default_rng(90)
    feed = bench.feed(rng)
    before, after = bench.run(feed), bench.run({**feed, name: bench.draw(name, rng)})
    return any(not np.array_equal(before[o], after[o]) for o in before)
