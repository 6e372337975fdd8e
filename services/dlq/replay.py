"""``eddy dlq replay``: dead letters go to the input again, as they were, behind what their streams have by now.

Each is sent once: the records and the offsets that tell of them move in one transaction, under the membership of the
only member of a group which exists for these offsets alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.columns import I64, Bools, Part, Records
from pipeline.config import Config
from pipeline.errors import Broken, UserError
from pipeline.mark import Mark, Tags
from services.dlq.letters import Box, Choice, Letter, opened
from services.sole import Sole, only_member

LOT_BYTES = 4_194_304
"""One transaction, about."""
LOT_LETTERS = 5000
MEMBER = "eddy-dlq"
NO_DIGEST = bytes(8)
"""A mark has one; of dead letters there is none."""


def replay(args: argparse.Namespace) -> int:
    """Raises ConfigError, UserError, TopicError, Unreachable, EddyError."""
    told = asyncio.run(_replay(args, Choice(args)))
    if args.json:
        print(json.dumps(told))
    else:
        done = "would be sent" if args.dry_run else "sent"
        skipped = f"; {told['skipped']} were sent before (--again sends them, too)" if told["skipped"] else ""
        print(f"{told['replayed']} of {told['chosen']} dead letters {done} to {args.input}{skipped}", file=sys.stderr)
    return 0


async def _replay(args: argparse.Namespace, chosen: Choice) -> dict[str, Any]:
    async with opened(args.bootstrap_servers, args.input) as box:
        if args.dry_run:
            plans = await _plan(box, chosen, args.again)
        else:
            config = Config(
                bootstrap_servers=args.bootstrap_servers, group=box.group, input=box.topic, worker_id=MEMBER
            )
            async with only_member(box.client, config, box.partitions, (box.input, box.topic, box.topic)) as sole:
                # Planned once nobody else can move these offsets.
                plans = await _plan(box, chosen, args.again)
                tags = Tags(os.urandom(8))
                for plan in plans:
                    await _send(box, sole, plan, tags)
    return {
        "topic": args.input,
        "chosen": sum(plan.chosen for plan in plans),
        "replayed": sum(int(plan.sending.sum()) for plan in plans),
        "skipped": sum(plan.chosen - int(plan.sending.sum()) for plan in plans),
        "dry_run": args.dry_run,
    }


@dataclass(slots=True)
class Plan:
    """Of one partition: what to send, and what has been sent. Columns speak of its dead letters in their order."""

    partition: int
    offsets: I64
    """int64 ``[n]``."""
    sending: Bools
    done: Bools
    """Sent, now or before."""
    chosen: int
    """How many were asked for, sent before or not."""

    def mark(self, tag: bytes) -> Mark:
        """C is the first letter that was not sent, D the runs of those that were, beyond it.

        Offsets between two letters hold none: a run goes over them.
        """
        open_ones = np.flatnonzero(~self.done)
        if not len(open_ones):
            end = int(self.offsets[-1]) + 1
            return Mark(tag, end, end, NO_DIGEST)
        first = int(open_ones[0])
        edges = np.flatnonzero(np.diff(np.concatenate([[False], self.done[first:], [False]]).astype(np.int8))) + first
        runs = [(int(self.offsets[a]), int(self.offsets[b - 1]) + 1) for a, b in edges.reshape(-1, 2)]
        return Mark(tag, int(self.offsets[first]), int(self.offsets[first]), NO_DIGEST, tuple(runs))


async def _plan(box: Box, chosen: Choice, again: bool) -> list[Plan]:
    """Reads all letters, keeps none. Raises UserError for a place that was asked for and holds none."""
    plans, found = [], []
    before = await box.replayed()
    for partition in range(box.partitions):
        offsets, wanted, done = [], [], []
        async for letters in box.letters(partition):
            for letter in letters:
                offsets.append(letter.offset)
                wanted.append(chosen(letter))
                done.append(letter.offset in before[partition])
                if wanted[-1]:
                    found.append((letter.partition, letter.source))
        asked, sent = np.array(wanted, np.bool_), np.array(done, np.bool_)
        sending = asked if again else asked & ~sent
        plans.append(Plan(partition, np.array(offsets, np.int64), sending, sent, int(asked.sum())))
    missing = chosen.missing(found)
    if missing:
        raise UserError(f"no dead letter of {box.input} was at {', '.join(missing)}: see `eddy dlq list`")
    return plans


async def _send(box: Box, sole: Sole, plan: Plan, tags: Tags) -> None:
    """Lot by lot, in order."""
    if not plan.sending.any():
        return
    lot: list[Letter] = []
    size = 0
    async for letters in box.letters(plan.partition, int(plan.offsets[plan.sending.argmax()])):
        for letter in letters:
            i = int(plan.offsets.searchsorted(letter.offset))
            if i >= len(plan.offsets) or not plan.sending[i]:
                continue
            lot.append(letter)
            size += len(letter.value or b"")
            if size > LOT_BYTES or len(lot) >= LOT_LETTERS:
                await _send_lot(sole, plan, lot, tags)
                lot, size = [], 0
    if lot:
        await _send_lot(sole, plan, lot, tags)


async def _send_lot(sole: Sole, plan: Plan, lot: list[Letter], tags: Tags) -> None:
    plan.done[plan.offsets.searchsorted([letter.offset for letter in lot])] = True
    tag = tags.next()
    mark = plan.mark(tag)
    try:
        metadata = mark.encode()
    except Broken:
        raise UserError(
            f"partition {plan.partition}: the dead letters sent lie in {len(mark.done_above)} stretches, too many to"
            " keep beside an offset: send those in between, too (without --key, --reason and --offset)"
        ) from None
    records = Records(
        [letter.key for letter in lot],
        [letter.value for letter in lot],
        np.array([letter.timestamp_ms for letter in lot], np.int64),
        extra=[letter.headers for letter in lot],
    )
    await sole.commit([Part(plan.partition, tag, mark.committed, metadata, outputs=records)])
