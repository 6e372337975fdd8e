"""The host tier: rows of streams that have no slot just now, in memory, and beyond a bound in a file.

It is a cache of what the changelog holds (what is put here is clean), so the file has no name and outlives nobody. Rows
are of one size: a matrix in memory and a mapped file of the same shape, each with its free numbers. A stream costs a
dictionary entry and three integers; keys never move, because they lead to a number, and the number to a place.

The file is mapped because that is quickest: 10,000 rows of 2 KiB in random order take 2 ms, by one system call each
13 to 27 ms, by SQLite 90 to 320 ms. Its blocks are allocated before they are mapped, so that a full disk is an error
here and no signal there.
"""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.columns import I64, U8
from pipeline.errors import ConfigError, TierFull

MEMORY_GROWTH = 1 << 20
FILE_GROWTH = 16 << 20
"""Bytes, at least, of rows that are numbered or allocated at a time; a quarter of what there is where that is more."""
SPILL = 4096
"""Rows, at most, that go to the file beyond what must go: finding the oldest looks at all."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NEVER = np.iinfo(np.int64).max
NONE: I64 = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Taken:
    """What the tier held of the keys it was asked for; columns of ``k`` streams."""

    found: I64
    """Which of the keys, int64 ``[k]``, ascending."""
    applied: I64
    rows: U8
    """``uint8 [k, row_bytes]``, a copy."""
    touched_ms: I64

    def __len__(self) -> int:
        return len(self.found)


class _Numbers:
    """Numbers from 0 up; those that are given back are handed out again first."""

    def __init__(self) -> None:
        self.total = 0
        self.free = 0
        self._stack = NONE.copy()

    def extend(self, total: int) -> None:
        """All below ``total`` exist."""
        new = total - self.total
        self._stack.resize(total, refcheck=False)
        # New ones lie below those in use lately, and come out ascending.
        self._stack[new : new + self.free] = self._stack[: self.free].copy()
        self._stack[:new] = np.arange(total - 1, self.total - 1, -1)
        self.total, self.free = total, self.free + new

    def take(self, n: int) -> I64:
        """``n`` of the free ones."""
        self.free -= n
        return self._stack[self.free : self.free + n][::-1].copy()

    def give(self, numbers: I64) -> None:
        self._stack[self.free : self.free + len(numbers)] = numbers
        self.free += len(numbers)


class _Rows:
    """Rows in memory, at most ``limit`` of them.

    Their addresses are reserved at once, and memory is taken as they are used: growing would copy gigabytes, or fill
    them with zeros, at a moment when others wait. Raises ConfigError where there is not so much.
    """

    def __init__(self, row_bytes: int, limit: int) -> None:
        self.row_bytes, self.limit = row_bytes, limit
        self.clear()

    @property
    def used(self) -> int:
        return self.numbers.total - self.numbers.free

    @property
    def nbytes(self) -> int:
        """Of the rows that were ever in use."""
        return self.numbers.total * self.row_bytes

    def reserve(self, n: int) -> None:
        """``n`` rows are free afterwards; no more than ``limit`` in all may be asked for."""
        total = self.numbers.total
        if n > self.numbers.free:
            least = total + n - self.numbers.free
            wanted = max(least, total + max(total // 4, MEMORY_GROWTH // max(self.row_bytes, 1)))
            self.numbers.extend(min(wanted, self.limit))

    def clear(self) -> None:
        """Gives all memory back; no row may be in use."""
        try:
            self.matrix: U8 = np.empty((self.limit, self.row_bytes), np.uint8)
        except MemoryError as error:
            raise ConfigError(
                f"host_bytes is {self.limit * self.row_bytes}: this machine does not have so much memory"
            ) from error
        self.numbers = _Numbers()


class _FileRows:
    """Rows in a file without a name in ``directory``, mapped."""

    def __init__(self, row_bytes: int, directory: Path) -> None:
        self.row_bytes = row_bytes
        self.numbers = _Numbers()
        self.matrix: U8 = np.empty((0, row_bytes), np.uint8)
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (open as long as the tier)
        except OSError as error:
            raise ConfigError(f"state_directory {directory} cannot be written to: {error.strerror}") from error

    @property
    def used(self) -> int:
        return self.numbers.total - self.numbers.free

    def reserve(self, n: int) -> None:
        """``n`` rows are free afterwards. Raises TierFull."""
        total = self.numbers.total
        if n > self.numbers.free:
            least = total + n - self.numbers.free
            self._extend(least, max(least, total + max(total // 4, FILE_GROWTH // max(self.row_bytes, 1))))

    def _extend(self, least: int, wanted: int) -> None:
        """Raises TierFull where not even ``least`` rows fit; then the file is as it was."""
        if not self._allocated(wanted):
            wanted = least
            if not self._allocated(least):
                missing = (least - self.numbers.total) * self.row_bytes
                raise TierFull(
                    f"{self._directory} is full: {self.used} streams without a slot are kept there in"
                    f" {self.matrix.nbytes} bytes, and {missing} more are needed; free some of that disk, raise"
                    " host_bytes, or name a larger disk as state_directory"
                )
        self.matrix = np.asarray(np.memmap(self._file, np.uint8, "r+", shape=(wanted, self.row_bytes)))
        self.numbers.extend(wanted)

    def _allocated(self, rows: int) -> bool:
        """Blocks for so many rows exist: writing to the mapped file cannot fail for want of room."""
        before = self.matrix.nbytes
        try:
            os.posix_fallocate(self._file.fileno(), before, rows * self.row_bytes - before)
        except OSError as error:
            if error.errno not in FULL:
                raise
            os.ftruncate(self._file.fileno(), before)
            return False
        return True

    def clear(self) -> None:
        """Gives the disk back; no row may be in use."""
        self.matrix, self.numbers = np.empty((0, self.row_bytes), np.uint8), _Numbers()
        os.ftruncate(self._file.fileno(), 0)

    def close(self) -> None:
        self.matrix = np.empty((0, self.row_bytes), np.uint8)
        self._file.close()


class Tier:
    """See the module. At most ``bytes_max`` bytes of rows in memory; ``directory`` None: no file.

    Every method takes the columns of one partition's streams. A call does all or, where it raises, nothing. Raises
    ConfigError where the directory cannot be written to.
    """

    def __init__(self, row_bytes: int, bytes_max: int, directory: Path | None) -> None:
        self.row_bytes = row_bytes
        self._memory = _Rows(row_bytes, bytes_max // max(row_bytes, 1))
        self._file = _FileRows(row_bytes, directory) if directory is not None else None
        self._streams: dict[int, dict[bytes, int]] = {}
        """Partition -> key -> number."""
        self._begin()
        self._nothing = Taken(NONE, NONE, np.empty((0, row_bytes), np.uint8), NONE)

    def _begin(self) -> None:
        self._numbers = _Numbers()
        self._place = NONE.copy()
        """By number: the row in memory, or minus one minus the row in the file."""
        self._applied = NONE.copy()
        self._touched = NONE.copy()
        self._tenant = NONE.copy()
        """By row in memory: the number it belongs to, or -1."""

    def __len__(self) -> int:
        """Streams in it."""
        return sum(map(len, self._streams.values()))

    def __contains__(self, stream: tuple[int, bytes]) -> bool:
        partition, key = stream
        return key in self._streams.get(partition, ())

    @property
    def nbytes(self) -> int:
        """Memory that it takes beside the keys, bytes."""
        columns = (self._tenant, self._place, self._applied, self._touched)
        return self._memory.nbytes + sum(int(column.nbytes) for column in columns)

    @property
    def file_bytes(self) -> int:
        """Disk that rows take, bytes."""
        return int(self._file.matrix.nbytes) if self._file is not None else 0

    @property
    def in_file(self) -> int:
        """Streams whose rows are in the file."""
        return self._file.used if self._file is not None else 0

    def count(self, partition: int) -> int:
        return len(self._streams.get(partition, ()))

    def keys(self, partition: int) -> list[bytes]:
        return list(self._streams.get(partition, ()))

    def idle(self, partition: int, before_ms: int) -> list[bytes]:
        """Keys of the streams that were last touched before ``before_ms``."""
        index = self._streams.get(partition)
        if not index:
            return []
        numbers = np.fromiter(index.values(), np.int64, len(index))
        old = np.flatnonzero(self._touched[numbers] < before_ms).tolist()
        if not old:
            return []
        keys = list(index)
        return [keys[i] for i in old]

    def put(self, partition: int, keys: list[bytes], applied: I64, rows: U8, touched_ms: I64) -> None:
        """Keeps rows, ``uint8 [n, row_bytes]``, of ``n`` distinct streams; those it has are overwritten.

        Raises TierFull where neither memory nor file has room for all.
        """
        if not keys:
            return
        index = self._streams.get(partition, {})
        numbers = _look_up(index, keys)
        known = numbers[numbers >= 0]
        ages = np.argsort(touched_ms, kind="stable")
        straight = max(0, len(keys) - self._memory.limit)
        old, young = ages[:straight], ages[straight:]
        self._make_room(len(young), straight, known)
        # Nothing below can fail.
        self._vacate(known)
        new = np.flatnonzero(numbers < 0)
        numbers[new] = self._numbers.take(len(new))
        index.update(zip([keys[i] for i in new.tolist()], numbers[new].tolist()))
        self._streams[partition] = index
        where = self._memory.numbers.take(len(young))
        self._memory.matrix[where] = rows[young]
        self._place[numbers[young]] = where
        self._tenant[where] = numbers[young]
        if straight:
            self._to_file(numbers[old], rows[old])
        self._applied[numbers] = applied
        self._touched[numbers] = touched_ms

    def take(self, partition: int, keys: list[bytes]) -> Taken:
        """Removes the streams it has of these keys, all distinct, and gives what it kept of them."""
        index = self._streams.get(partition)
        if index is None:
            return self._nothing
        numbers = _look_up(index, keys)
        taken = self._read(numbers)
        if len(taken):
            self._remove(partition, [keys[i] for i in taken.found.tolist()], numbers[taken.found])
        return taken

    def read(self, partition: int, keys: list[bytes]) -> Taken:
        """As ``take``, but keeps them."""
        index = self._streams.get(partition)
        return self._read(_look_up(index, keys)) if index is not None else self._nothing

    def forget(self, partition: int, keys: list[bytes]) -> None:
        """Removes the streams it has of these keys, all distinct."""
        index = self._streams.get(partition)
        if index is not None:
            known = [key for key in keys if key in index]
            self._remove(partition, known, _look_up(index, known))

    def drop(self, partition: int) -> None:
        """Removes all streams of a partition."""
        index = self._streams.pop(partition, None)
        if index is not None:
            numbers = np.fromiter(index.values(), np.int64, len(index))
            self._vacate(numbers)
            self._numbers.give(numbers)
        if not self._streams:
            self._begin()
            self._memory.clear()
            if self._file is not None:
                self._file.clear()

    def close(self) -> None:
        """Gives up file and memory; the tier is empty."""
        self._streams.clear()
        self._memory.matrix = self._nothing.rows
        if self._file is not None:
            self._file.close()

    def _make_room(self, young: int, straight: int, known: I64) -> None:
        """Room in memory for ``young`` rows beside those of others than ``known``, in the file for ``straight``."""
        mine = self._place[known]
        mine = mine[mine >= 0]
        others = self._memory.used - len(mine)
        over = max(0, others + young - self._memory.limit)
        if over or straight:
            if self._file is None:
                raise TierFull(
                    f"{len(self)} streams without a slot fill the {self._memory.limit * self.row_bytes} bytes that they"
                    " may take in memory (host_bytes); raise host_bytes or slots, or name a state_directory"
                )
            self._file.reserve(over + straight)
        self._memory.reserve(max(0, young - len(mine) - over))
        if self._numbers.free < young + straight - len(known):
            total = self._numbers.total + max(young + straight, self._numbers.total // 4)
            for column in (self._place, self._applied, self._touched):
                column.resize(total, refcheck=False)
            self._numbers.extend(total)
        if len(self._tenant) < self._memory.numbers.total:
            before = len(self._tenant)
            self._tenant.resize(self._memory.numbers.total, refcheck=False)
            self._tenant[before:] = -1
        if over and self._file is not None:
            more = min(SPILL, self._memory.limit // 16, others - over, self._file.numbers.free - straight - over)
            self._spill(over + more, mine)

    def _spill(self, n: int, but: I64) -> None:
        """The ``n`` rows in memory that were touched longest ago go to the file, none of the rows ``but``."""
        ages = np.where(self._tenant >= 0, self._touched[self._tenant], NEVER)
        ages[but] = NEVER
        oldest = np.argpartition(ages, n - 1)[:n]
        numbers = self._tenant[oldest]
        self._to_file(numbers, self._memory.matrix[oldest])
        self._tenant[oldest] = -1
        self._memory.numbers.give(oldest)

    def _to_file(self, numbers: I64, rows: U8) -> None:
        assert self._file is not None
        where = self._file.numbers.take(len(numbers))
        self._file.matrix[where] = rows
        self._place[numbers] = -1 - where

    def _read(self, numbers: I64) -> Taken:
        """``numbers``: -1 for what is not there."""
        found = np.flatnonzero(numbers >= 0)
        if not len(found):
            return self._nothing
        numbers = numbers[found]
        place = self._place[numbers]
        in_file = place < 0
        if self._file is None or not in_file.any():
            rows = self._memory.matrix[place]
        else:
            rows = np.empty((len(numbers), self.row_bytes), np.uint8)
            rows[in_file] = self._file.matrix[-1 - place[in_file]]
            rows[~in_file] = self._memory.matrix[place[~in_file]]
        return Taken(found, self._applied[numbers], rows, self._touched[numbers])

    def _remove(self, partition: int, keys: list[bytes], numbers: I64) -> None:
        index = self._streams[partition]
        for key in keys:
            del index[key]
        if not index:
            del self._streams[partition]
        self._vacate(numbers)
        self._numbers.give(numbers)

    def _vacate(self, numbers: I64) -> None:
        """Frees the rows of these streams."""
        place = self._place[numbers]
        in_memory = place[place >= 0]
        self._tenant[in_memory] = -1
        self._memory.numbers.give(in_memory)
        if self._file is not None:
            self._file.numbers.give(-1 - place[place < 0])


def _look_up(index: dict[bytes, int], keys: list[bytes]) -> I64:
    """Numbers of these keys; -1 where there is none."""
    at = index.get
    return np.array([at(key, -1) for key in keys], np.int64)
