"""Stream -> slot, and everything that is kept by slot beside the arena.

One ``Slots`` per worker. Columns are indexed by slot; slots below ``FIRST`` belong to the engine.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.columns import I64, U8, Bools
from pipeline.engine.graph import FIRST
from pipeline.errors import SlotsExhausted

CLEAN = 2**63 - 1
"""In ``Slots.dirty``: the stream's snapshot includes all that is done."""


class Index(dict[bytes, int]):
    """Stream key -> slot, of one partition. Looking up a key that is not there takes a free slot for it."""

    __slots__ = ("_partition", "_slots")

    def __init__(self, slots: Slots, partition: int) -> None:
        super().__init__()
        self._slots, self._partition = slots, partition

    def __missing__(self, key: bytes) -> int:
        slot = self[key] = self._slots.take(self._partition, key)
        return slot


class Slots:
    """See the module. ``codec`` and ``head``: the streams' bounded memories, ``uint8 [slots, bytes]``; zero is new.

    ``codec`` begins with the streams' own constants, of ``given_bytes``: ``given`` and ``codec_memory`` are its parts.
    """

    def __init__(self, slots: int, codec_bytes: int, head_bytes: int, given_bytes: int = 0) -> None:
        total = slots + FIRST
        self.total = slots
        self.codec: U8 = np.zeros((total, given_bytes + codec_bytes), np.uint8)
        self.given: U8 = self.codec[:, :given_bytes]
        self.codec_memory: U8 = self.codec[:, given_bytes:]
        self.head: U8 = np.zeros((total, head_bytes), np.uint8)
        self.keys: list[bytes] = [b""] * total
        self.partition: I64 = np.full(total, -1, np.int64)
        self.applied: I64 = np.full(total, -1, np.int64)
        """Offset of the last record applied."""
        self.serial: I64 = np.zeros(total, np.int64)
        """Which stream this is: every stream that takes a slot gets the next number. Tells a slot's tenants apart."""
        self.fresh: Bools = np.zeros(total, np.bool_)
        """The next call of the engine gives the stream its initial state."""
        self.busy: Bools = np.zeros(total, np.bool_)
        """A prompt or a generated step is in flight, or the next one is due: the stream's next record waits."""
        self.ending: Bools = np.zeros(total, np.bool_)
        """A record that ends the stream is in flight."""
        self.dirty: I64 = np.full(total, CLEAN, np.int64)
        """First done record that no finished snapshot of the stream includes; CLEAN where there is none."""
        self.saving: Bools = np.zeros(total, np.bool_)
        """A snapshot of it is in flight."""
        self.poll: I64 = np.zeros(total, np.int64)
        """Number of the last poll that has the stream's row in it."""
        self.finished = 0
        """Number of the last poll that is finished: rows of later ones are in flight."""
        self.touched_ms: I64 = np.zeros(total, np.int64)
        """When a record was last applied, milliseconds since the epoch."""
        self._free = list(range(total - 1, FIRST - 1, -1))
        self.serials = 0
        """Streams that took a slot, ever."""

    @property
    def used(self) -> int:
        """Slots taken."""
        return self.total - len(self._free)

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, partition: int, key: bytes) -> int:
        """A slot for a new stream. Raises SlotsExhausted."""
        if not self._free:
            raise SlotsExhausted(f"all {self.total} slots are taken; raise slots (--slots, EDDY_SLOTS)")
        slot = self._free.pop()
        self.serials += 1
        self.keys[slot] = key
        self.serial[slot] = self.serials
        self._begin(slot, partition)
        return slot

    def take_all(self, index: Index, partition: int, keys: list[bytes]) -> I64:
        """Slots for new streams, all distinct and no more than are free; what ``take`` does for each, by column."""
        n = len(keys)
        slots = self._free[len(self._free) - n :][::-1]
        del self._free[len(self._free) - n :]
        where = np.array(slots, np.int64)
        for slot, key in zip(slots, keys):
            self.keys[slot] = key
        index.update(zip(keys, slots))
        self.serial[where] = np.arange(self.serials + 1, self.serials + n + 1)
        self.serials += n
        self._begin(where, partition)
        return where

    def _begin(self, slot: int | I64, partition: int) -> None:
        self.partition[slot] = partition
        self.applied[slot] = -1
        self.fresh[slot] = True
        self.busy[slot] = False
        self.ending[slot] = False
        self.saving[slot] = False
        self.dirty[slot] = CLEAN
        self.poll[slot] = 0
        self.codec[slot] = 0
        self.head[slot] = 0

    def release(self, slots: Iterator[int] | list[int]) -> None:
        """Gives slots back. Only when no run that has them is in flight (X11)."""
        for slot in slots:
            self.keys[slot] = b""
            self.partition[slot] = -1
            self.dirty[slot] = CLEAN  # nobody's: no snapshot is due of it
            self._free.append(slot)

    def lookup(self, index: Index, keys: list[bytes]) -> I64:
        """Slots of these streams, new ones included; when the slots run out, only of those that come first."""
        try:
            return np.fromiter(map(index.__getitem__, keys), np.int64, len(keys))
        except SlotsExhausted:
            known = []
            for key in keys:
                slot = index.get(key)
                if slot is None:
                    break
                known.append(slot)
            return np.array(known, np.int64)
