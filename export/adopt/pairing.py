"""Which input comes back as which output: by names, then by dtype and shape, then by running it.

For every pair that dtype and shape allow, runs give evidence (``evidence.py``); following values through the graph
shows where a recurrent node begins and ends. A name is believed where nothing of this speaks against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np

from export.adopt.evidence import PROBED, PROBES, Evidence, evidence_of, is_tail, shared, stretches, uses
from export.adopt.file import Array, Carrier, carriers
from export.adopt.names import matches, sounds_like_state, sounds_like_step
from export.adopt.runs import Bench
from export.adopt.verdict import Refused, Unclear

FOUND = ("by name", "by shape", "by running it")
SWAPPED = 4
"""Largest number of states of one shape whose pairing a whole sequence may still correct."""
CLEAR = 12
"""How much more the evidence of every other state must be, where the step is what is left over."""
PERMUTED = 6
"""Largest number of inputs of one shape that are tried in all orders."""


@dataclass
class Pairs:
    """State inputs with their outputs, in the file's order, and how each pair was found."""

    states: dict[str, str]
    how: dict[str, str]
    notes: list[str] = field(default_factory=list)
    question: tuple[str, str] | None = None
    """States that may be each other's: a whole sequence may yet tell."""


@dataclass(frozen=True)
class Said:
    """What the user, or a file beside the model, says."""

    states: Mapping[str, str] = field(default_factory=dict)
    steps: frozenset[str] = frozenset()
    complete: bool = False
    """``states`` are all there are."""
    where: str = "given"


def find_pairs(bench: Bench, said: Said) -> Pairs:
    """Raises Refused for a cache that grows, a state with no output, a model without state; Unclear."""
    ports, outputs = bench.file.inputs, bench.file.outputs
    feed = bench.feed(np.random.default_rng(2))
    base = bench.run(feed)
    graph = carriers(bench.file.model)
    found = Pairs(dict(said.states), dict.fromkeys(said.states, said.where))
    named = matches(
        [n for n in ports if n not in said.states and n not in said.steps],
        [o for o in outputs if o not in said.states.values()],
    )
    _refuse_growth(bench, feed, base, {**named, **said.states}, said.steps)
    if not said.complete:
        open_in = [n for n in bench.shapes if n not in said.states and n not in said.steps]
        open_out = [o for o in outputs if o not in said.states.values()]
        fits = {
            n: [o for o in open_out if base[o].dtype == ports[n].dtype and base[o].shape == bench.shapes[n]]
            for n in open_in
        }
        able = [n for n in fits if fits[n]]
        probed = max(3, min(PROBED, PROBES // max(1, len(able))))
        evidence = {(n, o): e for n in able for o, e in evidence_of(bench, graph, n, fits[n], probed).items()}
        _decide(bench, found, graph, _without_echoes(fits, named, evidence), named, evidence)
    for n, o in found.states.items():
        if base[o].shape != bench.shapes[n] or base[o].dtype != ports[n].dtype:
            raise Refused(
                f"state {n} {list(bench.shapes[n])} comes back as {o} {list(base[o].shape)}: a state keeps its shape"
                " and dtype; correct the pair"
            )
    _check_ends(bench, found, graph, said)
    if not found.states:
        raise Refused(
            "no input comes back as an output: the file keeps no state between calls; export it with its states as"
            " inputs and outputs"
        )
    order = list(ports)
    found.states = dict(sorted(found.states.items(), key=lambda pair: order.index(pair[0])))
    return found


def _without_echoes(
    fits: dict[str, list[str]], named: Mapping[str, str], evidence: Mapping[tuple[str, str], Evidence]
) -> dict[str, list[str]]:
    """An output that is one input, whatever the others are, is no state of that input. Raises Refused."""
    found = {}
    for n, others in fits.items():
        echoes = [o for o in others if evidence[n, o].passes]
        if named.get(n) in echoes and not sounds_like_step(n):
            raise Refused(
                f"state {n} comes back as {named[n]} just as it went in: it carries nothing from step to step; if it is"
                f" a constant, give --constant {n}=VALUE or --stream-constant {n}"
            )
        found[n] = [o for o in others if o not in echoes]
    return found


def _decide(
    bench: Bench,
    found: Pairs,
    graph: Carrier,
    fits: dict[str, list[str]],
    named: dict[str, str],
    evidence: Mapping[tuple[str, str], Evidence],
) -> None:
    """``fits``: outputs that each input could come back as."""
    sure = {n for n, others in fits.items() if not others}
    """Inputs that cannot be states: no output is like them."""
    likely: set[str] = set()
    tails = {n for n, others in fits.items() if any(is_tail(bench, n, o) for o in others)}
    for n, others in fits.items():
        if not others:
            continue
        held = any(evidence[n, o].strong for o in others)
        follows = any(evidence[n, o].follows for o in others)
        if sounds_like_step(n):
            sure.add(n)
        elif held or graph.begins.get(n) or (sounds_like_state(n) and (follows or named.get(n) in others)):
            likely.add(n)
        elif not follows and not (n in tails and uses(bench, n)):
            sure.add(n)
        elif not follows:
            likely.add(n)
    hidden = [n for n in fits if n not in sure and n not in likely and any(evidence[n, o].bounded for o in fits[n])]
    if len(hidden) <= len({o for n in hidden for o in fits[n] if evidence[n, o].bounded}):
        likely.update(hidden)  # each can have a hidden state of its own
    sure.update(n for n in fits if n not in sure and n not in likely and stretches(bench, n))
    unsure = [n for n in fits if n not in sure and n not in likely]
    steps_there = bool(sure)
    if len(unsure) == 1 and not steps_there:
        sure.add(unsure.pop())
    elif unsure and steps_there and not likely and not found.states and len(unsure) < len(bench.file.outputs):
        # No run says that it is none, nothing else could be one, and the model shows something beside.
        likely.update(unsure)
        unsure = []
    elif unsure:
        raise Unclear([_question(unsure, fits, "may be a state or a step", evidence, step=not steps_there)])
    if not sure and likely:
        order = list(fits)
        least = sorted(likely, key=lambda n: (_strength(evidence, fits, n), order.index(n)))
        clear = len(least) > 1 and not sounds_like_state(least[0])
        if not clear or _strength(evidence, fits, least[1]) < CLEAR + _strength(evidence, fits, least[0]):
            least.sort(key=lambda n: (sounds_like_state(n), order.index(n)))
            why = "could each be the state, and one input must be the step"
            raise Unclear([_question(least, fits, why, evidence, step=True)])
        likely.discard(least[0])
    _match(found, {n: fits[n] for n in fits if n in likely}, named, evidence)


def _strength(evidence: Mapping[tuple[str, str], Evidence], fits: Mapping[str, list[str]], name: str) -> float:
    return round(max((evidence[name, o].score for o in fits[name]), default=0.0)) + 16 * sounds_like_state(name)


def _match(
    found: Pairs,
    fits: dict[str, list[str]],
    named: dict[str, str],
    evidence: Mapping[tuple[str, str], Evidence],
) -> None:
    """Each likely state with one output; those of one dtype and shape compete for each other's."""
    for inputs, outputs in _competing(fits):
        scores = {(n, o): evidence[n, o].score if o in fits[n] else -100.0 for n in inputs for o in outputs}
        by_name = {n: named[n] for n in inputs if named.get(n) in fits[n]}
        best = _best(inputs, outputs, scores)
        if len(by_name) == len(inputs):
            told = sum(scores[n, o] for n, o in by_name.items())
            swapped = best is not None and set(best.values()) == set(by_name.values())
            if not swapped or best is None or sum(scores[n, o] for n, o in best.items()) - told < 4:
                found.states |= by_name
                found.how |= dict.fromkeys(by_name, "by name")
                continue
            found.notes.append(
                "runs contradict the names: " + ", ".join(f"{n} comes back as {o}" for n, o in best.items())
            )
        elif best is None:
            rest = {n: o for n, o in by_name.items() if all(scores[n, o] >= scores[n, p] for p in outputs)}
            left_in = [n for n in inputs if n not in rest]
            left_out = [o for o in outputs if o not in rest.values()]
            best = _best(left_in, left_out, scores)
            if best is None and len(left_in) > len(left_out):
                turned = _best(left_out, left_in, {(o, n): s for (n, o), s in scores.items()})
                best = {n: o for o, n in turned.items()} if turned is not None else {}
            if best is None:
                best = dict(zip(left_in, left_out))
                able = dict.fromkeys(left_in, left_out)
                found.question = _question(left_in, able, "have one shape, and no run tells them apart", evidence)
            found.how |= dict.fromkeys(rest, "by name")
            best = rest | best
        found.states |= best
        only = len(inputs) == len(outputs) == 1
        for n in best:
            found.how.setdefault(n, "by shape" if only and not evidence[n, best[n]].strong else "by running it")


def _competing(fits: Mapping[str, list[str]]) -> list[tuple[list[str], list[str]]]:
    """Inputs that could come back as the same outputs, together with those."""
    groups: list[tuple[list[str], list[str]]] = []
    for n, others in fits.items():
        if not others:
            continue  # what nothing gives back is refused later
        group = next((g for g in groups if set(g[1]) & set(others)), None)
        if group is None:
            groups.append(([n], list(others)))
        else:
            group[0].append(n)
            group[1].extend(o for o in others if o not in group[1])
    return groups


def swaps(bench: Bench, pairs: Pairs) -> Iterator[dict[str, str]]:
    """Other pairings of states of one dtype and shape, where runs or names chose them."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for n in pairs.states:
        if pairs.how.get(n) in FOUND:
            groups.setdefault((bench.file.inputs[n].dtype, bench.shapes[n]), []).append(n)
    for names in groups.values():
        if 1 < len(names) <= SWAPPED:
            outputs = [pairs.states[n] for n in names]
            for chosen in permutations(outputs):
                if list(chosen) != outputs:
                    yield {**pairs.states, **dict(zip(names, chosen))}


def _best(
    inputs: Sequence[str], outputs: Sequence[str], scores: Mapping[tuple[str, str], float]
) -> dict[str, str] | None:
    """The pairing with the highest sum of scores, where it is alone in that. None where it is not, or too many."""
    if len(inputs) > len(outputs):
        return None
    if len(inputs) == len(outputs) == 1:
        return {inputs[0]: outputs[0]}
    mutual: dict[str, str] = {}
    for n in inputs:
        ranked = sorted(outputs, key={o: -scores[n, o] for o in outputs}.__getitem__)
        if scores[n, ranked[0]] > 0 and (len(ranked) == 1 or scores[n, ranked[0]] > scores[n, ranked[1]] + 0.5):
            mutual[n] = ranked[0]
    if len(mutual) == len(inputs) and len(set(mutual.values())) == len(inputs):
        return mutual
    if len(inputs) > PERMUTED or len(outputs) > PERMUTED + 1:
        return None
    sums = sorted(
        ((sum(scores[n, o] for n, o in zip(inputs, chosen)), chosen) for chosen in permutations(outputs, len(inputs))),
        key=lambda s: -s[0],
    )
    if sums[0][0] <= 0 or (len(sums) > 1 and sums[0][0] <= sums[1][0] + 0.5):
        return None
    return dict(zip(inputs, sums[0][1]))


def _question(
    names: Sequence[str],
    fits: Mapping[str, list[str]],
    why: str,
    evidence: Mapping[tuple[str, str], Evidence],
    step: bool = False,
) -> tuple[str, str]:
    """Proposes a whole answer, the likeliest. ``step``: the first of them must be the step."""
    free = list(dict.fromkeys(o for n in names for o in fits[n]))
    flags = []
    for i, n in enumerate(names):
        able = [o for o in fits[n] if o in free]
        if able and not (step and i == 0):
            best = max(able, key={o: evidence[n, o].score for o in able}.__getitem__)
            free.remove(best)
            flags.append(f"--state {n}={best}")
        else:
            flags.append(f"--step {n}")
    of = ", ".join(f"{n} ({' or '.join(fits[n])})" for n in names)
    return f"{of} {why}", " ".join(flags)


# ---- what is refused


def _refuse_growth(
    bench: Bench, feed: Mapping[str, Array], base: Mapping[str, Array], named: Mapping[str, str], steps: Set[str]
) -> None:
    """A cache that is longer when it comes back, by name or because all its numbers stand in what is longer."""
    for n, port in bench.file.inputs.items():
        if n not in bench.shapes or sounds_like_step(n) or n in steps:
            continue
        for o, out in base.items():
            if out.dtype != port.dtype or out.ndim != len(port.dims):
                continue
            longer = [i for i, (a, b) in enumerate(zip(bench.shapes[n], out.shape)) if a != b]
            if len(longer) != 1 or out.shape[longer[0]] < bench.shapes[n][longer[0]]:
                continue
            if longer[0] not in port.free and named.get(n) != o:
                continue
            inside = shared(out, feed[n]) == 1.0 and not any(
                base[p].shape == bench.shapes[n] and base[p].dtype == port.dtype for p in base
            )
            if named.get(n) == o or inside:
                raise Refused(
                    f"state {n} grows with every step ({list(bench.shapes[n])} goes in, {list(out.shape)} comes out as"
                    f" {o}): no row can hold it; export the model with a cache of fixed length"
                )


def _check_ends(bench: Bench, found: Pairs, graph: Carrier, said: Said) -> None:
    """A beginning that nothing gives back, and a layer that carries its state against the time."""
    for n in bench.shapes:
        begun = graph.begins.get(n, set())
        if n in found.states:
            against = {place for place in begun & graph.ends.get(found.states[n], set()) if place[0] in graph.backwards}
            if against:
                raise Refused(
                    f"state {n} belongs to a layer that runs backwards over time (bidirectional or reverse): what comes"
                    " later is not there yet in a stream; train the model with a forward layer"
                )
        elif n in said.steps:
            continue
        elif begun or (not said.complete and sounds_like_state(n) and not sounds_like_step(n)):
            raise Refused(
                f"state {n} {list(bench.shapes[n])} has no output: nothing gives it back for the next step; export the"
                " model with its last state as an output (or say what it is: --step"
                f" {n}, --constant {n}=VALUE, --stream-constant {n})"
            )
