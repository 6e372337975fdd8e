"""A partition becomes this worker's own: stable offset -> restore -> checks -> resume. X8 and X10 as numbered steps.

It begins with the partition in no running transaction, the writer settled and the old memory dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipeline.columns import I64, IMPORTING, U8, Bools, Committed, Membership
from pipeline.copies import Copies, on_a_thread
from pipeline.errors import SlotsExhausted, TakeoverError
from pipeline.mark import MARK_VERSION, NOT_KNOWN, Mark, Run, Topics, contains, stable_tag
from pipeline.partition import Memory
from pipeline.residency import Residency
from pipeline.streams.slots import Index, Slots
from pipeline.streams.snapshots import OTHER_ROWS, Problem, Restored, restore
from pipeline.transport.base import LogRange, Transport

MANY = 4096
"""More snapshots of 2 KiB than this take longer than a few milliseconds to check."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a takeover read, before anything of it is believed."""

    partition: int
    committed: Committed | None
    mark: Mark | None
    """The offset's metadata, where it is Eddy's."""
    log: LogRange
    restored: Restored
    topics: Topics = NOT_KNOWN
    """Those that are there."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a partition that passed the checks begins."""

    committed: int
    """C."""
    replay_from: int
    """R."""
    base: bytes | None
    replay: tuple[Run, ...] = ()
    """What is done and yet to be applied again, hidden; empty where R = C and D is empty."""
    reset: tuple[Problem, ...] = ()
    """Snapshots that cannot be read; their streams begin anew, as policy has it."""


async def read(
    partition: int,
    membership: Membership,
    transport: Transport,
    copies: Copies,
    digest: bytes,
    row_bytes: int,
    *,
    look_twice: bool,
) -> Found:
    """Steps 1 to 4; no memory is touched. ``look_twice``: at least once, X13. Raises CommitError when the broker does
    not answer in time."""
    while True:
        # 1. The stable offset first, with its metadata: a snapshot read later is then at least as new as it (X8).
        committed = (await transport.stable_offsets(membership, [partition]))[partition]
        # 2. The changelog, read committed, to the high watermark asked now, after the offset.
        newest = await copies.restore(partition, row_bytes)
        # 3. At least once, outputs stand in no transaction that a fence could stop: what moved meanwhile is read anew.
        if look_twice:
            again = (await transport.stable_offsets(membership, [partition]))[partition]
            if stable_tag(again) != stable_tag(committed):
                continue
        # 4. What the input still holds, and whether all that was of the topics that the offset is of.
        log_range = (await transport.log_ranges([partition]))[partition]
        topics = Topics.of(*await transport.topic_ids())
        mark = Mark.decode(committed.metadata) if committed is not None else None
        # The sums of many snapshots take long: the others' records and the heartbeats go on beside it.
        judge = partial(restore, newest, digest)
        restored = await on_a_thread(judge) if len(newest) > MANY else judge()
        return Found(partition, committed, mark, log_range, restored, topics)


def check(found: Found, digest: bytes, *, resets: bool = False) -> Start | None:
    """X10, pure. None: a new group, which commits its start first. ``resets``: a stream whose snapshot cannot be read
    begins anew. Raises TakeoverError naming what does not fit."""

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise TakeoverError(found.partition, message)

    restored, log = found.restored, found.log
    if found.committed is None:
        need(
            not restored.told,
            "the changelog was written to but the group has no offset: its offsets were deleted or have expired, or"
            " the input topic was made anew; delete the changelog topic to begin from nothing",
        )
        return None
    mark, offset = found.mark, found.committed.offset
    if mark is None:
        need(
            found.committed.metadata != IMPORTING,
            "an import of states was cut off and streams are missing: run `eddy state import` (or repartition) again",
        )
        need(
            not restored.told,
            f"the changelog was written to but the committed offset {offset} has no metadata of Eddy's: another tool"
            " has set this group's offset; delete the changelog topic to begin from nothing at that offset",
        )
        need(log.start <= offset <= log.end, f"the committed offset {offset} is outside the log {log.start}..{log.end}")
        return Start(offset, offset, stable_tag(found.committed))
    need(
        mark.version <= MARK_VERSION,
        f"written by a newer worker (metadata version {mark.version}, this one reads {MARK_VERSION}); update this one",
    )
    if not resets:
        # Another model may go on where nothing is to be replayed and no stream has a state: each would be a problem.
        settled = mark.replay_from == offset and not mark.done_above
        need(mark.digest == digest or settled, _other_rows(mark.digest, digest))
        need(not restored.problems, _say(restored.problems))
    gone = mark.topics.others(found.topics)
    need(
        "changelog" not in gone,
        "the changelog topic is not the one that the group's states were written to: it was deleted and made anew, and"
        " the states are gone; delete the group's offsets (or give another --group) to begin from nothing",
    )
    need(
        "input" not in gone,
        f"the input topic is not the one that the committed offset {offset} is of: it was deleted and made anew;"
        " delete the changelog topic and the group's offsets (or give another --group) to begin from nothing",
    )
    need(mark.committed == offset, f"offset {offset} does not match its metadata's C {mark.committed}")
    need(
        log.start <= mark.replay_from,
        f"the input begins at {log.start}, a replay must begin at {mark.replay_from}: its retention has passed what was"
        " not yet processed",
    )
    end = mark.done[-1][1]
    need(end <= log.end, f"offset {end - 1} is done, the log ends at {log.end}: the topic was made anew")
    keys = [*restored.keys, *restored.ended]
    applied = np.concatenate([restored.applied, np.fromiter(restored.ended.values(), np.int64, len(restored.ended))])
    ahead = np.flatnonzero(~contains(mark.done, applied))
    if len(ahead):
        key, a = keys[int(ahead[0])], int(applied[ahead[0]])
        need(False, f"the snapshot of stream {key!r} is at offset {a}, which is not done (C is {offset})")
    replay = tuple(mark.done) if mark.replay_from < end else ()
    return Start(offset, mark.replay_from, mark.tag, replay, tuple(restored.problems))


def _say(problems: list[Problem]) -> str:
    if not problems:
        return ""
    rest = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{problems[0].text}{rest}; bad_snapshot: reset lets such streams begin anew"


def _other_rows(written: bytes, mine: bytes) -> str:
    return (
        f"the group's states were written by a model with {OTHER_ROWS} ({written.hex()}, this one is {mine.hex()}); run"
        " the old model, or another --group; bad_snapshot: reset lets its streams begin anew"
    )


def install(
    found: Found,
    start: Start,
    membership: Membership,
    slots: Slots,
    residency: Residency,
    wanted: Callable[[U8], Bools],
) -> tuple[Memory, I64]:
    """Rows into slots, by column, and into the host tier when those are taken; the new memory, and the slots of those
    streams that have one. ``wanted``: of whole rows, which streams need a slot at once. Raises SlotsExhausted and
    TierFull.
    """
    restored = found.restored
    keys, rows, applied, written_ms = restored.keys, restored.rows, restored.applied, restored.written_ms
    if len(keys) > slots.free:
        first = wanted(rows)
        residency.make_room(int(first.sum()))
        if first.sum() > slots.free:
            raise SlotsExhausted(
                f"{int(first.sum())} streams of partition {found.partition} are generating, {slots.free} of"
                f" {slots.total} slots are free; raise slots (--slots, EDDY_SLOTS)"
            )
        # Those that were at work last are the likeliest to go on.
        order = np.lexsort((-written_ms, ~first))
        keys, rows, applied, written_ms = (
            [keys[i] for i in order.tolist()],
            rows[order],
            applied[order],
            written_ms[order],
        )
    memory = Memory(
        found.partition,
        membership,
        start.base,
        start.committed,
        start.replay_from,
        Index(slots, found.partition),
        slots,
        residency.tier,
        start.replay,
        dict(restored.ended),
    )
    residency.own(memory)
    return memory, residency.restore(memory, keys, rows, applied, written_ms)
