"""A local copy of one changelog partition (X14): committed records, so that a restart here reads only the tail.

One file a partition, held by one process (flock)::

    magic, 8 bytes | version u32 | length u32 and CRC-32 u32 of what follows | JSON: group, topic, topic id, partition,
    and a seed drawn for this file | blocks

Nothing is synced. What a crash tears, or a power loss leaves out, fails its checksum or does not begin where the block
before it left off; the file is cut there, and the changelog is read on from there. A block of an earlier life of the
file has another seed. Every record is a fact of a log that only forgets: a copy can be too short, but not wrong.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from pipeline.columns import Changelog
from pipeline.errors import Broken, LocalCopyFailed
from pipeline.streams.blocks import BLOCK_BYTES, Block, Group, grouped, merged, read_blocks, write_all, write_blocks

log = logging.getLogger(__name__)

MAGIC = b"eddycopy"
VERSION = 1
HEAD = struct.Struct("<8sIII")
SLACK_BYTES = 16 << 20
"""A file grows by so much at least before it is rewritten."""
REWRITING = ".new"
NOTE_MS = 60_000
AHEAD_MS = 60_000
"""A file from further in the future than this is of a clock that was set back, and has no age."""


@dataclass(frozen=True, slots=True)
class Source:
    """Which changelog partition a file is a copy of."""

    group: str
    topic: str
    topic_id: bytes
    """Of 16 bytes: a topic that was made anew under its name has another one."""
    partition: int


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A file without what was superseded, not yet in its place."""

    file: FileIO
    seed: int
    size: int
    stands_for: int
    """Bytes of the old file."""


class LocalCopy:
    """See the module. ``open`` it, ``read`` it to its end, then ``append``.

    LocalCopyFailed: the file is closed and removed, the worker goes on without it, and nothing is lost but time at the
    next restart.
    """

    def __init__(self, path: Path, source: Source, file: FileIO, now_ms: int) -> None:
        """Use ``open``; ``file`` is locked."""
        self._path, self._source, self._file = path, source, file
        self._whole_ms = os.fstat(file.fileno()).st_mtime_ns // 1_000_000
        """When it was known to be all of the changelog, or to be read from its begin."""
        self._noted_ms = self._whole_ms
        """What the file says of that."""
        found = _head_of(file, source)
        self._seed, self._begin = found or (0, 0)
        self._end = os.fstat(file.fileno()).st_size
        self._limit = 0
        self._was_read = False
        self.next_offset = 0
        """Where the changelog is to be read on from; known once ``read`` came to its end."""
        if found is None:
            self.reset(now_ms)

    @staticmethod
    def open(directory: Path, source: Source, now_ms: int) -> LocalCopy | None:
        """The copy as it was left, or an empty one where there is none of this very changelog.

        None where another process has it. Raises LocalCopyFailed.
        """
        path = directory / f"{source.topic}-{source.partition}.copy"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            file = _locked(path)
            return LocalCopy(path, source, file, now_ms) if file is not None else None
        except OSError as error:
            raise LocalCopyFailed(_cannot(path, "opened", error)) from error

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self._end

    @property
    def due(self) -> bool:
        """Superseded records may be more than half of it: time to ``rewrite``."""
        return self._was_read and self._end > self._limit

    def expired(self, now_ms: int, delete_retention_ms: int) -> bool:
        """Too long ago that it was all of the changelog (X14): a tombstone that it has not seen may be gone from there.

        Also of one that is open: its process may have stood still.
        """
        age = now_ms - self._whole_ms
        return age > delete_retention_ms // 2 or age < -AHEAD_MS

    def whole(self, at_ms: int) -> None:
        """The changelog had nothing more than this at that time; the file notes it once a minute, and when it is
        written to. Raises LocalCopyFailed."""
        self._whole_ms = max(self._whole_ms, at_ms)
        if self._whole_ms - self._noted_ms > NOTE_MS:
            self._note()

    def _note(self) -> None:
        """Also after every writing, which has made the file look younger than what it holds."""
        try:
            os.utime(self._file.fileno(), ns=(self._whole_ms * 1_000_000, self._whole_ms * 1_000_000))
        except OSError as error:
            raise self._failed("written", error) from error
        self._noted_ms = self._whole_ms

    def read(self) -> Iterator[Changelog]:
        """All it has, in order; then ``next_offset`` is known, and what follows the last whole block is cut off.

        Raises LocalCopyFailed where it cannot be."""
        position, self.next_offset = self._begin, 0
        for block in read_blocks(self._file.fileno(), position, self._end, self._seed):
            yield Changelog(block.keys(), block.values(), block.offsets(), block.next)
            position, self.next_offset = block.end, block.next
        if position < self._end:
            log.info("%s is cut at byte %d of %d: no whole block follows", self._path, position, self._end)
            try:
                self._file.truncate(position)
            except OSError as error:
                raise self._failed("cut", error) from error
            self._end = position
            self._note()
        self._limit, self._was_read = position + SLACK_BYTES, True

    def append(self, stretch: Changelog) -> None:
        """Adds committed records from ``next_offset`` on. Raises LocalCopyFailed (a full disk).

        Of a key that is in the stretch more than once only the last record is kept, as the changelog itself may do.
        """
        if not self._was_read:
            raise Broken(f"{self._path}: append before its end is known")
        first = int(stretch.offsets[0]) if len(stretch.keys) else stretch.next_offset
        if first < self.next_offset:
            raise Broken(f"{self._path}: records from offset {first} on, it has those before {self.next_offset}")
        try:
            groups = grouped(stretch) if len(stretch.keys) else []
            self._end = write_blocks(self._file, self._end, self._seed, groups, self.next_offset, stretch.next_offset)
        except OSError as error:
            raise self._failed("written", error) from error
        self.next_offset = stretch.next_offset
        self._note()

    def reset(self, now_ms: int) -> None:
        """Begins anew, with nothing; what it gets is read after ``now_ms``. Raises LocalCopyFailed."""
        self._seed = secrets.randbits(32)
        try:
            self._file.truncate(0)
            self._begin = self._end = _begin(self._file, self._source, self._seed)
        except OSError as error:
            raise self._failed("written", error) from error
        self._limit, self._was_read, self.next_offset = self._end + SLACK_BYTES, True, 0
        self._whole_ms = now_ms
        self._note()

    def rewrite(self) -> Rewritten:
        """A file without what is superseded, for ``adopt``. May run on a thread, beside ``append``.

        Raises LocalCopyFailed; then this copy is as it was, and not due until it has doubled.
        """
        end, seed = self._end, self._seed
        path = self._path.with_suffix(REWRITING)
        old = os.dup(self._file.fileno())  # whatever becomes of the file meanwhile
        try:
            path.unlink(missing_ok=True)
            file = _locked(path)
            if file is None:
                raise Broken(f"{path} is held by a process that does not hold {self._path}")
            try:
                return Rewritten(file, seed, _rewrite(old, self._begin, end, file, self._source, seed), end)
            except BaseException:
                file.close()
                raise
        except OSError as error:
            self._limit = 2 * end
            path.unlink(missing_ok=True)
            raise LocalCopyFailed(_cannot(self._path, "rewritten", error)) from error
        finally:
            os.close(old)

    def adopt(self, rewritten: Rewritten) -> None:
        """Puts a rewritten file, and what was appended meanwhile, in this one's place. Raises LocalCopyFailed."""
        path = self._path.with_suffix(REWRITING)
        if rewritten.seed != self._seed:  # reset meanwhile
            rewritten.file.close()
            path.unlink()
            return
        old, self._file = self._file, rewritten.file
        try:
            size = rewritten.size
            for at in range(rewritten.stands_for, self._end, BLOCK_BYTES):
                piece = os.pread(old.fileno(), min(BLOCK_BYTES, self._end - at), at)
                size = write_all(self._file, size, [memoryview(piece)])
            os.replace(path, self._path)
        except OSError as error:
            raise self._failed("rewritten", error) from error
        finally:
            old.close()
        self._end, self._limit = size, max(2 * rewritten.size, rewritten.size + SLACK_BYTES)
        self._note()

    def close(self) -> None:
        """Lets another process have it."""
        self._file.close()

    def _failed(self, done: str, error: OSError) -> LocalCopyFailed:
        """The file goes: it gives its room back, and misleads nobody."""
        self._path.unlink(missing_ok=True)
        self._path.with_suffix(REWRITING).unlink(missing_ok=True)
        self._file.close()
        return LocalCopyFailed(_cannot(self._path, done, error))


def _cannot(path: Path, done: str, error: OSError) -> str:
    return (
        f"the local copy {path} cannot be {done}: {error.strerror}; until that is mended, the next takeover on this"
        " machine reads the whole changelog (free some of that disk, or name another state_directory)"
    )


def _locked(path: Path) -> FileIO | None:
    """Opened, made where there is none, and locked; None where another process has it."""
    while True:
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()  # it was replaced or removed before it was locked: nobody's


def _begin(file: FileIO, source: Source, seed: int) -> int:
    """Writes the file's head; where the first block goes."""
    told = {**asdict(source), "topic_id": source.topic_id.hex(), "seed": f"{seed:08x}"}
    body = json.dumps(told, sort_keys=True).encode()
    return write_all(file, 0, [memoryview(HEAD.pack(MAGIC, VERSION, len(body), zlib.crc32(body)) + body)])


def _head_of(file: FileIO, source: Source) -> tuple[int, int] | None:
    """Seed, and where the first block is; None where it is no whole copy of this source in this version."""
    head = os.pread(file.fileno(), HEAD.size, 0)
    if len(head) < HEAD.size:
        return None
    magic, version, length, checksum = HEAD.unpack(head)
    body = os.pread(file.fileno(), length, HEAD.size) if (magic, version) == (MAGIC, VERSION) else b""
    if not body or zlib.crc32(body) != checksum:
        return None
    told = json.loads(body)
    seed = int(told.pop("seed"), 16)
    return (seed, HEAD.size + length) if told == {**asdict(source), "topic_id": source.topic_id.hex()} else None


def _rewrite(old: int, begin: int, end: int, file: FileIO, source: Source, seed: int) -> int:
    """Writes what is newest of ``old`` between ``begin`` and ``end`` to ``file``; its size."""
    newest: dict[bytes, int] = {}
    rows = 0
    for block in _all_blocks(old, begin, end, seed):
        newest.update(zip(block.keys(), range(rows, rows + block.n)))
        rows += block.n
    live = np.sort(np.fromiter(newest.values(), np.int64, len(newest)))
    size, start, rows = _begin(file, source, seed), 0, 0
    waiting: list[Group] = []
    for block in _all_blocks(old, begin, end, seed):
        lo, hi = np.searchsorted(live, (rows, rows + block.n)).tolist()
        if lo < hi:
            waiting.append(block.group(live[lo:hi] - rows))
        rows += block.n
        if sum(group.nbytes for group in waiting) >= BLOCK_BYTES or block.end == end:
            size = write_blocks(file, size, seed, merged(waiting), start, block.next)
            start, waiting = block.next, []
    return size


def _all_blocks(fd: int, begin: int, end: int, seed: int) -> Iterator[Block]:
    """Raises OSError where not all are whole."""
    position = begin
    for block in read_blocks(fd, begin, end, seed):
        yield block
        position = block.end
    if position != end:
        raise OSError(errno.EIO, f"a damaged block at byte {position} of {end}")
