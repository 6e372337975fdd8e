"""States of streams into a group that has none: each a new snapshot, all of them or no worker takes them over (X15)."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field

import numpy as np

from pipeline.columns import I64, IMPORTING, U8, Part, Records
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.mark import Mark, Tags
from pipeline.streams.snapshots import OTHER_ROWS, Snapshots, restore
from pipeline.transport.kafka.logs import EARLIEST, LATEST
from pipeline.transport.kafka.topics import CHANGELOG, make_topics, partitions_of, wait_for
from services.keys import partition_of, show_key
from services.sole import only_member
from services.state.file import Rows
from services.state.group import Held, View

WORKER_ID = "eddy-state"
"""Who we are in the group."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What was written."""

    streams: int
    nbytes: int
    committed: list[int]
    """C by partition: where the group begins."""


@dataclass(slots=True)
class _Target:
    """What the group has before, and what has been written."""

    committed: list[int]
    leftovers: list[set[bytes]]
    """By partition: streams of an import that was cut off, not written again so far."""
    seen: set[bytes] = field(default_factory=set)
    nbytes: int = 0


async def install(view: View, config: Config, streams: AsyncIterator[Rows], digest: bytes) -> Installed:
    """``view`` and ``config`` are of the group and topic that get them; ``streams`` has each once.

    As the group's only member, under its membership. Every snapshot has A = C - 1 of its new partition: all that is
    done there is in it. Its age stays, since streams expire by it. Where one transaction does not hold them all, the
    offsets' metadata says until the last one that the import is unfinished, and no worker takes such a partition over.
    Raises UserError, EddyError, CommitError.
    """
    await _make_changelog(view, config)
    tags = Tags(os.urandom(8))
    async with only_member(
        view.client, config, view.partitions, (view.topic, config.dead_letters, view.changelog)
    ) as sole:
        # 1. What the group has: nothing but, maybe, an offset where it shall begin, or what a cut off import left.
        target = await _examine(view, config, digest)
        # 2. All but the last lot of streams, under offsets that no worker begins from.
        waiting: list[Records] | None = None
        async for rows in streams:
            lot = _records(view, target, rows, digest)
            if waiting is not None:
                await sole.commit(_parts(target, waiting, tags, None))
            waiting = lot
        # 3. The last lot, what is left over to be forgotten, and the offsets that workers begin from.
        last = waiting if waiting is not None else [Records.none()] * view.partitions
        await sole.commit(_parts(target, last, tags, digest))
    return Installed(len(target.seen), target.nbytes, target.committed)


async def _make_changelog(view: View, config: Config) -> None:
    there = await partitions_of(view.client)
    if view.changelog not in there:
        await make_topics(view.client, {view.changelog: CHANGELOG}, view.partitions, config.replication_factor)
        there = await wait_for(view.client, {view.changelog: None})
    if there[view.changelog] != view.partitions:
        raise UserError(
            f"changelog {view.changelog!r} has {there[view.changelog]} partitions and {view.topic!r} has"
            f" {view.partitions}: give another group, or delete that topic"
        )


async def _examine(view: View, config: Config, digest: bytes) -> _Target:
    """Raises UserError for a group that holds streams already."""
    held = await view.held()
    which = LATEST if config.auto_offset_reset == "latest" else EARLIEST
    starts = await view.offsets_at(which, committed=True)
    committed, leftovers = [], []
    for of in held:
        begun_here = of.committed is not None and of.committed.metadata == IMPORTING
        if not begun_here:
            check_offset(view.group, of, digest)
        begin = of.committed.offset if of.committed is not None else starts[of.partition]
        restored = restore(await view.newest(of.partition, digest), digest)
        # Ends of streams harm nobody, unless they are from before the offset was set back or lost.
        ended = [key for key, a in restored.ended.items() if a >= begin]
        names = [*restored.keys, *(p.key for p in restored.problems), *ended]
        if names and not begun_here:
            raise UserError(
                f"group {view.group!r} has streams of {view.topic!r} already ({len(names)} in partition {of.partition},"
                f" {show_key(names[0])!r} among them): states are imported into a group without; give a new group"
            )
        committed.append(begin)
        leftovers.append(set(names))
    return _Target(committed, leftovers)


def check_offset(group: str, of: Held, digest: bytes) -> None:
    """Raises UserError for an offset that no import can begin at."""
    if of.committed is None:
        return
    where = f"partition {of.partition} of group {group!r}"
    if not of.log.start <= of.committed.offset <= of.log.end:
        raise UserError(f"{where} is at offset {of.committed.offset}, outside the log {of.log.start}..{of.log.end}")
    mark = of.mark
    if mark is None:
        return  # an offset that a tool has set says where to begin
    if mark.committed != of.committed.offset or mark.replay_from != mark.committed or mark.done_above:
        raise UserError(f"{where} is in use (C {mark.committed}, R {mark.replay_from}): give a new group")
    if mark.digest != digest:
        raise UserError(
            f"{where} was run by a model with {OTHER_ROWS} ({mark.digest.hex()}, these states are of {digest.hex()});"
            " give a new group"
        )


def _records(view: View, target: _Target, rows: Rows, digest: bytes) -> list[Records]:
    """New snapshots, by partition."""
    where = np.fromiter((partition_of(key, view.partitions) for key in rows.keys), np.int64, len(rows.keys))
    for key in rows.keys:
        if key in target.seen:
            raise UserError(
                f"stream {show_key(key)!r} is there twice: its records were written by different partitioners; end one"
                " of the two (`eddy state end`)"
            )
        target.seen.add(key)
    lot = []
    now_ms = int(time.time() * 1000)
    for partition in range(view.partitions):
        mine = np.flatnonzero(where == partition)
        keys = [rows.keys[i] for i in mine.tolist()]
        target.leftovers[partition].difference_update(keys)
        applied = np.full(len(keys), target.committed[partition] - 1, np.int64)
        records = _snapshots(keys, applied, rows.rows[mine]).records(digest, now_ms, rows.written_ms[mine])
        target.nbytes += records.value_bytes
        lot.append(records)
    return lot


def _snapshots(keys: list[bytes], applied: I64, rows: U8) -> Snapshots:
    return Snapshots.of(np.arange(len(keys), dtype=np.int64), keys, applied, rows)


def _parts(target: _Target, lot: list[Records], tags: Tags, digest: bytes | None) -> list[Part]:
    """``digest`` None: not the last."""
    parts = []
    for partition, snapshots in enumerate(lot):
        tag, committed = tags.next(), target.committed[partition]
        if digest is None:
            parts.append(Part(partition, tag, committed, IMPORTING, snapshots=snapshots))
            continue
        mark = Mark(tag, committed, committed, digest)
        whole = Records.join([snapshots, _tombstones(target.leftovers[partition])])
        parts.append(Part(partition, tag, committed, mark.encode(), snapshots=whole))
    return parts


def _tombstones(keys: Collection[bytes]) -> Records:
    nothing: list[bytes | None] = [None] * len(keys)
    return Records(sorted(keys), nothing, np.full(len(keys), int(time.time() * 1000), np.int64))
