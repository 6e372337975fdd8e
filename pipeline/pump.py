"""Which waiting records make the next poll: fair shares of every backlog, a step of every stream that generates, and
what a failure made suspect by itself. No clock of its own and no I/O; the worker asks when the engine has room (S2).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pipeline.config import Config
from pipeline.engine import Costs
from pipeline.intake import Intake
from pipeline.order import Order
from pipeline.partition import Memory, fair_bound
from pipeline.policy import SnapshotPolicy
from pipeline.poll import Poll
from pipeline.scheduler import share
from pipeline.streams.slots import Slots

log = logging.getLogger(__name__)

GENERATING_STEPS = 2048
"""Largest poll while streams generate: their next step waits for it."""
STREAM_STEPS = 256
"""Of one stream in one poll, about, and fewer where they take long: its neighbours wait for them (S3). So many take an
LSTM 2x128 3.5 ms, and four times as many 11 ms."""
RECORDS_MIN = 64
"""A poll may always have so many records, however large their rows are."""


class Pump:
    """See the module. ``due`` is when a poll that is held back must leave, seconds of the caller's clock."""

    def __init__(
        self,
        config: Config,
        intake: Intake,
        order: Order,
        policy: SnapshotPolicy,
        slots: Slots,
        costs: Costs,
        step_bytes: int,
        row_bytes: int,
        kept_bytes: int,
    ) -> None:
        self._costs = costs
        self._config, self._intake, self._order, self._policy = config, intake, order, policy
        self._slots, self._step_bytes = slots, step_bytes
        # A poll holds a snapshot of each stream it advances, so where not all rows fit its records are bounded, too.
        rows_max = max(RECORDS_MIN, config.queue_bytes // 2 // max(1, row_bytes))
        self._records_max = config.max_steps if config.slots <= rows_max else rows_max
        # Steps and the outputs that are kept of them wait for the commit, too; and decoding must not take long.
        fitting = config.queue_bytes // 2 // max(1, kept_bytes)
        self._steps_max = max(1, min(config.max_steps, fitting, intake.poll_steps))
        self._suspects: dict[int, int] = {}
        """Partition -> offset below which its records run alone: one of them made a run fail (X11)."""
        self._was_alone = False
        self._turn = 0
        self._left_out: int | None = None
        """The first partition that the last poll had no room for (S3)."""
        self._looked = 0
        """The last poll that was finished when partitions without slots had their last try."""
        self.due: float | None = None

    def bound(self, memories: Sequence[Memory]) -> int:
        """Bytes that one partition's backlog may have, and as many again that wait for their commit."""
        return fair_bound(self._config.queue_bytes // 2, len(memories))

    def suspect(self, partition: int, until: int) -> None:
        """A run with records of this partition below ``until`` failed: each of them runs alone (X11)."""
        self._suspects[partition] = max(until, self._suspects.get(partition, 0))

    def suspects(self, partition: int, offset: int) -> bool:
        """Whether this record was in a run that failed."""
        return offset < self._suspects.get(partition, 0)

    def next(self, memories: Sequence[Memory], now_s: float, now_ms: int) -> Poll | None:
        """The next poll of these partitions, admitted and bound; None when nothing can go now."""
        self._unblock(memories)
        self._order.each = self._costs.stream_steps(self._order.most)
        bound = self.bound(memories)
        going = [m for m in memories if m.uncommitted_bytes < bound]
        waiting = [m for m in going if self._order.waits(m)]
        feeding = [m for m in going if m.feedable]
        suspects = [m for m in waiting if m.admitted < self._suspects.get(m.partition, 0)]
        waiting = [m for m in waiting if m.admitted >= self._suspects.get(m.partition, 0)]
        # By turns: what runs alone keeps nobody waiting (S3).
        for alone in (not self._was_alone, self._was_alone):
            poll = self._alone(suspects, now_ms) if alone else self._together(going, waiting, feeding, now_s, now_ms)
            if poll is not None:
                self._was_alone = alone
                return poll
        return None

    def save(self, memories: Sequence[Memory], now_s: float, now_ms: int) -> Poll | None:
        """A poll of nothing but snapshots, of streams that are dirty; None when there is none left."""
        saving = self._policy.due(memories, now_s, everything=True)
        return self._intake.admit([], [], 0, saving, now_ms) if saving else None

    def _together(
        self,
        going: Sequence[Memory],
        waiting: Sequence[Memory],
        feeding: Sequence[Memory],
        now_s: float,
        now_ms: int,
    ) -> Poll | None:
        saving = self._policy.due(going, now_s)
        if not (waiting or feeding or saving) or (not (feeding or saving) and self._hold(waiting, now_s)):
            return None
        # What is left over after fair shares goes to another partition each time (S3).
        waiting = self._in_turn(waiting)
        first = next((i for i, m in enumerate(waiting) if m.partition == self._left_out), 0)
        waiting = [*waiting[first:], *waiting[:first]]
        self._left_out = None
        budget = GENERATING_STEPS if feeding else self._steps_max
        grants = share([m.waiting_steps(self._step_bytes) for m in waiting], budget)
        records_max = max(1, self._records_max // max(1, len(waiting)))
        turns = []
        for memory, grant in zip(waiting, grants):
            # A record may be larger than its partition's share, but not all of them at once: the next poll begins here.
            if budget <= 0:
                self._left_out = memory.partition
                break
            turn = self._order.take(memory, max(1, grant), self._step_bytes, records_max)
            if turn is not None:
                turns.append(turn)
                budget -= turn.steps(self._step_bytes)
        poll = self._intake.admit(turns, self._in_turn(feeding), self._records_max, saving, now_ms)
        self._say_blocked(waiting)
        return poll

    def _alone(self, suspects: Sequence[Memory], now_ms: int) -> Poll | None:
        """One record by itself: the run that fails again names the one at fault."""
        for memory in self._in_turn(suspects):
            turn = self._order.take(memory, 1, self._step_bytes, 1)
            if turn is not None and (poll := self._intake.admit([turn], [], 0, [], now_ms)) is not None:
                return poll
        self._say_blocked(suspects)
        return None

    def _in_turn(self, memories: Sequence[Memory]) -> list[Memory]:
        """The first one changes with every poll."""
        if not memories:
            return []
        self._turn += 1
        first = self._turn % len(memories)
        return [*memories[first:], *memories[:first]]

    def _hold(self, waiting: Sequence[Memory], now_s: float) -> bool:
        """``max_delay_ms``: a small poll may wait for company (S2)."""
        delay = self._config.max_delay_ms / 1e3
        if not delay or sum(len(s) for m in waiting for s in m.backlog) >= self._config.max_batch:
            self.due = None
            return False
        if self.due is None:
            self.due = now_s + delay
        if now_s < self.due:
            return True
        self.due = None
        return False

    def _unblock(self, memories: Sequence[Memory]) -> None:
        """Slots come free when a stream ends, when another partition's memory is dropped, and when streams are idle."""
        if self._slots.free or self._slots.finished != self._looked:
            self._looked = self._slots.finished
            for memory in memories:
                if memory.blocked == "slots":
                    memory.blocked = None

    def _say_blocked(self, memories: Sequence[Memory]) -> None:
        for memory in memories:
            if memory.blocked == "slots" and not memory.said_blocked:
                memory.said_blocked = True
                log.warning(
                    "partition %d waits: all %d slots are taken by streams that are at work; raise slots (--slots,"
                    " EDDY_SLOTS)",
                    memory.partition,
                    self._config.slots,
                )
