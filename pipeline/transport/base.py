"""What a transport is: a group member that reads in columns, and one transactional writer (a lane).

The worker holds one transport. Everything with a partition number speaks of the input topic; output, dead letters and
changelog have as many partitions, and what belongs to input partition ``p`` is written to their partition ``p``.
All methods are called on one event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.columns import Changelog, Committed, Membership, Part, Segment
from pipeline.errors import TakeoverError


class AssignmentListener(Protocol):
    """Told of rebalances; eager: everything is revoked, then the new assignment is given whole."""

    async def on_revoked(self, partitions: Collection[int]) -> None:
        """Partitions are about to be given up. Heartbeats stand still until this returns: be quick (< 2 s)."""

    def on_assigned(self, membership: Membership, partitions: Collection[int]) -> None:
        """These partitions, all paused, are this member's under ``membership`` (X1: keep the two together)."""

    def on_trouble(self, partition: int, error: TakeoverError) -> None:
        """This partition cannot be fetched; it is paused, and the others go on. The error says what to do.

        It may be one that was never assigned: the input has grown, and what its records lead to has not. Nothing of
        it is consumed, and this is said once.
        """

    def on_lost(self, reason: Exception) -> None:
        """The transport can go on no longer (fenced for good, or its loop failed); the worker must end."""


@dataclass(frozen=True, slots=True)
class LogRange:
    """First offset that exists and the one after the last, of an input partition."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class GroupMember:
    """One member of the consumer group."""

    name: str
    """Its group instance id, which is a worker's id; the member id where it has none."""
    member_id: str
    client_id: str
    host: str
    partitions: tuple[int, ...]
    """Of the input; none while the group rebalances."""


@dataclass(frozen=True, slots=True)
class Written:
    """Where a part's snapshots lie in the changelog: offsets ``first`` to ``next``, without ``next``, in their order.

    The transaction's marker follows: who reads on from ``next`` gets over it.
    """

    first: int
    next: int


class Transport(Protocol):
    """See the module. A fresh object is not connected; ``start`` once, ``stop`` once.

    Time limits are the transport's own (``request_timeout_ms``): no method hangs for ever.
    """

    @property
    def name(self) -> str:
        """What the closing line of the demo calls it: ``kafka`` or ``memory``."""

    @property
    def partitions(self) -> int:
        """Number of partitions of the input topic; known after ``start``."""

    @property
    def changelog_id(self) -> bytes:
        """The changelog's topic id, 16 bytes, known after ``start``: another topic of that name has another one (X14).
        Zeros where the cluster has none."""

    @property
    def input_id(self) -> bytes:
        """The input's, likewise: an offset of one is none of another (X10)."""

    async def topic_ids(self) -> tuple[bytes, bytes]:
        """Those of changelog and input as they are when this is asked, which may be others by now; zeros where there is
        none. Raises CommitError past the time limit."""

    async def changelog_retention_ms(self) -> int:
        """How long the changelog keeps tombstones (delete.retention.ms); 0 where the cluster does not tell us. Raises
        CommitError past the time limit."""

    async def input_retention_ms(self) -> int:
        """How long the input keeps its records (retention.ms); 0 where it is for ever or the cluster does not tell us.
        Raises CommitError past the time limit."""

    async def start(self, listener: AssignmentListener) -> None:
        """Connects, checks the topics, makes changelog and dead letters, settles the writer, joins the group.

        Raises TopicError (input or output missing, output with another number of partitions), Unreachable.
        """

    async def fetch(self, timeout_s: float, *, unhurried: bool = False) -> list[Segment]:
        """Everything fetched since the last call, of all partitions that are not paused; waits for the first.

        ``unhurried``: the caller has little to do, so what comes may wait for the end of the transaction that runs,
        before which it cannot become visible (S2).

        Returns [] after ``timeout_s`` seconds. A segment holds only records at or after the partition's position
        (``seek``), in order, read committed, of the present assignment; what an older assignment had fetched is
        discarded. At most one segment a partition. A stretch without records for us gives a segment of length 0
        whose ``next_offset`` moved.
        """

    def pause(self, partitions: Collection[int]) -> None: ...

    def resume(self, partitions: Collection[int]) -> None: ...

    def seek(self, partition: int, offset: int) -> None:
        """The next fetch of ``partition`` begins at ``offset``."""

    async def stable_offsets(self, membership: Membership, partitions: Collection[int]) -> dict[int, Committed | None]:
        """Committed offsets (OffsetFetch v7, require_stable) at the group's coordinator; waits while a transaction
        holds pending ones. None: the group has no offset of the partition. Raises CommitError past the time limit."""

    async def log_ranges(self, partitions: Collection[int]) -> dict[int, LogRange]: ...

    async def starting_offset(self, partition: int) -> int:
        """Where a group without an offset begins, by ``auto_offset_reset``."""

    def changelog(self, partition: int, start: int = 0) -> AsyncIterator[Changelog]:
        """The changelog partition from ``start`` (or where the log begins, if that is later), read committed, until the
        position has passed the high watermark (asked read uncommitted when the iteration begins).

        The last stretch's ``next_offset`` is at least that watermark; there is none where ``start`` is the watermark. A
        stretch may hold no records. Call it only after ``stable_offsets`` answered (X8). Raises CommitError past the
        time limit, TakeoverError for what cannot be read, and where ``start`` lies beyond the watermark: what was read
        of this log before is void then (X14).
        """

    def follow(self, partitions: Mapping[int, int]) -> AsyncIterator[tuple[int, Changelog]]:
        """Changelog partitions from these offsets on (or where the log begins, if that is later), read committed, as
        they go on: partition and stretch, until it is closed or cancelled (a standby). Now and then a stretch says of a
        partition that there is nothing new.

        Costs one request of the broker at a time, however many partitions. It waits while no broker answers. Raises
        TakeoverError naming the partition that cannot be read on (its log ends before the offset: what was read of it
        is void; or it is damaged), NotAuthorized: the others have to be followed anew, from where they had come.
        """

    async def members(self) -> list[GroupMember]:
        """Who is in the group now, by name. Raises CommitError past the time limit, NotAuthorized."""

    async def settle(self) -> None:
        """Makes the writer usable again after any failure: InitProducerId until no CONCURRENT_TRANSACTIONS (X11).
        An open transaction of this lane is decided when it returns."""

    async def open(self, outputs: Collection[int], snapshots: Collection[int]) -> None:
        """Begins the next transaction, or goes on beginning it, while its parts are still being made: ``commit`` is
        likely to have outputs and snapshots of these partitions. What else it has is added then; what it lacks costs
        no more than a marker. Nothing is written, no offset is pending. Errors as of ``commit``."""

    async def commit(self, membership: Membership, parts: Sequence[Part]) -> dict[int, Written]:
        """One transaction: all records, all offsets with metadata, under ``membership`` (X1, X3).

        Returns when EndTxn(commit) has succeeded: by partition, where its part's snapshots lie in the changelog. A
        partition is left out if its part has none, and in the rare case that the broker did not tell of one stretch
        without gaps (an answer was lost, and the records sent again). Raises GroupRefused (aborted and answered, the
        writer stays good), PartRefused, NotAuthorized or OutcomeUnknown (call ``settle`` before anything else). Parts
        may hold no records at all.
        """

    async def publish(self, parts: Sequence[Part]) -> None:
        """The parts' ``outputs`` alone, in no transaction, acknowledged by all replicas when it returns (X13).

        After an error some of them are visible, in their order, and may be published again. One call at a time.
        Raises PartRefused, NotAuthorized, OutcomeUnknown.
        """

    def lag(self, partitions: Collection[int]) -> dict[int, int]:
        """Records between the position and the log's end, as a fetch or ``log_ranges`` last heard; no request. -1 where
        unknown."""

    async def leave(self) -> None:
        """Leaves the group so that others need not wait for a session time-out; the writer stays."""

    async def stop(self) -> None:
        """Closes every connection; bounded, never raises for a broker that is away."""
