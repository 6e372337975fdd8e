"""The streams' axis of every input and output: found by running different streams side by side.

Streams that are at different places of their own (one has taken one step, the next two ...) must each get, in one call,
what they get alone. A declared symbol only says which axes to try first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from export.adopt.file import Array, Port
from export.adopt.pairing import Pairs
from export.adopt.runs import Bench, Session
from export.adopt.sequence import Timing
from export.adopt.verdict import Fails
from export.measure import measure

STREAMS = 3
LOUDNESS = (1.0, 4.0, 0.25)
TRIED = 600
"""Choices of axes at most."""
SMALL = 1e-4
ROUNDING = 4e-6
"""Of a float32 result's own size: what adding up in another order may change."""


@dataclass(frozen=True)
class Axes:
    """The streams' axis by name: step inputs, states, stream constants; and of every output that is no state."""

    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


@dataclass
class Alone:
    """What streams give one by one: the measure of all that is done to many."""

    feeds: list[dict[str, Array]]
    results: list[dict[str, Array]]


@dataclass
class Failure:
    """Why streams could not share a call: the most telling attempt."""

    reason: str = ""
    differs: bool = False

    def note(self, reason: str, differs: bool) -> None:
        if not self.reason or (differs and not self.differs):
            self.reason, self.differs = reason, differs


@dataclass
class Batches:
    """The search."""

    bench: Bench
    pairs: Pairs
    timing: Timing
    streamed: Sequence[str]
    """Inputs that must have a streams' axis: steps, states, stream constants."""
    tolerance: float | None
    alone: Alone = field(init=False)

    def __post_init__(self) -> None:
        self.alone = self._alone()

    def _alone(self) -> Alone:
        """Each stream after another number of steps; then one more, whose results count."""
        rng = np.random.default_rng(40)
        feeds, results = [], []
        constants = {n: self.bench.draw(n, rng) for n in self.streamed if n in self.bench.constants}
        for k in range(STREAMS):
            own = {n: self.bench.draw(n, rng) for n in constants}
            feed = self.bench.feed(rng, own)
            for _ in range(1 + 2 * k):
                out = self.bench.run(feed)
                feed = {**self._loud(self.bench.feed(rng, own), k), **{n: out[o] for n, o in self.pairs.states.items()}}
            feeds.append(feed)
            results.append(self.bench.run(feed))
        return Alone(feeds, results)

    def _loud(self, feed: dict[str, Array], stream: int) -> dict[str, Array]:
        """A scale that streams share shows where their own differ."""
        steps = [n for n in self.streamed if n not in self.pairs.states and n not in self.bench.constants]
        own = {n: (feed[n] * LOUDNESS[stream]).astype(feed[n].dtype) for n in steps if feed[n].dtype.kind == "f"}
        return {**feed, **own}

    def find(self, session: Session, failure: Failure, tried: int = TRIED) -> Axes | None:
        """The first choice of axes with which ``session`` keeps the streams apart."""
        for number, axes in enumerate(self.choices()):
            if number >= tried:
                break
            found = self.attempt(session, axes, failure)
            if found is not None:
                return found
        return None

    def attempt(self, session: Session, axes: Mapping[str, int], failure: Failure) -> Axes | None:
        try:
            out = session.run(self.joined(axes))
        except Fails as fails:
            failure.note(str(fails), False)
            return None
        return self._kept_apart(axes, out, failure)

    def joined(self, axes: Mapping[str, int]) -> dict[str, Array]:
        """One feed of all streams."""
        feeds = self.alone.feeds
        return {
            n: np.concatenate([f[n] for f in feeds], axis=axes[n]) if n in axes else value
            for n, value in feeds[0].items()
        }

    def _kept_apart(self, axes: Mapping[str, int], out: Mapping[str, Array], failure: Failure) -> Axes | None:
        where: dict[str, int] = {}
        for n, o in self.pairs.states.items():
            if not self._same(o, axes[n], out[o], True, failure):
                return None
        for o in self.bench.file.outputs:
            if o in self.pairs.states.values():
                continue
            able = [
                i
                for i, d in enumerate(self.alone.results[0][o].shape)
                if out[o].ndim > i and d * STREAMS == out[o].shape[i]
            ]
            fitting = [
                i for i in able if self.alone.results[0][o].shape[i] == 1 and self._same(o, i, out[o], False, failure)
            ]
            if not fitting:
                failure.note(f"output {o} has shape {list(out[o].shape)} for {STREAMS} streams", False)
                return None
            where[o] = fitting[0]
        return Axes(dict(axes), where)

    def _same(self, output: str, axis: int, many: Array, state: bool, failure: Failure) -> bool:
        ones = [r[output] for r in self.alone.results]
        whole = np.concatenate(ones, axis=axis) if ones[0].ndim > axis else ones[0]
        if whole.shape != many.shape:
            failure.note(f"{output} has shape {list(many.shape)} for {STREAMS} streams", False)
            return False
        gap, excess = compare(many, whole, state, self.tolerance)
        if excess > 1:
            failure.note(f"{output} of a stream differs by {gap:.2g} when others run with it", True)
        return excess <= 1

    # ---- choices

    def choices(self) -> Iterator[dict[str, int]]:
        """The likeliest first: one axis for all inputs alike, then every combination."""
        able = {n: self.able(n) for n in self.streamed}
        if not all(able.values()):
            return
        groups: dict[tuple[object, ...], list[str]] = {}
        for n in self.streamed:
            groups.setdefault((n in self.pairs.states, self.bench.shapes[n], tuple(able[n])), []).append(n)
        seen: set[tuple[int, ...]] = set()
        alike = product(*(able[names[0]] for names in groups.values()))
        for chosen in alike:
            axes = {n: axis for names, axis in zip(groups.values(), chosen) for n in names}
            seen.add(tuple(axes[n] for n in self.streamed))
            yield axes
        for chosen in product(*(able[n] for n in self.streamed)):
            if chosen not in seen:
                yield dict(zip(self.streamed, chosen))

    def able(self, name: str) -> list[int]:
        """Axes of an input that may be the streams', the likeliest first."""
        port = self.bench.file.inputs[name]
        shape = self.bench.shapes[name]
        time = self.timing.axes.get(name)
        axes = [i for i, d in enumerate(shape) if d == 1 and i != time]
        return sorted(axes, key=lambda i: (self._unlike(port, i), i))

    def _unlike(self, port: Port, axis: int) -> int:
        symbol = port.dims[axis]
        if isinstance(symbol, str) and symbol.lower() in ("batch", "batch_size", "n", "b", "bs"):
            return 0
        return 1 if isinstance(symbol, str) else 2


def compare(a: Array, b: Array, state: bool, tolerance: float | None) -> tuple[float, float]:
    """Largest difference, and its ratio to what is allowed: of an output 1e-4, of a state 1e-4 of max(1, its size); of
    any float its own rounding; float16 its own steps."""
    if tolerance is None and not state and a.dtype.kind == "f" and a.dtype != np.float16:
        finite = np.abs(b[np.isfinite(b)])
        size = max(1.0, float(finite.max()) if finite.size else 1.0)
        return measure(a, b, max(SMALL / size, ROUNDING))
    return measure(a, b, tolerance if tolerance is not None else 5e-3 if a.dtype == np.float16 else SMALL)
