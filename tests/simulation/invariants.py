"""What must hold after every run, whatever has happened in it."""

from __future__ import annotations

import struct
from collections import defaultdict
from typing import TYPE_CHECKING

from tests.simulation import model
from tests.simulation.log import Record

if TYPE_CHECKING:
    from tests.simulation.world import World

SOURCE = struct.Struct(">iq")


def check(world: World) -> list[str]:
    problems: list[str] = []
    for p in range(world.plan.partitions):
        inputs = world.cluster.logs["in", p].visible()
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


def compare(what: str, want: list[int], got: list[int]) -> list[str]:
    """Offsets that must come, each once, in order."""
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


def hash_reference(inputs: list[Record]) -> tuple[dict[int, bytes], dict[bytes, dict[int, int | None]]]:
    """Offset -> output; stream -> offset of each of its records -> the hash after it (None: ended)."""
    outputs: dict[int, bytes] = {}
    states: dict[bytes, dict[int, int | None]] = defaultdict(dict)
    hashes: dict[bytes, int] = {}
    for r in inputs:
        if r.key is None:
            continue
        if r.value is None:
            hashes.pop(r.key, None)
            states[r.key][r.offset] = None
            continue
        h = hashes.get(r.key, model.INITIAL)
        shown = []
        for x in steps_of(r.value) or ():
            h = model.advance(h, x)
            shown.append(h)
        hashes[r.key] = states[r.key][r.offset] = h
        if shown:
            outputs[r.offset] = struct.pack(f"<{len(shown)}q", *shown)
    return outputs, states


def check_hash(world: World, p: int, inputs: list[Record], outputs: list[Record]) -> list[str]:
    want, states = hash_reference(inputs)
    keys = {r.offset: r.key for r in inputs}
    problems = []
    got = by_key(outputs)
    for key in {r.key for r in inputs if r.key is not None} | got.keys():
        mine = [o for o in want if keys[o] == key]
        problems += compare(f"outputs of {key!r}", mine, [source(r) for r in got[key]])
    problems += [
        f"output of offset {source(r)} of {r.key!r} is {r.value!r}, not {want[source(r)]!r}"
        for r in outputs
        if source(r) in want and r.value != want[source(r)]
    ]
    return problems + check_snapshots(world, p, states)


def check_snapshots(world: World, p: int, states: dict[bytes, dict[int, int | None]]) -> list[str]:
    """Every snapshot that was ever committed is the stream's reference at its A."""
    from pipeline.streams import snapshots

    problems = []
    log = world.cluster.logs.get((world.config.changelog, p))
    for r in log.history() if log is not None else []:
        if r.value is None or r.key is None:
            continue
        a = int.from_bytes(r.value[16:24], "little", signed=True)
        known = states.get(r.key, {})
        if a not in known:
            problems.append(f"snapshot of {r.key!r} at {a}, which is no record of its stream")
            continue
        ended = bool(r.value[1] & snapshots.ENDED)
        want = known[a]
        if ended != (want is None):
            problems.append(f"snapshot of {r.key!r} at {a} says ended: {ended}")
        elif not ended:
            h = int.from_bytes(r.value[snapshots.HEADER : snapshots.HEADER + 8], "little", signed=True)
            if h != want:
                problems.append(f"snapshot of {r.key!r} at {a} holds {h}, not {want}")
    return problems


# ---- the hash that talks


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
    hashes: dict[bytes | None, int] = {}
    for r in inputs:
        if r.key is None:
            continue
        if r.value is None:
            hashes.pop(r.key, None)
            continue
        if not spoken(r.value):
            continue
        h = hashes.get(r.key, model.INITIAL)
        for c in r.value:
            h = model.advance(h, model.LETTERS.index(chr(c)))
        if r.value:
            want[r.key].append(r.offset)
            most = int(dict(r.headers).get("eddy-max-steps", b"4"))
            h, wrong = follow(h, most, pieces.get(r.offset, []))
            problems += [f"{r.key!r}, prompt at {r.offset}: {text}" for text in wrong]
        hashes[r.key] = h
    for key in want.keys() | order.keys():
        problems += compare(f"prompts of {key!r}", want[key], order[key])
    return problems


def spoken(value: bytes) -> bool:
    """Whether it is a prompt, and no dead letter."""
    return all(chr(c) in model.LETTERS for c in value)


def follow(h: int, most: int, pieces: list[Record]) -> tuple[int, list[str]]:
    """One generation as it was shown; the hash after it."""
    text, problems, finishes = "", [], 0
    for piece in pieces:
        headers = dict(piece.headers)
        step = int(headers["eddy-step"])
        if step != len(text):
            problems.append(f"a piece begins with step {step} where {len(text)} comes next")
        text += (piece.value or b"").decode()
        finishes += "eddy-finish" in headers
    for i, letter in enumerate(text):
        token = model.LETTERS.index(letter)
        if token not in model.likeliest(h):
            problems.append(f"step {i} shows {letter!r}, which its history does not allow")
            break
        if i + 1 < len(text):
            h = model.advance(h, token)
    if len(text) != most or finishes != 1:
        problems.append(f"{len(text)} tokens of {most}, {finishes} ends")
    return h, problems


# ---- whatever the model


def check_dead(world: World, inputs: list[Record], dead: list[Record]) -> list[str]:
    bad = (lambda value: not spoken(value)) if world.plan.talks else (lambda value: steps_of(value) is None)
    want = [r.offset for r in inputs if r.key is None or (r.value is not None and bad(r.value))]
    got = [source(r) for r in dead]
    return compare("dead letters", want, sorted(got))


def check_commits(world: World) -> list[str]:
    """Never two owners commit one offset: generations and offsets never fall, one committer a generation."""
    problems = []
    last: dict[tuple[str, int], tuple[int, int, str]] = {}
    for place, c in world.cluster.groups.group("g").history:
        lane, generation, _ = c.by
        if lane == "tool":
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
