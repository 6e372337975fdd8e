"""``eddy inspect``: a model's contract as a table, and what a stream of it costs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.contract import Constant, Contract
from pipeline.errors import ConfigError
from pipeline.model_file import find_model, load_graph, read_contract
from pipeline.streams.snapshots import digest_of


def inspect(args: argparse.Namespace) -> int:
    """Raises ModelError, ContractError."""
    if args.slots < 1:
        raise ConfigError(f"--slots is {args.slots}: must be at least 1")
    file = find_model(Path(args.model))
    contract = read_contract(load_graph(file), str(file))
    costs = measure(contract, file, args.slots)
    if args.json:
        print(json.dumps({**json.loads(contract.to_json()), **costs}, ensure_ascii=False, indent=1))
    else:
        print("\n".join(_table(contract, costs)))
    return 0


def measure(contract: Contract, file: Path, slots: int) -> dict[str, Any]:
    """Sizes in bytes: of the file, of one stream's row, of everything ``slots`` streams need. And what a snapshot of it
    says that it is of."""
    states = {d: sum(s.size for s in group) for d, group in contract.states_by_dtype().items()}
    row = sum(s.initial_array().nbytes for s in contract.states)
    memory = contract.given_bytes + contract.codec.memory_bytes + contract.head.memory_bytes
    return {
        "file": str(file),
        "file_bytes": file.stat().st_size,
        "snapshot_digest": digest_of(contract).hex(),
        "row_elements": states,
        "row_bytes": row + memory,
        "slots": slots,
        # Slot 0 is scratch.
        "arena_bytes": (slots + 1) * row,
        "memory_bytes": (slots + 1) * memory,
    }


def _table(contract: Contract, costs: dict[str, Any]) -> Iterator[str]:
    axes = {0: "[T, B, ...]", 1: "[B, T, ...]", None: "[B, ...]"}[contract.time_axis]
    yield f"{contract.label}   {costs['file']}, {size(costs['file_bytes'])}"
    yield f"digest      {contract.digest.hex()}   (of the state schema)"
    yield f"snapshots   {costs['snapshot_digest']}   (that, and what codec and head read a row by)"
    yield f"axes        {axes}{'' if contract.batching == 'batched' else '   one stream a call'}"
    yield from _rows("step", ((s.name, s.dtype, s.shape, "") for s in contract.steps))
    yield from _rows("constant", ((c.name, c.dtype, c.shape, _value(c)) for c in contract.constants))
    yield from _rows(
        "state",
        (
            (
                f"{s.input} -> {s.output}",
                s.dtype,
                s.shape,
                ("no batch axis" if s.batch_axis is None else f"batch axis {s.batch_axis}")
                + ("" if s.initial is None else ", with an initial value"),
            )
            for s in contract.states
        ),
    )
    yield from _rows("output", ((o.name, o.dtype, o.shape, "") for o in contract.outputs))
    yield f"codec       {contract.codec.kind}{_settings(contract.codec.settings)}"
    feeds = f" of {contract.head.output}" if contract.head.output is not None else ""
    yield f"head        {contract.head.kind}{feeds}{_settings(contract.head.settings)}"
    if contract.head.labels:
        yield f"labels      {len(contract.head.labels)}: {', '.join(contract.head.labels[:12])}"
    yield (
        f"row         {size(costs['row_bytes'])} a stream: its states,"
        f" codec {contract.codec.memory_bytes} B, head {contract.head.memory_bytes} B"
    )
    yield f"arena       {size(costs['arena_bytes'] + costs['memory_bytes'])} for {costs['slots']:,} slots"


def _value(constant: Constant) -> str:
    """What it is, or where it comes from."""
    values = ", ".join(f"{v:g}" for v in constant.value[:4]) + (", ..." if len(constant.value) > 4 else "")
    if constant.header is None:
        return f"= {values}"
    return f"a stream's own, from header {constant.header}" + (f", else {values}" if values else "")


def _rows(kind: str, things: Iterator[tuple[str, str, Sequence[int], str]]) -> Iterator[str]:
    for name, dtype, shape, note in things:
        yield f"{kind:<11} {name:<24} {dtype}{list(shape) if shape else ''}{f'   {note}' if note else ''}"
        kind = ""


def _settings(settings: Any) -> str:
    """Long lists (a vocabulary) are counted, not printed."""
    shown = (
        f"{k}={v if not isinstance(v, (list, dict, str)) or len(v) <= 16 else f'({len(v)} items)'}"
        for k, v in settings.items()
    )
    return "".join(f"  {s}" for s in shown)


def size(count: float) -> str:
    """``1536`` -> ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
