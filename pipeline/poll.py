"""One poll between its admission and its finish: columns of records, and what each partition has in it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.columns import I64, U8, Bools, Headers
from pipeline.engine import Run
from pipeline.errors import RecordError
from pipeline.mark import Progress
from pipeline.partition import Memory


@dataclass(slots=True)
class Share:
    """One partition's stretch of a poll: records ``a`` to ``b``, generated steps ``fed_a`` to ``fed_b``, and of the
    streams that are saved ``saved_a`` to ``saved_b``."""

    memory: Memory
    a: int
    b: int
    progress: Progress
    """Of the partition, once this poll is finished."""
    next_offset: int
    """Above all its records."""
    input_bytes: int
    """What its records take in memory, as counted into ``Memory.uncommitted_bytes``."""
    value_bytes: int = 0
    fetched_s: float = 0.0
    fed_a: int = 0
    fed_b: int = 0
    saved_a: int = 0
    saved_b: int = 0
    problem: str | None = None
    """Why its partition must stop (X10)."""

    @property
    def idle(self) -> bool:
        """Nothing of the partition runs in this poll: some of its streams are snapshotted."""
        return self.a == self.b and self.fed_a == self.fed_b


@dataclass(slots=True)
class Poll:
    """Columns of all records of a poll, those that cannot be served included."""

    shares: list[Share]
    keys: list[bytes]
    slots: I64
    """SCRATCH where a record belongs to no stream."""
    offsets: I64
    timestamps: I64
    headers: list[Headers] | None
    ended: Bools
    counts: I64
    failed: dict[int, tuple[RecordError, bytes | None, bytes | None]]
    """Dead letters: record -> why, its key, its value."""
    fed: I64
    """Slots of streams that feed themselves a step in this poll."""
    hidden: Bools | None
    """Records whose outputs are out since before the takeover; None where none is."""
    saved: I64
    """Slots to snapshot, partition by partition; none of a stream that this poll ends."""
    saves_all: bool
    """Those are all streams that this poll advances."""
    applied: I64
    """A of each of ``saved`` at the poll's end."""
    codec_rows: U8
    """The codec's memory of each of ``saved`` at the poll's end."""
    number: int
    """Polls are numbered in their order."""
    run: Run

    @property
    def steps(self) -> int:
        """Steps of the records, without generated ones."""
        return self.run.steps - len(self.fed)
