"""``eddy state export``: the states of a group's streams, exactly as they are after all that is done, into a file."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contract import Contract
from pipeline.errors import UserError
from pipeline.mark import MARK_VERSION
from pipeline.streams.snapshots import OTHER_ROWS, Restored, digest_of, restore
from services.inspect import size
from services.state.file import CHUNK_BYTES, Head, Rows, writing
from services.state.group import Held, View, live_row_bytes, name_members, opened
from services.state.inspect import contract_of, group_of

PROBLEMS_NAMED = 3


def export(args: argparse.Namespace) -> int:
    """Raises UserError where states lag behind outputs or cannot be read, CommitError, Unreachable."""
    contract = contract_of(args.model)
    group = group_of(args.group, contract)
    told = asyncio.run(_export(args, group, contract))
    if args.json:
        print(json.dumps(told))
    else:
        ended = f"; {told['ended']} that ended are left out" if told["ended"] else ""
        print(f"{told['streams']} streams, {size(told['bytes'])}, to {args.output}{ended}", file=sys.stderr)
        if told["waiting"]:
            print(f"the input holds {told['waiting']} offsets that are not in them", file=sys.stderr)
    return 0


async def _export(args: argparse.Namespace, group: str, contract: Contract | None) -> dict[str, Any]:
    async with opened(args.bootstrap_servers, group, args.input) as view:
        # 1. Offsets, which must say that every done record is in a snapshot.
        held = await view.held()
        digest = settled(group, args.input, held)
        if contract is not None and digest_of(contract) != digest:
            raise UserError(
                f"group {group!r} holds states of a model with {OTHER_ROWS} ({digest.hex()}, {contract.label} is"
                f" {digest_of(contract).hex()}); give the model it runs"
            )
        # 2. Snapshots, which a worker may add to while they are read.
        row_bytes = await width_of(view, digest)
        head = Head(
            group,
            args.input,
            view.partitions,
            [h.committed.offset if h.committed is not None else h.log.start for h in held],
            digest.hex(),
            row_bytes,
            int(time.time() * 1000),
            contract.label if contract is not None else None,
            hashlib.sha256(contract.to_json().encode()).hexdigest() if contract is not None else None,
        )
        ended = 0
        with writing(Path(args.output), head) as sink:
            for of in held:
                restored = await read_settled(view, of, digest, row_bytes)
                ended += len(restored.ended)
                for rows in as_rows(of.partition, restored):
                    sink.add(rows)
            # 3. If the offsets have not moved, what was read is what they speak of: both move in one transaction.
            await unmoved(view, held)
    waiting = sum(h.lag for h in held)
    return {"file": args.output, "streams": sink.streams, "bytes": sink.nbytes, "ended": ended, "waiting": waiting}


def settled(group: str, topic: str, held: Sequence[Held]) -> bytes:
    """The digest that all of the group's states have. Raises UserError unless every done record is in a snapshot."""
    digests: set[bytes] = set()
    for of in held:
        if of.committed is None:
            continue  # a partition without records may never have been begun; one with snapshots is told of later
        where, mark = f"partition {of.partition} of group {group!r}", of.mark
        if mark is None or mark.committed != of.committed.offset:
            raise UserError(
                f"{where}: another tool has set its offset to {of.committed.offset}; run the worker once, or see"
                " `eddy state inspect`"
            )
        if mark.version != MARK_VERSION:
            raise UserError(
                f"{where} was written by a worker of another version (metadata version {mark.version}, this Eddy reads"
                f" {MARK_VERSION}); use the Eddy that the workers are of"
            )
        if mark.replay_from != mark.committed:
            raise UserError(
                f"{where}: records from {mark.replay_from} on are done, and not all of them are in a snapshot (R"
                f" {mark.replay_from}, C {mark.committed}); let the worker catch up, and drain it: at SIGTERM it saves"
                " every state"
            )
        if mark.done_above:
            raise UserError(
                f"{where}: {of.done_above} records above C {mark.committed} are done, but a slow stream is not so far;"
                " let the worker finish what it has, then drain it (SIGTERM)"
            )
        digests.add(mark.digest)
    if not digests:
        raise UserError(f"group {group!r} has no offset of {topic!r}: there is nothing that is done")
    if len(digests) > 1:
        several = ", ".join(sorted(d.hex() for d in digests))
        raise UserError(f"group {group!r} holds states of several models ({several}): finish their change first")
    return digests.pop()


async def width_of(view: View, digest: bytes) -> int:
    """Bytes of a row; 0 where no stream lives."""
    for partition in range(view.partitions):
        async for stretch in view.stretches(partition):
            width = live_row_bytes(stretch, digest)
            if width is not None:
                return width
    return 0


async def read_settled(view: View, of: Held, digest: bytes, row_bytes: int) -> Restored:
    """A partition's states. Raises UserError for one that cannot be read, or that no offset speaks of."""
    restored = restore(await view.newest(of.partition, digest, row_bytes), digest)
    if restored.problems:
        named = "; ".join(p.text for p in restored.problems[:PROBLEMS_NAMED])
        raise UserError(
            f"partition {of.partition}: {len(restored.problems)} snapshots cannot be read: {named}; a worker with"
            " bad_snapshot: reset gives these streams a new state"
        )
    if of.committed is None and len(restored):
        raise UserError(
            f"partition {of.partition} has snapshots but group {view.group!r} has no offset: its offsets were deleted"
            " or have expired"
        )
    return restored


async def unmoved(view: View, held: Sequence[Held]) -> None:
    """Raises UserError if the group has committed anything since."""
    for before, now in zip(held, await view.held()):
        if before.committed != now.committed:
            members = name_members(await view.members()) or "none now"
            raise UserError(
                f"partition {now.partition} of group {view.group!r} has moved while its states were read (members:"
                f" {members}); stop the workers (SIGTERM) and run this again"
            )


def as_rows(partition: int, restored: Restored) -> Iterator[Rows]:
    """Of a bounded size."""
    step = max(1, CHUNK_BYTES // max(1, restored.rows.shape[1]))
    for a in range(0, len(restored.keys), step):
        piece = slice(a, a + step)
        yield Rows(
            partition,
            restored.keys[piece],
            restored.applied[piece],
            restored.written_ms[piece],
            np.ascontiguousarray(restored.rows[piece]),
        )
