"""Which partitions are this worker's, and how far each has come: assigned -> takeover -> running, or stopped by name.

The group's callbacks end here. After every assignment and every failed transaction the group is asked whose the memory
is (X4): a partition that was kept goes on with it, and only one that was another's meanwhile is taken over again.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from pipeline import takeover
from pipeline.columns import I64, U8, Bools, Membership
from pipeline.commit import Lane, Saved
from pipeline.copies import Copies
from pipeline.errors import CommitError, SlotsExhausted, TakeoverError, TierFull
from pipeline.metrics import Metrics
from pipeline.partition import Memory
from pipeline.residency import Residency
from pipeline.streams.slots import Slots
from pipeline.transport.base import Transport

log = logging.getLogger(__name__)

CHECK_TRIES = 2
"""A check of X10 that fails after a second takeover stops the partition."""
RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Between two takeovers while the broker does not answer; the last repeats."""
REVOKE_S = 1.5
"""How long a revocation waits for the running transaction; heartbeats stand still meanwhile."""


class Phase(enum.Enum):
    TAKEOVER = "takeover"
    RUNNING = "running"
    """With memory; what it gives is committed as long as that is checked (X4)."""
    REFUSED = "refused"
    """Running, but the group refused our membership: only after the next assignment can it tell whose it is."""
    STOPPED = "stopped"
    """By name, for a reason that a human must look at."""


@dataclass(slots=True)
class Owned:
    """One assigned partition."""

    partition: int
    membership: Membership
    phase: Phase = Phase.TAKEOVER
    memory: Memory | None = None
    task: asyncio.Task[None] | None = None
    positioned: bool = False
    """Fetching is where the memory has come to: an assignment forgets the positions."""
    failures: int = 0
    """Runs that failed since something of it was committed."""
    reason: str = ""


class Ownership:
    """See the module. ``running`` is called with a partition's new memory and its live streams' slots, ``checked`` with
    parts that turned out to be committed, ``failed`` with an error that no further takeover mends. ``wanted``: see
    takeover.install; ``look_twice``: takeover.read; ``resets``: takeover.check."""

    def __init__(
        self,
        transport: Transport,
        lane: Lane,
        slots: Slots,
        residency: Residency,
        copies: Copies,
        digest: bytes,
        metrics: Metrics,
        running: Callable[[Memory, I64], None],
        checked: Callable[[Sequence[Saved]], None],
        failed: Callable[[BaseException], None],
        wanted: Callable[[U8], Bools],
        *,
        look_twice: bool,
        resets: bool,
    ) -> None:
        self._transport, self._lane, self._slots, self._residency = transport, lane, slots, residency
        self._copies = copies
        self._digest, self._metrics, self._running, self._failed = digest, metrics, running, failed
        self._said_checked, self._wanted, self._look_twice, self._resets = checked, wanted, look_twice, resets
        self._row_bytes = residency.row_bytes
        self._checking: asyncio.Task[None] | None = None
        self._owned: dict[int, Owned] = {}
        self._closing: list[Memory] = []
        self._freed = asyncio.Event()
        """Slots may have come free."""
        self.member = False
        """In the group, with an assignment that stands."""
        self.draining = False

    # ---- how things stand

    @property
    def owned(self) -> Collection[Owned]:
        return self._owned.values()

    def memories(self) -> list[Memory]:
        """Of running partitions."""
        return [o.memory for o in self._owned.values() if o.memory is not None]

    def memory(self, partition: int) -> Memory | None:
        owned = self._owned.get(partition)
        return owned.memory if owned is not None else None

    @property
    def ready(self) -> bool:
        """Member of the group, and every partition it owns, maybe none, is running."""
        return self.member and all(
            o.phase is Phase.RUNNING and o.memory is not None and o.memory.checked for o in self._owned.values()
        )

    # ---- the group's callbacks

    async def revoked(self) -> None:
        """No new transaction starts; the running one gets a moment, so that what it holds need not be done again."""
        self.member = False
        try:
            async with asyncio.timeout(REVOKE_S):
                await self._lane.quiet()
        except TimeoutError:
            log.warning("the running transaction did not end in %g s; the group decides what becomes of it", REVOKE_S)

    def assigned(self, membership: Membership, partitions: Collection[int]) -> None:
        """Memory of a partition that we had before stays until the group says whose it is (X4); what is in the middle
        of a takeover begins it again, and what is new begins it. Returns at once: no heartbeat runs inside it."""
        before, self._owned = self._owned, {}
        for partition in sorted(partitions):
            # Replaced, not edited: membership and partitions stand together (X1).
            owned = self._owned[partition] = Owned(partition, membership)
            old = before.pop(partition, None)
            if old is None:
                continue
            self._end_takeover(old)
            owned.failures = old.failures
            if old.memory is not None:
                owned.memory, owned.phase, owned.positioned = old.memory, Phase.RUNNING, False
                owned.memory.membership, owned.memory.checked = membership, False
        for gone in before.values():
            self._drop(gone)
        self.member = True
        log.info("assigned partitions %s, generation %d", sorted(partitions), membership.generation)
        for owned in self._owned.values():
            if owned.memory is None:
                self._begin(owned)
        self.ask()

    # ---- the own rule

    def ask(self) -> None:
        """Asks the group whose the unchecked memories are (X4), now or as soon as it answers."""
        if self._checking is not None and not self._checking.done():
            return  # it goes on until nothing is unchecked
        if self._unchecked():
            self._checking = asyncio.create_task(self._check(), name="checking")
            self._checking.add_done_callback(self._ended)

    def _unchecked(self) -> list[Memory]:
        return [
            o.memory
            for o in self._owned.values()
            if o.phase is Phase.RUNNING and o.memory is not None and not o.memory.checked
        ]

    async def _check(self) -> None:
        tries = 0
        while asked := self._unchecked():
            try:
                answer = await self._lane.check(asked)
            except CommitError as error:
                pause = RETRY_S[min(tries, len(RETRY_S) - 1)]
                tries += 1
                log.warning("the group cannot be asked whose partitions these are: %s; again in %g s", error, pause)
                await asyncio.sleep(pause)
                continue
            for memory in answer.kept:
                self._go_on(memory)
            for memory in answer.dropped:
                self.retake(memory.partition, "it was another worker's meanwhile")
            self._said_checked(answer.saved)

    def _go_on(self, memory: Memory) -> None:
        """Fetching goes on where the memory is."""
        owned = self._owned.get(memory.partition)
        if owned is not None and owned.memory is memory and not memory.closed and not owned.positioned:
            owned.positioned = True
            self._transport.seek(memory.partition, memory.fetched)
            self._transport.resume([memory.partition])

    # ---- failures

    def retake(self, partition: int, why: str) -> None:
        """Drops the partition's memory and takes it over again."""
        owned = self._owned.get(partition)
        if owned is None or owned.memory is None:
            return
        log.warning("partition %d is taken over again: %s", partition, why)
        self._drop(owned)
        self._begin(owned)

    def refused(self, partition: int) -> None:
        """The group did not take the membership: the partition may be another's, the next assignment tells."""
        owned = self._owned.get(partition)
        if owned is not None and owned.phase is Phase.RUNNING:
            owned.phase = Phase.REFUSED

    def halt(self, partition: int, why: str) -> None:
        """Stops the partition by name; the others go on."""
        owned = self._owned.get(partition)
        if owned is None:
            return
        log.error("partition %d stops: %s", partition, why)
        self._drop(owned)
        owned.phase, owned.reason = Phase.STOPPED, why
        self._metrics.error("partition-stopped")

    def trouble(self, partition: int, error: TakeoverError) -> None:
        """It can be fetched no longer: another takeover tells whether that is so, and names what it finds (X10)."""
        self._metrics.error(error)
        if partition not in self._owned:
            log.error("%s", error)  # one beyond those that the output has
        elif self.failed_run(partition) > CHECK_TRIES:
            self.halt(partition, str(error))
        else:
            self.retake(partition, str(error))

    def failed_run(self, partition: int) -> int:
        """How many runs have failed in a row, this one included."""
        owned = self._owned.get(partition)
        if owned is None:
            return 0
        owned.failures += 1
        return owned.failures

    def succeeded(self, partition: int) -> None:
        owned = self._owned.get(partition)
        if owned is not None:
            owned.failures = 0

    def run_returned(self) -> None:
        """A run is back: slots of dropped memories and of ended streams may be free now."""
        self._closing = [m for m in self._closing if m.in_flight]
        self._freed.set()

    async def close(self) -> None:
        """Ends the takeovers under way and drops all memory."""
        tasks = [o.task for o in self._owned.values() if o.task is not None and not o.task.done()]
        if self._checking is not None and not self._checking.done():
            self._checking.cancel()
            tasks.append(self._checking)
        for owned in self._owned.values():
            self._drop(owned)
        self._owned = {}
        if tasks:
            await asyncio.wait(tasks)

    # ---- takeovers

    @staticmethod
    def _end_takeover(owned: Owned) -> None:
        if owned.task is not None and not owned.task.done():
            owned.task.cancel()

    def _drop(self, owned: Owned) -> None:
        self._end_takeover(owned)
        memory, owned.memory = owned.memory, None
        if memory is not None:
            self._transport.pause([owned.partition])
            memory.close()
            self._residency.disown(memory)
            if memory.in_flight:
                self._closing.append(memory)
            self._freed.set()

    def _begin(self, owned: Owned) -> None:
        if self.draining:
            return
        owned.phase, owned.positioned = Phase.TAKEOVER, False
        owned.task = asyncio.create_task(self._take_over(owned), name=f"takeover-{owned.partition}")
        owned.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    async def _take_over(self, owned: Owned) -> None:
        """X8. Retries while the broker does not answer; a check that fails twice stops the partition (X10)."""
        began = asyncio.get_running_loop().time()
        refusals = tries = 0
        while True:
            try:
                memory, live, restored = await self._try(owned)
                break
            except TakeoverError as error:
                refusals += 1
                self._metrics.error(error)
                if refusals == CHECK_TRIES:
                    owned.phase, owned.reason = Phase.STOPPED, str(error)
                    log.error("%s; the partition stops, the others go on", error)
                    return
            except CommitError as error:
                pause = RETRY_S[min(tries, len(RETRY_S) - 1)]
                tries += 1
                log.warning("takeover of partition %d: %s; again in %g s", owned.partition, error, pause)
                await asyncio.sleep(pause)
        owned.memory, owned.phase = memory, Phase.RUNNING
        seconds = asyncio.get_running_loop().time() - began
        self._metrics.takeover(seconds, restored)
        log.info(
            "partition %d runs from offset %d%s with %d streams restored, after %.0f ms",
            owned.partition,
            memory.committed,
            f", replays from {memory.replay_from}," if memory.replay else "",
            restored,
            seconds * 1e3,
        )
        self._go_on(memory)
        self._running(memory, live)

    async def _try(self, owned: Owned) -> tuple[Memory, I64, int]:
        await self._lane.quiet()
        found = await takeover.read(
            owned.partition,
            owned.membership,
            self._transport,
            self._copies,
            self._digest,
            self._row_bytes,
            look_twice=self._look_twice,
        )
        start = takeover.check(found, self._digest, resets=self._resets)
        if start is None:
            first = await self._transport.starting_offset(owned.partition)
            start = takeover.Start(first, first, None)
        for problem in start.reset:
            self._metrics.error(f"snapshot-{problem.kind}")
            log.error("partition %d: %s; the stream begins anew (bad_snapshot: reset)", owned.partition, problem.text)
        said = False
        while True:
            if not self._closing:  # rows of a dropped memory that a run still has are not free yet (X11)
                try:
                    memory, live = takeover.install(
                        found, start, owned.membership, self._slots, self._residency, self._wanted
                    )
                except (SlotsExhausted, TierFull) as error:
                    if not said:
                        self._metrics.error(error)
                        log.error("%s; the partition waits, the others go on", error)
                        said = True
                else:
                    return memory, live, len(found.restored)
            self._freed.clear()
            await self._freed.wait()
