"""``eddy state inspect``: one stream's snapshot, or what a group holds of every partition. It only reads."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.columns import U8, AnyArray, Changelog, as_list
from pipeline.contract import Contract
from pipeline.errors import ConfigError, EddyError, UserError
from pipeline.mark import MARK_VERSION
from pipeline.model_file import find_model, load_graph, read_contract
from pipeline.streams.snapshots import DIGEST, HEADER, WRITTEN, Newest, Problem, digest_of, restore, split
from services.inspect import size
from services.keys import parse_key, partition_of, show_key
from services.state.group import Held, View, digests_in, opened

PROBLEMS_SHOWN = 20


def inspect(args: argparse.Namespace) -> int:
    """Raises UserError for what is not there, CommitError, Unreachable."""
    contract = contract_of(args.model)
    group = group_of(args.group, contract)
    asyncio.run(_inspect(args, group, contract))
    return 0


def contract_of(model: str | None) -> Contract | None:
    """Raises ModelError, ContractError."""
    if model is None:
        return None
    file = find_model(Path(model))
    return read_contract(load_graph(file), str(file))


def group_of(group: str | None, contract: Contract | None) -> str:
    """As `eddy run` names it. Raises ConfigError."""
    if group:
        return group
    if contract is None:
        raise ConfigError("no group: give --group, or --model to have eddy-MODEL as `eddy run` does")
    return f"eddy-{contract.name}"


async def _inspect(args: argparse.Namespace, group: str, contract: Contract | None) -> None:
    async with opened(args.bootstrap_servers, group, args.input) as view:
        held = await view.held()
        if args.key is None:
            if args.partition is not None:
                raise ConfigError("--partition is about one stream: give its KEY, too")
            partitions = [await summarise(view, of, contract) for of in held]
            members = [m.name for m in await view.members()]
            told: dict[str, Any] = {
                "group": group,
                "input": args.input,
                "changelog": view.changelog,
                "members": members,
                "streams": sum(p["streams"] for p in partitions),
                "bytes": sum(p["bytes"] for p in partitions),
                "partitions": partitions,
            }
            print(json.dumps(told, ensure_ascii=False) if args.json else "\n".join(_summary_table(told, contract)))
            return
        key = parse_key(args.key, args.hex)
        partition = args.partition if args.partition is not None else partition_of(key, view.partitions)
        if not 0 <= partition < view.partitions:
            raise ConfigError(f"--partition is {partition}: {args.input} has 0 to {view.partitions - 1}")
        stream = await find_stream(view, held[partition], key, contract)
    print(json.dumps(stream, ensure_ascii=False) if args.json else "\n".join(_stream_table(stream)))


# ---- a partition


async def summarise(view: View, held: Held, contract: Contract | None) -> dict[str, Any]:
    """Of one partition, as JSON has it."""
    digest, row_bytes = _expected(held, contract)
    newest = await view.newest(held.partition, digest, row_bytes)
    counts = digests_in(newest)
    restored = restore(newest, digest or bytes.fromhex(max(counts, key=counts.__getitem__, default="00" * 8)))
    written = restored.written_ms
    _, matrix = newest.columns()
    return {
        "partition": held.partition,
        "committed": held.committed.offset if held.committed is not None else None,
        "replay_from": held.mark.replay_from if held.mark is not None else None,
        "done_above": held.done_above,
        "log_start": held.log.start,
        "log_end": held.log.end,
        "lag": held.lag,
        "digest": held.mark.digest.hex() if held.mark is not None else None,
        "streams": len(restored.keys),
        "ended": len(restored.ended),
        "bytes": int(matrix.size) + sum(map(len, newest.others.values())),
        "oldest_age_s": age_s(int(written.min())) if len(written) else None,
        "newest_age_s": age_s(int(written.max())) if len(written) else None,
        "digests": counts,
        "problems": [{"key": show_key(p.key), "kind": p.kind, "text": p.text} for p in restored.problems],
        "note": _note(held, newest),
    }


def _expected(held: Held, contract: Contract | None) -> tuple[bytes | None, int | None]:
    """Digest and bytes of a row that snapshots should have: the model's, else the digest beside the offset."""
    if contract is not None:
        return digest_of(contract), row_bytes_of(contract)
    return (held.mark.digest if held.mark is not None else None), None


def row_bytes_of(contract: Contract) -> int:
    """Bytes of a stream's row: its states, and what codec and head keep."""
    states = sum(s.initial_array().nbytes for s in contract.states)
    return states + contract.given_bytes + contract.codec.memory_bytes + contract.head.memory_bytes


def _note(held: Held, newest: Newest) -> str | None:
    """What keeps a worker from taking this partition over, as far as it shows here."""
    if held.committed is None:
        return "snapshots without an offset: the group's offsets were deleted or have expired" if len(newest) else None
    if held.mark is None:
        return "the offset has no metadata of Eddy's" + (": another tool has set it" if len(newest) else "")
    if held.mark.version != MARK_VERSION:
        return f"metadata of version {held.mark.version}, this Eddy reads {MARK_VERSION}: R and D are not known"
    if held.mark.committed != held.committed.offset:
        return f"the offset is not its metadata's C {held.mark.committed}: another tool has set it"
    if held.log.start > held.mark.replay_from:
        return f"the input begins at {held.log.start}: its retention has passed R"
    return None


def age_s(written_ms: int) -> float:
    """Seconds since then, by this machine's clock."""
    return round(max(0.0, time.time() - written_ms / 1000), 3)


# ---- a stream


async def find_stream(view: View, held: Held, key: bytes, contract: Contract | None) -> dict[str, Any]:
    """Of one stream, as JSON has it. Raises UserError if it has no snapshot, EddyError for a damaged one."""
    last: bytes | None = None
    forgotten = False
    seen = 0
    async for stretch in view.stretches(held.partition):
        seen += len(stretch.keys)
        for k, value in zip(stretch.keys, as_list(stretch.values)):
            if k == key:
                last, forgotten = value, value is None
    if forgotten:
        raise UserError(
            f"stream {show_key(key)!r} of partition {held.partition} of {view.topic} has ended or expired and is"
            " forgotten: its next record begins anew"
        )
    if last is None:
        raise UserError(
            f"stream {show_key(key)!r} has no snapshot among the {seen} of partition {held.partition} of {view.topic}:"
            " its records are in none yet, or its producer has another partitioner than murmur2 (--partition says"
            " where it writes)"
        )
    digest, _ = _expected(held, contract)
    told: dict[str, Any] = {
        "key": show_key(key),
        "partition": held.partition,
        "committed": held.committed.offset if held.committed is not None else None,
        "replay_from": held.mark.replay_from if held.mark is not None else None,
        "bytes": len(last),
    }
    found = read_snapshot(key, last)
    if isinstance(found, Problem):
        raise EddyError(f"partition {held.partition}: {found.text}")
    told |= {
        "applied": found.applied,
        "ended": found.ended,
        "written_ms": found.written_ms,
        "age_s": age_s(found.written_ms),
        "digest": found.digest.hex(),
        "row_bytes": len(found.row),
    }
    if contract is not None:
        told["model"] = contract.label
        told["model_digest"] = digest_of(contract).hex()
        told["fits"] = found.digest == digest
        if told["fits"] and not found.ended:
            told |= describe_row(found.row, contract)
    return told


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot, read."""

    digest: bytes
    applied: int
    """A: the offset of the last record in it."""
    written_ms: int
    ended: bool
    row: U8


def read_snapshot(key: bytes, value: bytes) -> Snapshot | Problem:
    """By its own digest: whether that is the right one is the caller's question."""
    digest = value[DIGEST].ljust(8, b"\0")
    newest = Newest(max(0, len(value) - HEADER))
    newest.add(Changelog([key], [value], np.zeros(1, np.int64), 1))
    restored = restore(newest, digest)
    if restored.problems:
        return restored.problems[0]
    written_ms = int.from_bytes(value[WRITTEN], "little", signed=True)
    if restored.ended:
        return Snapshot(digest, restored.ended[key], written_ms, True, np.empty(0, np.uint8))
    return Snapshot(digest, int(restored.applied[0]), written_ms, False, restored.rows[0])


def describe_row(row: U8, contract: Contract) -> dict[str, Any]:
    """A row's tensors by the contract's layout, and what codec and head keep as bytes."""
    states = [s for group in contract.states_by_dtype().values() for s in group]
    arena_bytes = sum(s.initial_array().nbytes for s in states)
    arena, codec, head = split(row[None], arena_bytes, contract.given_bytes + contract.codec.memory_bytes)
    tensors, at = [], 0
    for state in states:
        end = at + state.size * np.dtype(state.dtype).itemsize
        values = np.ascontiguousarray(arena[0, at:end]).view(state.dtype)
        tensors.append({"name": state.input, "dtype": state.dtype, "shape": list(state.shape), **_figures(values)})
        at = end
    return {"states": tensors, "codec_memory": codec.tobytes().hex(), "head_memory": head.tobytes().hex()}


def _figures(values: AnyArray) -> dict[str, float | int | None]:
    """Norm (of the finite ones), least and largest value, and how many are none."""
    wide = values.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    return {
        "norm": float(np.linalg.norm(finite)),
        "min": float(finite.min()) if len(finite) else None,
        "max": float(finite.max()) if len(finite) else None,
        "not_finite": len(wide) - len(finite),
    }


# ---- for people


def _summary_table(told: dict[str, Any], contract: Contract | None) -> Iterator[str]:
    yield f"group      {told['group']}   members: {', '.join(told['members']) or 'none'}"
    yield f"input      {told['input']}, {len(told['partitions'])} partitions   changelog {told['changelog']}"
    yield f"streams    {told['streams']:,}, {size(told['bytes'])} of snapshots"
    if contract is not None:
        yield f"model      {contract.label}, digest {digest_of(contract).hex()}"
    columns = ("partition", "C", "R", "D", "lag", "streams", "ended", "bytes", "oldest", "newest", "digests")
    rows = [columns, *(tuple(_cells(p)) for p in told["partitions"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths))
    for p in told["partitions"]:
        if p["note"]:
            yield f"partition {p['partition']}: {p['note']}"
        for problem in p["problems"][:PROBLEMS_SHOWN]:
            yield f"partition {p['partition']}: {problem['kind']}: {problem['text']}"
        if len(p["problems"]) > PROBLEMS_SHOWN:
            yield f"partition {p['partition']}: and {len(p['problems']) - PROBLEMS_SHOWN} more that cannot be read"


def _cells(p: dict[str, Any]) -> Iterator[str]:
    for name in ("partition", "committed", "replay_from", "done_above", "lag", "streams", "ended"):
        yield "-" if p[name] is None else str(p[name])
    yield size(p["bytes"])
    yield _span(p["oldest_age_s"])
    yield _span(p["newest_age_s"])
    yield " ".join(f"{digest} x {count}" for digest, count in p["digests"].items()) or "-"


def _span(seconds: float | None) -> str:
    """``90.5`` -> ``1.5 min``."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _stream_table(told: dict[str, Any]) -> Iterator[str]:
    yield f"stream     {told['key']}"
    r = f", R {told['replay_from']}" if told["replay_from"] is not None else ""
    yield f"partition  {told['partition']}   C {told['committed']}{r}"
    ended = "   the stream ended there" if told["ended"] else ""
    yield f"A          {told['applied']}{ended}"
    yield f"written    {_span(told['age_s'])} ago"
    yield f"size       {size(told['bytes'])}, its row {size(told['row_bytes'])}"
    fits = "" if "fits" not in told else f"   {'that of' if told['fits'] else 'not that of'} {told['model']}"
    yield f"digest     {told['digest']}{fits}"
    if "fits" in told and not told["fits"]:
        yield f"           (the model's is {told['model_digest']}: it cannot read this row)"
    for state in told.get("states", ()):
        odd = f", {state['not_finite']} not finite" if state["not_finite"] else ""
        extent = "" if state["min"] is None else f"   {state['min']:.6g} to {state['max']:.6g}"
        yield f"state      {state['name']:<16} {state['dtype']}{state['shape']}   norm {state['norm']:.6g}{extent}{odd}"
    for part in ("codec", "head"):
        if told.get(f"{part}_memory"):
            yield f"{part:<10} {told[f'{part}_memory']}"
