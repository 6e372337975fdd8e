"""What must hold after every run, whatever has happened in it."""

from __future__ import annotations

import struct
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.heads.generate import ROW
from pipeline.streams import snapshots
from tests.simulation import model
from tests.simulation.log import Record

if TYPE_CHECKING:
    from tests.simulation.world import World

SOURCE = struct.Struct(">iq")


def check(world: World) -> list[str]:
    problems: list[str] = []
    for p in range(world.plan.partitions):
        inputs = world.inputs(p)
        outputs = world.cluster.logs["out", p].visible()
        place = (world.config.dead_letters, p)
        dead = world.cluster.logs[place].visible() if place in world.cluster.logs else []
        check_partition = check_talk if world.plan.talks else check_hash
        problems += [f"partition {p}: {text}" for text in check_partition(world, p, inputs, outputs)]
        problems += [f"partition {p}: {text}" for text in check_dead(world, inputs, dead)]
    problems += check_commits(world)
    return problems


def source(record: Record) -> int:
    """The input offset that an output answers."""
    return SOURCE.unpack(dict(record.headers)["eddy-source"])[1]


def by_key(records: list[Record]) -> dict[bytes | None, list[Record]]:
    out: dict[bytes | None, list[Record]] = defaultdict(list)
    for r in records:
        out[r.key].append(r)
    return out


def compare(what: str, want: list[int], got: list[int], *, whole: bool = True) -> list[str]:
    """Offsets that must come, each once, in order. Not ``whole``: the last ones may be missing."""
    if not whole:
        want = want[: len(got)]
    if want == got:
        return []
    missing = sorted(set(want) - set(got))
    repeated = sorted({o for o in got if got.count(o) > 1})
    wrong = sorted(set(got) - set(want))
    if missing or repeated or wrong:
        return [f"{what}: missing {missing}, repeated {repeated}, never asked for {wrong}"]
    return [f"{what}: out of order: {got}"]


# ---- the rolling hash


def steps_of(value: bytes) -> list[int] | None:
    """None: the record is a dead letter."""
    if len(value) % 8:
        return None
    steps = list(struct.unpack(f"<{len(value) // 8}q", value))
    return None if model.POISON in steps else steps


Known = dict[int, set[int] | None]
"""Of a stream: offset of each of its records -> the hashes that it may have after it; None: it has ended."""


def check_hash(world: World, p: int, inputs: list[Record], outputs: list[Record]) -> list[str]:
    """One hash after each record, unless a stream may be forgotten in between and begin anew."""
    forgets = bool(world.config.state_ttl_s)
    shown: dict[int, bytes | None] = {}
    for r in outputs:
        shown.setdefault(source(r), r.value)
    problems: list[str] = []
    want: dict[bytes, list[int]] = defaultdict(list)
    states: dict[bytes, Known] = defaultdict(dict)
    hashes: dict[bytes, set[int]] = {}
    for r in inputs:
        if r.key is None:
            continue
        if r.value is None:
            hashes.pop(r.key, None)
            states[r.key][r.offset] = None
            continue
        begins = hashes.get(r.key, {model.INITIAL}) | ({model.INITIAL} if forgets else set())
        steps = steps_of(r.value) or []
        ways = [follow_steps(h, steps) for h in sorted(begins)]
        if steps:
            want[r.key].append(r.offset)
            if r.offset in shown:
                fitting = [way for way in ways if struct.pack(f"<{len(steps)}q", *way[1:]) == shown[r.offset]]
                if not fitting:
                    problems.append(f"output of {r.key!r} at {r.offset} is {shown[r.offset]!r}, none of {ways}")
                ways = fitting or ways
        hashes[r.key] = states[r.key][r.offset] = {way[-1] for way in ways}
    problems += check_order(world, want, outputs)
    return problems + check_snapshots(world, p, states)


def check_order(world: World, want: dict[bytes, list[int]], outputs: list[Record]) -> list[str]:
    """Each output once and in order; with at_least_once its first appearance."""
    problems = []
    got = by_key(outputs)
    for key in sorted(want.keys() | {k for k in got if k is not None}):
        offsets = [source(r) for r in got[key]]
        if world.config.processing_guarantee == "at_least_once":
            offsets = list(dict.fromkeys(offsets))
        problems += compare(f"outputs of {key!r}", want.get(key, []), offsets, whole=not world.gone)
    values: dict[int, bytes | None] = {}
    for r in outputs:
        if values.setdefault(source(r), r.value) != r.value:
            problems.append(f"output of {r.key!r} at {source(r)} was repeated with another value")
    return problems


def follow_steps(h: int, steps: list[int]) -> list[int]:
    """The hash before and after each step."""
    way = [h]
    for x in steps:
        way.append(model.advance(way[-1], x))
    return way


def snapshots_of(world: World, p: int) -> list[Record]:
    """All that were ever committed, tombstones included."""
    log = world.cluster.logs.get((world.config.changelog, p))
    return log.history() if log is not None else []


def check_snapshots(world: World, p: int, states: dict[bytes, Known]) -> list[str]:
    """Every snapshot that was ever committed is the stream's reference at its A."""
    problems = []
    for r in snapshots_of(world, p):
        if r.value is None or r.key is None:
            continue
        a, ended, row = unpack_snapshot(r.value)
        known = states.get(r.key, {})
        if a not in known:
            problems.append(f"snapshot of {r.key!r} at {a}, which is no record of its stream")
            continue
        want = known[a]
        if ended != (want is None):
            problems.append(f"snapshot of {r.key!r} at {a} says ended: {ended}")
        elif want is not None and hash_in(row) not in want:
            problems.append(f"snapshot of {r.key!r} at {a} holds {hash_in(row)}, none of {sorted(want)}")
    return problems


def unpack_snapshot(value: bytes) -> tuple[int, bool, bytes]:
    """A, whether the stream has ended, its row."""
    a = int.from_bytes(value[snapshots.APPLIED], "little", signed=True)
    return a, bool(value[1] & snapshots.ENDED), value[snapshots.HEADER :]


def hash_in(row: bytes) -> int:
    """The hash comes first in a row, then the noise, then what codec and head remember."""
    return int.from_bytes(row[:8], "little", signed=True)


# ---- the hash that talks


@dataclass
class Told:
    """One generation, as it was shown. ``hashes[i]``: before token i + 1 is fed, so after token i was drawn."""

    text: str
    hashes: list[int]
    most: int


def check_talk(world: World, p: int, inputs: list[Record], outputs: list[Record]) -> list[str]:
    """Every token shown is one of the two that its history allows, the steps are whole, each prompt ends once."""
    problems: list[str] = []
    pieces: dict[int, list[Record]] = defaultdict(list)
    order: dict[bytes | None, list[int]] = defaultdict(list)
    for r in outputs:
        at = source(r)
        if at not in order[r.key][-1:]:
            order[r.key].append(at)
        pieces[at].append(r)
    want: dict[bytes | None, list[int]] = defaultdict(list)
    states: dict[bytes, dict[int, Told | None]] = defaultdict(dict)
    hashes: dict[bytes | None, int] = {}
    told: dict[bytes | None, Told] = {}
    interrupts = world.config.on_input == "interrupt"
    for r in inputs:
        if r.key is None:
            continue
        if r.value is None:
            hashes.pop(r.key, None)
            told.pop(r.key, None)
            states[r.key][r.offset] = None
            continue
        if r.value and spoken(r.value):
            h = hashes.get(r.key, model.INITIAL)
            for c in r.value:
                h = model.advance(h, model.LETTERS.index(chr(c)))
            want[r.key].append(r.offset)
            most = int(dict(r.headers).get("eddy-max-steps", b"4"))
            told[r.key], wrong = follow(h, most, pieces.get(r.offset, []), interrupts)
            problems += [f"{r.key!r}, prompt at {r.offset}: {text}" for text in wrong]
            hashes[r.key] = told[r.key].hashes[-1]
        states[r.key][r.offset] = told.get(r.key, Told("", [model.INITIAL], 0))
    for key in want.keys() | order.keys():
        problems += compare(f"prompts of {key!r}", want[key], order[key])
    return problems + check_talk_snapshots(world, p, states)


def follow(h: int, most: int, pieces: list[Record], interrupts: bool) -> tuple[Told, list[str]]:
    """One generation from the hash after its prompt."""
    text, problems, finishes = "", [], []
    for piece in pieces:
        headers = dict(piece.headers)
        step = int(headers["eddy-step"])
        if step != len(text):
            problems.append(f"a piece begins with step {step} where {len(text)} comes next")
        text += (piece.value or b"").decode()
        if "eddy-finish" in headers:
            finishes.append(headers["eddy-finish"])
    hashes = [h]
    for i, letter in enumerate(text):
        token = model.LETTERS.index(letter)
        if token not in model.likeliest(hashes[-1]):
            problems.append(f"step {i} shows {letter!r}, which its history does not allow")
            break
        if i + 1 < len(text):
            hashes.append(model.advance(hashes[-1], token))
    whole = len(text) == most and finishes == [b"length"]
    if not whole and not (interrupts and len(text) <= most and finishes == [b"interrupt"]):
        problems.append(f"{len(text)} tokens of {most}, ends: {finishes}")
    return Told(text, hashes, most), problems


def check_talk_snapshots(world: World, p: int, states: dict[bytes, dict[int, Told | None]]) -> list[str]:
    """A snapshot is of a moment between two tokens that were shown, or after the last."""
    problems = []
    for r in snapshots_of(world, p):
        if r.value is None or r.key is None:
            continue
        a, ended, row = unpack_snapshot(r.value)
        known = states.get(r.key, {})
        if a not in known:
            problems.append(f"snapshot of {r.key!r} at {a}, which is no record of its stream")
            continue
        told = known[a]
        if ended != (told is None):
            problems.append(f"snapshot of {r.key!r} at {a} says ended: {ended}")
            continue
        if told is None:
            continue
        head = np.frombuffer(row[-ROW.itemsize :], ROW)[0]
        step, token = int(head["step"]), int(head["token"])
        if not head["active"]:
            if hash_in(row) != told.hashes[-1]:
                problems.append(f"snapshot of {r.key!r} at {a} holds {hash_in(row)}, not {told.hashes[-1]}")
        elif not 0 < step <= min(len(told.text), len(told.hashes)):
            problems.append(f"snapshot of {r.key!r} at {a} knows {step} tokens, {len(told.text)} were shown")
        elif (hash_in(row), token) != (told.hashes[step - 1], model.LETTERS.index(told.text[step - 1])):
            problems.append(f"snapshot of {r.key!r} at {a}, step {step}: another text")
    return problems


def spoken(value: bytes) -> bool:
    """Whether it is a prompt, and no dead letter."""
    return all(chr(c) in model.LETTERS for c in value)


# ---- whatever the model


def check_dead(world: World, inputs: list[Record], dead: list[Record]) -> list[str]:
    bad = (lambda value: not spoken(value)) if world.plan.talks else (lambda value: steps_of(value) is None)
    want = [r.offset for r in inputs if r.key is None or (r.value is not None and bad(r.value))]
    got = sorted(source(r) for r in dead)
    if world.gone:
        want = [offset for offset in want if offset in got]
    return compare("dead letters", want, got)


def check_commits(world: World) -> list[str]:
    """Never two owners commit one offset: generations and offsets never fall, one committer a generation."""
    problems = []
    last: dict[tuple[str, int], tuple[int, int, str]] = {}
    for place, c in world.cluster.groups.group("g").history:
        lane, generation, _ = c.by
        if lane in ("tool", "human"):
            continue
        at, before, who = last.get(place, (-1, -1, ""))
        if generation < 0:
            problems.append(f"{place}: an offset was committed without a membership")
        if generation < before:
            problems.append(f"{place}: offset {c.offset} committed under generation {generation} after {before}")
        elif generation == before and lane != who:
            problems.append(f"{place}: {who} and {lane} both committed under generation {generation}")
        if c.offset < at:
            problems.append(f"{place}: the committed offset fell from {at} to {c.offset}")
        last[place] = (c.offset, generation, lane)
    return problems
