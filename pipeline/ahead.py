"""Records that are dear to decode, worked on by threads before their poll is made: fetch -> here -> backlog -> admit.

A partition's records leave in their order, as soon as those before them are decoded; while none of them is dear, they
go through without a stop. Nothing of a stream is touched here, no slot and no row: whatever drops a partition's memory
(X4, X11) drops what is here with it, and what a thread still decodes for it is thrown away. Partitions take turns at
the threads, and none has all of them, so one with huge images keeps no other waiting (S3). What is decoded and waits
is bounded in bytes like every backlog.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from pipeline.codecs import AheadCodec
from pipeline.columns import RECORD_OVERHEAD, AnyArray, Segment
from pipeline.errors import RecordError
from pipeline.metrics import Metrics
from pipeline.partition import Memory

log = logging.getLogger(__name__)

Decoded = tuple[list[AnyArray | RecordError | None], float]
"""What became of each record of a piece, and the seconds it took."""
PIECE_RECORDS = 16
PIECE_BYTES = 65_536
"""Small records go to a thread together: handing over costs as much as decoding a tiny image."""


@dataclass(slots=True)
class _Piece:
    """What one thread decodes at a time: records of one partition, one after the other."""

    segment: Segment
    fetched_bytes: int
    nbytes: int
    """With its steps."""
    done: bool = False


@dataclass(slots=True)
class _Line:
    """One partition's records, as fetched, in order."""

    memory: Memory
    waiting: deque[Segment] = field(default_factory=deque)
    pieces: deque[_Piece] = field(default_factory=deque)
    """Given to threads, or back and behind one that is not."""
    running: int = 0


class Ahead:
    """See the module. On the event loop, but for the threads' own part.

    ``bound``: bytes that a partition's decoded records may take. ``ready`` is called when some have joined a backlog.
    Where decoding fails for a reason that need not lie in a record (memory is short), the records that a thread had in
    hand are tried once more, with nothing beside them; one that fails again then is a dead letter, as in X11.
    """

    def __init__(
        self,
        codec: AheadCodec,
        threads: int,
        record_bytes_max: int,
        metrics: Metrics,
        bound: Callable[[], int],
        ready: Callable[[], None],
    ) -> None:
        self._codec, self._threads, self._record_bytes_max = codec, threads, record_bytes_max
        self._metrics, self._bound, self._ready = metrics, bound, ready
        self._share = max(1, threads - 1)
        """Threads that one partition may have."""
        self._lines: dict[int, _Line] = {}
        """By partition, those that have anything here."""
        self._turns: dict[int, _Line] = {}
        """Those with records for the threads; the one whose turn it is first."""
        self._running = 0
        self._again: deque[tuple[_Line, _Piece]] = deque()
        """To be decoded with nothing beside them."""
        self._alone = False
        """One of those is being decoded."""
        self._halted = False
        self._pool: ThreadPoolExecutor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")

    def halt(self) -> None:
        """Nothing more is begun."""
        self._halted = True

    async def close(self) -> None:
        """Returns when the records that threads have in hand are done with."""
        self.halt()
        self._lines.clear()
        self._turns.clear()
        if self._pool is not None:
            await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)

    def offer(self, memory: Memory, segment: Segment) -> None:
        """Fetched records of a partition; they join its backlog when they are decoded. ``go`` is to follow."""
        line = self._lines.get(memory.partition)
        if line is not None and line.memory is not memory:
            line = None
        if line is None and not self._has_dear(segment):
            memory.offer(segment)
            return
        if line is None:
            line = self._lines[memory.partition] = _Line(memory)
        line.waiting.append(segment)
        memory.undecoded_bytes += segment.nbytes
        if self._turns.get(memory.partition) is not line:
            self._turns[memory.partition] = line

    def _has_dear(self, segment: Segment) -> bool:
        low = self._codec.ahead_from
        return not low or (segment.value_bytes >= low and any(len(v) >= low for v in segment.values if v is not None))

    def go(self) -> None:
        """Gives the threads what they may have now: something was fetched, decoded or taken into a poll."""
        self._again = deque((line, piece) for line, piece in self._again if not line.memory.closed)
        if self._again or self._alone:
            self._try_again()
            return
        # By turns, once around and again, until there is no thread, or no partition, that may have more.
        seen = 0
        while self._turns and seen < len(self._turns) and self._running < self._threads and not self._halted:
            partition = next(iter(self._turns))
            line = self._turns.pop(partition)
            if line.memory.closed:
                self._forget(line)
                continue
            given = self._give(line)
            if line.waiting:
                self._turns[partition] = line
            seen = 0 if given else seen + 1

    def _room(self, line: _Line) -> int:
        """Bytes that may be decoded on, with what is made of them."""
        return self._bound() - line.memory.backlog_bytes - sum(piece.nbytes for piece in line.pieces)

    def _give(self, line: _Line) -> bool:
        """The next records of this partition to a thread, if it may have them."""
        segment, room = line.waiting[0], self._room(line)
        needed = self._made(segment.values[0]) + RECORD_OVERHEAD if len(segment) else 0
        if line.running >= self._share or (needed > room and (line.pieces or line.memory.backlog_bytes)):
            return False
        line.waiting.popleft()
        if not len(segment):
            line.pieces.append(_Piece(segment, segment.nbytes, segment.nbytes, done=True))
            self._release(line)
            return True
        segment, rest = segment.cut(self._size(segment, room))
        if len(rest):
            line.waiting.appendleft(rest)
        piece = _Piece(segment, segment.nbytes, segment.nbytes + sum(self._made(v) for v in segment.values))
        line.pieces.append(piece)
        self._submit(line, piece, alone=False)
        return True

    def _made(self, value: bytes | None) -> int:
        return self._codec.ahead_bytes(len(value)) if value is not None else 0

    def _try_again(self) -> None:
        """Decodes the first of what failed; all else waits for it."""
        if not self._running and not self._halted:
            self._alone = True
            self._submit(*self._again.popleft(), alone=True)

    def _submit(self, line: _Line, piece: _Piece, *, alone: bool) -> None:
        assert self._pool is not None
        line.running += 1
        self._running += 1
        future = self._pool.submit(self._decode, line.memory, piece.segment, alone)
        future.add_done_callback(lambda f: self._come_back(line, piece, f))

    def _size(self, segment: Segment, room: int) -> int:
        """How many of its first records make a piece: at least one, and other threads have work, too."""
        idle = self._threads - self._running
        most = max(1, min(PIECE_RECORDS, -(-len(segment) // idle)))
        size = made = 0
        for n, value in enumerate(segment.values[:most]):
            size += len(value or b"")
            made += self._made(value) + RECORD_OVERHEAD
            if n and (size > PIECE_BYTES or made > room):
                return n
        return most

    # ---- on a thread

    def _decode(self, memory: Memory, segment: Segment, alone: bool) -> Decoded | None:
        """None when nobody wants it any more. Of what is no record to be decoded the intake says what becomes of it."""
        began = time.perf_counter()
        low = self._codec.ahead_from
        out: list[AnyArray | RecordError | None] = []
        for key, value in zip(segment.keys, segment.values):
            if self._halted or memory.closed:
                return None
            dear = key is not None and value is not None and low <= len(value) <= self._record_bytes_max
            out.append(self._attempt(value, alone) if dear and value is not None else None)
        return out, time.perf_counter() - began

    def _attempt(self, value: bytes, alone: bool) -> AnyArray | RecordError | None:
        try:
            return self._codec.attempt(value)
        except Exception as error:  # what it may be is known of no codec
            if not alone:
                raise
            return RecordError("decode", f"decoding failed on this record alone: {str(error) or type(error).__name__}")

    def _come_back(self, line: _Line, piece: _Piece, future: Future[Decoded | None]) -> None:
        """Still on the thread, or, cancelled, on the loop."""
        if not future.cancelled() and self._loop is not None:
            self._loop.call_soon_threadsafe(self._back, line, piece, future)

    # ---- on the loop again

    def _back(self, line: _Line, piece: _Piece, future: Future[Decoded | None]) -> None:
        line.running -= 1
        self._running -= 1
        self._alone = False
        error = future.exception()
        if error is not None:
            log.warning("decoding failed (%s); its records are tried again alone", str(error) or type(error).__name__)
            self._again.append((line, piece))
        elif (decoded := future.result()) is not None:
            piece.segment.ahead, seconds = decoded
            self._metrics.decoded(len(piece.segment), seconds)
            piece.done = True
            self._release(line)
        if line.memory.closed:
            self._forget(line)
        self.go()

    def _release(self, line: _Line) -> None:
        """What is decoded, and has nothing before it that is not, joins its backlog."""
        released = False
        while line.pieces and line.pieces[0].done and not line.memory.closed:
            piece = line.pieces.popleft()
            line.memory.undecoded_bytes -= piece.fetched_bytes
            line.memory.offer(piece.segment)
            released = True
        if not (line.pieces or line.waiting):
            self._forget(line)
        if released:
            self._ready()

    def _forget(self, line: _Line) -> None:
        if self._lines.get(line.memory.partition) is line:
            del self._lines[line.memory.partition]
