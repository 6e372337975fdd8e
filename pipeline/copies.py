"""Local copies of changelog partitions (X14): of what this worker owns, and of what it is a standby for.

A takeover reads the copy, and of the changelog only what came after it. From then on the copy gets what is committed
here; a standby's gets what the others commit. It is a cache: where one cannot be kept, all goes on without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.columns import Changelog, Part
from pipeline.errors import CommitError, LocalCopyFailed, TakeoverError
from pipeline.metrics import Metrics
from pipeline.reading import Reading
from pipeline.shelf import Shelf
from pipeline.streams.local_copy import LocalCopy
from pipeline.streams.snapshots import Newest
from pipeline.transport.base import Transport, Written

log = logging.getLogger(__name__)

TEND_S = 5.0
ROOM_BYTES = 1 << 30
"""Addresses for what a copy may hold are reserved at once up to here; beyond, as it turns out to be needed."""
CONFIRM_S = 3600.0
"""What has heard of no commit for so long asks the changelog whether there was none."""

Result = TypeVar("Result")


@dataclass(slots=True)
class _Kept:
    """One open copy."""

    copy: LocalCopy
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Its file is read or rewritten by one at a time; appending goes on beside a rewriting."""
    known: bool = False
    """It has been read, so that its end is known."""
    in_step: bool = False
    """It has all that is committed: what is committed next may be appended."""
    missed: bool = False
    """Something was committed that nobody told it of."""
    gone: bool = False
    """To be closed when the turn is over."""
    waiting: list[Changelog] | None = None
    """Commits that are heard of while it is brought into step."""
    catching_up: asyncio.Task[None] | None = None
    confirmed_s: float = 0.0


class Copies:
    """See the module. ``directory`` None: there are none, and everything is read from the changelog."""

    def __init__(self, directory: Path | None, group: str, topic: str, transport: Transport, metrics: Metrics) -> None:
        self._shelf = Shelf(directory, group, topic, transport, metrics, lambda: asyncio.get_running_loop().time())
        self._transport, self._metrics = transport, metrics
        self._kept: dict[int, _Kept] = {}
        self._owned: frozenset[int] = frozenset()
        self._standby: frozenset[int] = frozenset()
        self._catching_up: set[asyncio.Task[None]] = set()
        self._loading = asyncio.Lock()
        """One partition after the other: together none would run before the last."""

    # ---- what a takeover reads

    async def restore(self, partition: int, row_bytes: int) -> Newest:
        """The newest of every key in the changelog, to the high watermark (X8); what a copy holds comes from there.

        Raises what ``Transport.changelog`` raises."""
        kept = await self._open(partition)
        if kept is None:
            newest = Newest(row_bytes)
            with self._reading(partition, newest) as reading:
                async for stretch in self._transport.changelog(partition):
                    reading.add(stretch)
            return newest
        await self._stop_catching_up(kept)
        async with self._turn(kept):
            if self._is(partition, kept):
                found = await self._read(partition, kept, row_bytes)
                if found is not None:
                    return found
        return await self.restore(partition, row_bytes)

    async def _read(self, partition: int, kept: _Kept, row_bytes: int) -> Newest | None:
        """None: the copy was void or is lost; to be read again."""
        newest = Newest(row_bytes, min(kept.copy.nbytes, ROOM_BYTES))
        with self._reading(partition, newest) as reading:
            return newest if await self._read_into(partition, kept, newest, reading) else None

    def _reading(self, partition: int, newest: Newest) -> Reading:
        return Reading(partition, newest, self._metrics, asyncio.get_running_loop().time)

    async def _read_into(self, partition: int, kept: _Kept, newest: Newest, reading: Reading) -> bool:
        """False: see ``_read``."""
        began, began_ms = time.perf_counter(), _now_ms()
        kept.in_step = False
        try:
            self._shelf.renew(partition, kept.copy, began_ms)
            async with self._loading:
                await on_a_thread(lambda: _load(kept.copy, reading))
        except LocalCopyFailed as error:
            self._failed(partition, error)
            return False
        kept.known, start = True, kept.copy.next_offset
        if len(newest):
            log.info(
                "partition %d: %d streams from the local copy up to offset %d of the changelog, in %.0f ms",
                *(partition, len(newest), start, (time.perf_counter() - began) * 1e3),
            )
        try:
            async for stretch in self._transport.changelog(partition, start):
                reading.add(stretch)
                self._append(partition, kept, stretch)
        except TakeoverError as error:
            if not start:
                raise
            # It is longer than the log, or the log is damaged behind it: what the log itself says counts.
            self._begin_anew(partition, kept, str(error))
            return False
        self._confirm(partition, kept, began_ms)
        return True

    # ---- what is committed

    def assigned(self, partitions: Collection[int]) -> None:
        """These are this worker's now; copies of others, but those it stands by for, are let go."""
        self._owned = frozenset(partitions)
        self._let_go()

    def saved(self, part: Part, written: Written | None) -> None:
        """A part of an owned partition is committed, and its snapshots are ``written`` there; None: nobody knows."""
        partition, snapshots = part.partition, part.snapshots
        kept = self._kept.get(partition)
        if kept is None:
            return
        if not len(snapshots):
            if kept.in_step:
                self._confirm(partition, kept, part.frozen_ms)
        elif written is None:
            kept.in_step, kept.missed = False, True  # ``tend`` reads it from the changelog
        elif written.first >= kept.copy.next_offset:  # else a takeover that began since then has read it
            keys = [key for key in snapshots.keys if key is not None]
            stretch = Changelog(keys, snapshots.values, np.arange(written.first, written.next), written.next)
            if kept.in_step:
                self._append(partition, kept, stretch)
                self._confirm(partition, kept, part.frozen_ms)
            elif kept.waiting is not None:
                kept.waiting.append(stretch)

    # ---- standbys

    async def stand_by(self, partitions: Collection[int]) -> dict[int, int]:
        """From now on copies of these are kept; by partition, where its changelog is to be followed from."""
        self._standby = frozenset(partitions)
        self._let_go()
        positions = {}
        for partition in sorted(self._standby - self._owned):
            kept = await self._open(partition)
            if kept is not None:
                await self._know(partition, kept)
                if self._is(partition, kept):
                    positions[partition] = kept.copy.next_offset
        return positions

    def followed(self, partition: int, stretch: Changelog) -> None:
        """A stretch of the changelog of a partition that this worker stands by for; it may be the news that there is
        nothing new."""
        kept = self._kept.get(partition)
        if kept is not None and partition not in self._owned:
            if stretch.next_offset > kept.copy.next_offset:
                self._append(partition, kept, stretch)
            if stretch.whole_ms:
                self._confirm(partition, kept, stretch.whole_ms)

    def void(self, partition: int, why: str) -> None:
        """The copy of a partition that this worker stands by for is of a log that is gone."""
        kept = self._kept.get(partition)
        if kept is not None and partition not in self._owned:
            self._begin_anew(partition, kept, why)

    # ---- upkeep

    async def tend(self) -> None:
        """For as long as it may: opens what another process had, catches up where commits were missed, drops what is
        superseded."""
        while True:
            for task in [t for t in self._catching_up if t.done()]:
                self._catching_up.discard(task)
                if not task.cancelled():
                    task.result()
            now_s = asyncio.get_running_loop().time()
            for partition in sorted(self._owned):
                kept = self._kept.get(partition)
                behind = kept is None or not kept.in_step or now_s - kept.confirmed_s > CONFIRM_S
                if behind and (kept is None or (kept.catching_up is None and not kept.turn.locked())):
                    await self._catch_up(partition)
            for partition, kept in list(self._kept.items()):
                if self._is(partition, kept) and kept.copy.due and not kept.turn.locked():
                    await self._rewrite(partition, kept)
            self._metrics.local_copies(len(self._kept), sum(k.copy.nbytes for k in self._kept.values()))
            await asyncio.sleep(TEND_S)

    async def close(self) -> None:
        """Lets go of all."""
        for partition in list(self._kept):
            await self._stop_catching_up(self._kept[partition])
            self._drop(partition)

    async def _open(self, partition: int) -> _Kept | None:
        """None where there can be none now."""
        if not await self._shelf.usable():
            return None
        kept = self._kept.get(partition)
        if kept is None and (copy := self._shelf.open(partition, _now_ms())) is not None:
            kept = self._kept[partition] = _Kept(copy)
        return kept

    async def _know(self, partition: int, kept: _Kept) -> None:
        async with self._turn(kept):
            if kept.known or not self._is(partition, kept):
                return
            try:
                self._shelf.renew(partition, kept.copy, _now_ms())
                await on_a_thread(lambda: _run_out(kept.copy.read()))
            except LocalCopyFailed as error:
                self._failed(partition, error)
            kept.known = True

    def _is(self, partition: int, kept: _Kept) -> bool:
        """Still this one."""
        return self._kept.get(partition) is kept

    @contextlib.asynccontextmanager
    async def _turn(self, kept: _Kept) -> AsyncIterator[None]:
        """Alone with its file; one that was dropped meanwhile is closed afterwards."""
        try:
            async with kept.turn:
                yield
        finally:
            if kept.gone and not kept.turn.locked():
                kept.copy.close()

    async def _catch_up(self, partition: int) -> None:
        kept = await self._open(partition)
        if kept is not None:
            kept.catching_up = asyncio.create_task(self._bring_into_step(partition, kept), name=f"copy-{partition}")
            self._catching_up.add(kept.catching_up)

    async def _bring_into_step(self, partition: int, kept: _Kept) -> None:
        """Reads on in the changelog, and what is committed meanwhile waits."""
        kept.in_step, kept.missed, kept.waiting = False, False, []
        try:
            await self._know(partition, kept)
            async with self._turn(kept):
                began_ms = _now_ms()
                self._shelf.renew(partition, kept.copy, began_ms)
                async for stretch in self._transport.changelog(partition, kept.copy.next_offset):
                    self._append(partition, kept, stretch)
                for stretch in kept.waiting:
                    if stretch.next_offset > kept.copy.next_offset:
                        self._append(partition, kept, stretch)
            if not kept.missed:
                self._confirm(partition, kept, began_ms)
        except CommitError as error:
            log.info("partition %d: the local copy is not in step yet: %s", partition, error)
        except TakeoverError as error:
            self._begin_anew(partition, kept, str(error))
        except LocalCopyFailed as error:
            self._failed(partition, error)
        finally:
            kept.waiting = kept.catching_up = None

    async def _stop_catching_up(self, kept: _Kept) -> None:
        if kept.catching_up is not None:
            kept.catching_up.cancel()
            await asyncio.wait([kept.catching_up])

    async def _rewrite(self, partition: int, kept: _Kept) -> None:
        async with self._turn(kept):
            try:
                rewritten = await on_a_thread(kept.copy.rewrite)
            except LocalCopyFailed as error:
                self._metrics.error(error)
                log.warning("partition %d: %s", partition, error)
                return
            if not self._is(partition, kept):
                rewritten.file.close()
                return
            try:
                kept.copy.adopt(rewritten)
            except LocalCopyFailed as error:
                self._failed(partition, error)

    def _append(self, partition: int, kept: _Kept, stretch: Changelog) -> None:
        if self._is(partition, kept):
            try:
                kept.copy.append(stretch)
            except LocalCopyFailed as error:
                self._failed(partition, error)

    def _confirm(self, partition: int, kept: _Kept, whole_ms: int) -> None:
        """It has all there was at ``whole_ms``; that may be long ago if this process stood still."""
        if not self._is(partition, kept):
            return
        kept.in_step = True
        kept.confirmed_s = asyncio.get_running_loop().time()
        try:
            kept.copy.whole(whole_ms)
        except LocalCopyFailed as error:
            self._failed(partition, error)

    def _begin_anew(self, partition: int, kept: _Kept, why: str) -> None:
        if not self._is(partition, kept):
            return
        log.warning("partition %d: the local copy is void: %s", partition, why)
        kept.in_step = False
        try:
            kept.copy.reset(_now_ms())
        except LocalCopyFailed as error:
            self._failed(partition, error)

    def _failed(self, partition: int, error: LocalCopyFailed) -> None:
        self._shelf.failed(partition, error)
        self._drop(partition)

    def _let_go(self) -> None:
        for partition in self._kept.keys() - self._owned - self._standby:
            self._drop(partition)

    def _drop(self, partition: int) -> None:
        kept = self._kept.pop(partition, None)
        if kept is None:
            return
        if kept.catching_up is not None:
            kept.catching_up.cancel()
        if kept.turn.locked():
            kept.gone = True  # a thread reads it
        else:
            kept.copy.close()


def _now_ms() -> int:
    return int(time.time() * 1000)


def _load(copy: LocalCopy, reading: Reading) -> None:
    for stretch in copy.read():
        reading.add(stretch)


def _run_out(stretches: Iterable[Changelog]) -> None:
    for _ in stretches:
        pass


async def on_a_thread(call: Callable[[], Result]) -> Result:
    """Not before it is done does a cancellation come through: nobody else must touch what it works on."""
    future = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
