"""A partition becomes this worker's own: stable offset -> restore -> checks -> resume. X8 and X10 as numbered steps.

It begins with the partition in no running transaction, the writer settled and the old memory dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.columns import I64, IMPORTING, Committed, Membership
from pipeline.engine import Arena
from pipeline.errors import SlotsExhausted, TakeoverError
from pipeline.partition import MARK_VERSION, Mark, Memory
from pipeline.streams.slots import Index, Slots
from pipeline.streams.snapshots import OTHER_ROWS, Newest, Restored, restore, split
from pipeline.transport.base import LogRange, Transport


@dataclass(frozen=True, slots=True)
class Found:
    """What a takeover read, before anything of it is believed."""

    partition: int
    committed: Committed | None
    mark: Mark | None
    """The offset's metadata, where it is Eddy's."""
    log: LogRange
    restored: Restored


@dataclass(frozen=True, slots=True)
class Start:
    """Where a partition that passed the checks begins."""

    committed: int
    replay_from: int
    base: bytes | None


async def read(partition: int, membership: Membership, transport: Transport, digest: bytes, row_bytes: int) -> Found:
    """Steps 1 to 3; no memory is touched. Raises CommitError when the broker does not answer in time."""
    # 1. The stable offset first, with its metadata: a snapshot read later is then at least as new as it (X8).
    committed = (await transport.stable_offsets(membership, [partition]))[partition]
    mark = Mark.decode(committed.metadata) if committed is not None else None
    # 2. The changelog, read committed, to the high watermark asked now, after the offset.
    newest = Newest(row_bytes)
    async for stretch in transport.changelog(partition):
        newest.add(stretch)
    restored = restore(newest, digest)
    # 3. What the input still holds.
    log_range = (await transport.log_ranges([partition]))[partition]
    return Found(partition, committed, mark, log_range, restored)


def check(found: Found, digest: bytes) -> Start | None:
    """X10, pure. None: a new group, which commits its start first. Raises TakeoverError naming what does not fit."""

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise TakeoverError(found.partition, message)

    restored, log = found.restored, found.log
    if found.committed is None:
        need(
            len(restored) == 0,
            "the changelog holds snapshots but the group has no offset: its offsets were deleted or have expired, or"
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
            len(restored) == 0,
            f"the changelog holds snapshots but the committed offset {offset} has no metadata of Eddy's: another tool"
            " has set this group's offset; delete the changelog topic to begin from nothing at that offset",
        )
        need(log.start <= offset <= log.end, f"the committed offset {offset} is outside the log {log.start}..{log.end}")
        return Start(offset, offset, None)
    need(
        mark.version <= MARK_VERSION,
        f"written by a newer worker (metadata version {mark.version}, this one reads {MARK_VERSION}); update this one",
    )
    need(mark.digest == digest, _other_rows(mark.digest, digest))
    need(not restored.problems, restored.problems[0].text if restored.problems else "")
    need(mark.committed == offset, f"offset {offset} does not match its metadata's C {mark.committed}")
    need(
        not mark.done_above, "the metadata has done offsets above C, which this worker cannot read; update this worker"
    )
    need(
        mark.replay_from == offset,
        f"a replay must begin at {mark.replay_from}, below C {offset}, which this worker cannot do; update this worker",
    )
    need(
        log.start <= mark.replay_from,
        f"the input begins at {log.start}, a replay must begin at {mark.replay_from}: its retention has passed what was"
        " not yet processed",
    )
    need(offset <= log.end, f"the committed offset {offset} is beyond the log's end {log.end}: the topic was made anew")
    for key, a in [*zip(restored.keys, restored.applied.tolist()), *restored.ended.items()]:
        # R = C: every A(s) is done, and everything done is in a snapshot.
        need(a < offset, f"the snapshot of stream {key!r} is at offset {a}, which is not below C {offset}")
    return Start(offset, mark.replay_from, mark.tag)


def _other_rows(written: bytes, mine: bytes) -> str:
    return (
        f"the group's states were written by a model with {OTHER_ROWS} ({written.hex()}, this one is {mine.hex()}); run"
        " the old model, or another --group"
    )


def install(found: Found, start: Start, membership: Membership, slots: Slots, arena: Arena) -> tuple[Memory, I64]:
    """Rows into slots, by column; the new memory and its live streams' slots. Raises SlotsExhausted."""
    index = Index(slots, found.partition)
    restored = found.restored
    if len(restored.keys) > slots.free:
        raise SlotsExhausted(
            f"partition {found.partition} has {len(restored.keys)} live streams, {slots.free} of {slots.total} slots"
            " are free; raise slots (--slots, EDDY_SLOTS)"
        )
    where = slots.lookup(index, restored.keys)
    arena_rows, codec_rows, head_rows = split(restored.rows, arena.row_bytes, slots.codec.shape[1])
    if len(where):
        arena.write(where, arena_rows)
        slots.codec[where] = codec_rows
        slots.head[where] = head_rows
        slots.applied[where] = restored.applied
        slots.fresh[where] = False
    memory = Memory(found.partition, membership, start.base, start.committed, index, start.replay_from)
    return memory, where
