"""Deliberate mistakes: each patches the worker into one of the wrong ways that the rules forbid, and bends the world
towards where it shows. What finds them is the invariants alone; if none did, a rule would not be tested.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np

from pipeline import takeover
from pipeline.columns import Membership, Part, Records
from pipeline.commit import Lane
from pipeline.copies import Copies
from pipeline.errors import CommitError, GroupRefused, OutcomeUnknown
from pipeline.intake import Intake
from pipeline.mark import Mark, Tags, Topics
from pipeline.outlet import Outlet
from pipeline.ownership import Owned, Ownership, Phase
from pipeline.partition import Memory
from pipeline.streams.local_copy import LocalCopy
from pipeline.streams.snapshots import Snapshots, restore
from pipeline.transport.kafka import logs, wire
from pipeline.transport.kafka.sender import Sender
from pipeline.transport.kafka.topic_watch import Doubt
from pipeline.transport.kafka.transport import KafkaTransport
from pipeline.transport.kafka.writer import Writer
from pipeline.worker import Worker
from tests.simulation.client import Faults
from tests.simulation.engine import SimEngine
from tests.simulation.loop import current
from tests.simulation.world import ALL_BUT_FETCHES, CONFIG, Plan

Patch = Callable[[ExitStack], None]
Bias = Callable[[Plan], None]


@dataclass(frozen=True)
class Mutation:
    """A wrong way, and where it shows."""

    name: str
    patch: Patch
    bias: Bias


MUTATIONS: dict[str, Mutation] = {}


def mutation(bias: Bias) -> Callable[[Patch], Patch]:
    """The function's name is the mutation's."""

    def add(patch: Patch) -> Patch:
        name = patch.__name__
        MUTATIONS[name] = Mutation(name, patch, bias)
        return patch

    return add


@contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """The worker with that mistake; as it is, without a name."""
    with ExitStack() as stack:
        if name is not None:
            MUTATIONS[name].patch(stack)
        yield


def _set(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.enter_context(mock.patch.object(owner, name, value))


# ---- where it shows


def _plain(plan: Plan) -> None:
    """Exactly once, nothing that muddles what is looked for."""
    plan.partitions, plan.workers, plan.keys = 2, 2, 2
    plan.records, plan.produce_s = 50, 6.0
    plan.engine_good_s = 6.0
    plan.poison = plan.engine_faults = plan.bad = plan.input_transactions = 0.0
    plan.crashes = plan.graceful = 0
    plan.epilogue = True
    plan.config |= {"processing_guarantee": "exactly_once", "state_ttl_s": 0.0, "slots": 64, "commit_interval_ms": 0.0}


def _hash(plan: Plan) -> None:
    _plain(plan)
    plan.talks = False


def _hash_saved_always(plan: Plan) -> None:
    _hash(plan)
    plan.config["snapshot_interval_ms"] = 0.0


def _hash_saved_rarely(plan: Plan) -> None:
    _hash(plan)
    plan.config["snapshot_interval_ms"] = 1500.0
    plan.kills = 5


def _kills(plan: Plan) -> None:
    _hash_saved_always(plan)
    plan.kills = 10
    plan.records, plan.produce_s = 100, 9.0


def _talk(plan: Plan) -> None:
    _plain(plan)
    plan.talks = True
    plan.kills = 6
    plan.produce_s = 2.0
    plan.config |= {"generate_flush_ms": 0.0, "on_input": "wait"}


def _late(plan: Plan, *apis: int, late: float = 0.1, lost: float = 0.0) -> None:
    plan.faults = Faults(lost_answer=lost, late_request=late, late_s=4.0, only=frozenset(apis))


def _zombies(plan: Plan) -> None:
    """Stopped for longer than the session, mostly inside a transaction."""
    _hash_saved_always(plan)
    plan.kills, plan.stops = 0, 5
    plan.produce_s = plan.faults_s = 14.0
    plan.records = 150
    plan.shuffle = False
    _late(plan, 0, 24, 28, late=0.05)
    plan.stop_s = 3.4


def _rebalances(plan: Plan) -> None:
    _hash_saved_always(plan)
    plan.kills, plan.stops, plan.joins, plan.graceful = 1, 3, 3, 2
    plan.faults_s = plan.produce_s = 12.0
    plan.records = 100
    plan.stop_s = 3.6


def _rebalances_in_transactions(plan: Plan) -> None:
    _rebalances(plan)
    # One is opened late (25), when the new generation is known and what it assigns is not (14).
    plan.faults = Faults(late_answer=0.6, late_s=2.5, only=frozenset({14, 25}))
    plan.config["request_timeout_ms"] = 4000


def _lost_answers(plan: Plan) -> None:
    _hash_saved_always(plan)
    plan.kills = 0
    _late(plan, 26, late=0.3, lost=0.2)


def _lost_answers_to_offsets(plan: Plan) -> None:
    _lost_answers(plan)
    _late(plan, 28, late=0.2, lost=0.2)


# ---- X1, X3: the fence


@mutation(_rebalances_in_transactions)
def membership_read_live(stack: ExitStack) -> None:
    plain_commit, plain_offsets = KafkaTransport.commit, Writer._offsets
    whose: contextvars.ContextVar[Any] = contextvars.ContextVar("whose")

    async def commit(self: Any, membership: Any, parts: Any) -> Any:
        whose.set(self)
        return await plain_commit(self, membership, parts)

    async def offsets(self: Any, membership: Membership, parts: Any) -> Any:
        m = whose.get()._opened.reader._member
        live = Membership(m.group_id, m.generation, m.member_id, m._group_instance_id) if m.joined else membership
        return await plain_offsets(self, live, parts)

    _set(stack, KafkaTransport, "commit", commit)
    _set(stack, Writer, "_offsets", offsets)


@mutation(_zombies)
def no_membership_sent(stack: ExitStack) -> None:
    class Unchecked:
        group, generation, member_id, instance_id = "g", -1, "", None

    plain = Writer._offsets

    async def offsets(self: Any, membership: Any, parts: Any) -> Any:
        return await plain(self, Unchecked, parts)

    _set(stack, Writer, "_offsets", offsets)


@mutation(_rebalances)
def lost_partition_sent_under_the_new_membership(stack: ExitStack) -> None:
    plain = Ownership.assigned

    def assigned(self: Any, membership: Any, partitions: Any) -> None:
        mine = [p for p, o in self._owned.items() if o.memory is not None and (o.memory.pending or o.memory.frozen)]
        plain(self, membership, sorted({*partitions, *mine}))

    _set(stack, Ownership, "assigned", assigned)


@mutation(_zombies)
def snapshots_without_their_offset(stack: ExitStack) -> None:
    plain_commit, plain_offsets = KafkaTransport.commit, Writer._offsets
    apart: contextvars.ContextVar[bool] = contextvars.ContextVar("apart", default=False)

    async def commit(self: Any, membership: Any, parts: Any) -> Any:
        first = [replace(p, outputs=Records.none(), dead_letters=Records.none()) for p in parts if len(p.snapshots)]
        if first:
            apart.set(True)
            await plain_commit(self, membership, first)
            apart.set(False)
        return await plain_commit(self, membership, [replace(p, snapshots=Records.none()) for p in parts])

    async def offsets(self: Any, membership: Any, parts: Any) -> Any:
        return {} if apart.get() else await plain_offsets(self, membership, parts)

    _set(stack, KafkaTransport, "commit", commit)
    _set(stack, Writer, "_offsets", offsets)


# ---- X4: the own rule


@mutation(_rebalances)
def kept_partition_not_checked(stack: ExitStack) -> None:
    plain = Ownership.assigned

    def assigned(self: Any, membership: Any, partitions: Any) -> None:
        plain(self, membership, partitions)
        for owned in self._owned.values():
            if owned.memory is not None:
                owned.memory.checked = True
                self._go_on(owned.memory)

    _set(stack, Ownership, "assigned", assigned)


@mutation(_rebalances)
def returned_partition_not_checked(stack: ExitStack) -> None:
    plain_assigned, plain_drop = Ownership.assigned, Ownership._drop
    away: dict[tuple[int, int], Memory] = {}

    def assigned(self: Any, membership: Any, partitions: Any) -> None:
        for p in list(self._owned):
            owned = self._owned[p]
            if p not in partitions and owned.memory is not None:
                self._end_takeover(owned)
                self._transport.pause([p])
                away[id(self), p] = owned.memory
                del self._owned[p]
        for p in partitions:
            memory = away.pop((id(self), p), None)
            if memory is not None and p not in self._owned:
                self._owned[p] = Owned(p, membership, Phase.RUNNING, memory)
        plain_assigned(self, membership, partitions)
        for owned in self._owned.values():
            if owned.memory is not None:
                owned.memory.checked = True
                self._go_on(owned.memory)

    _set(stack, Ownership, "assigned", assigned)
    _set(stack, Ownership, "_drop", plain_drop)


def _takeovers_cut(plan: Plan) -> None:
    """Takeovers last so long that the partition is another's, and comes back, meanwhile."""
    _rebalances(plan)
    plan.kills, plan.stops, plan.joins = 0, 0, 8
    plan.faults = Faults(late_answer=0.5, late_s=6.0, only=frozenset({2}))
    plan.config["request_timeout_ms"] = 8000


def _counters_meet(plan: Plan) -> None:
    """Few commits of one partition, which goes to and fro between two workers that stand still by turns."""
    _rebalances(plan)
    plan.partitions, plan.records, plan.joins, plan.graceful = 1, 60, 0, 0
    plan.kills, plan.stops = 2, 6
    plan.faults_s = plan.produce_s = 20.0
    plan.stop_s = 3.5
    plan.config["commit_interval_ms"] = 300.0


@mutation(_takeovers_cut)
def half_taken_over_partition_not_checked(stack: ExitStack) -> None:
    plain_take_over, plain_begin = Ownership._take_over, Ownership._begin

    async def take_over(self: Any, owned: Owned) -> None:
        await plain_take_over(self, owned)
        now = self._owned.get(owned.partition)
        if now is not None and now is not owned and owned.memory is not None and now.memory is None:
            now.memory, now.phase = owned.memory, Phase.RUNNING
            now.memory.membership, now.memory.checked = now.membership, True
            self._go_on(now.memory)

    def begin(self: Any, owned: Owned) -> None:
        old = going.get((id(self), owned.partition))
        if old is not None and old.task is not None and not old.task.done():
            owned.task, owned.phase = old.task, Phase.TAKEOVER
            return
        plain_begin(self, owned)
        going[id(self), owned.partition] = owned

    going: dict[tuple[int, int], Owned] = {}
    _set(stack, Ownership, "_end_takeover", staticmethod(lambda owned: None))
    _set(stack, Ownership, "_take_over", take_over)
    _set(stack, Ownership, "_begin", begin)


@mutation(_counters_meet)
def tag_without_incarnation(stack: ExitStack) -> None:
    def first(self: Any, incarnation: bytes) -> None:
        self._incarnation, self._count = bytes(8), 0

    _set(stack, Tags, "__init__", first)


@mutation(_lost_answers)
def tag_without_counter(stack: ExitStack) -> None:
    _set(stack, Tags, "next", lambda self: self._incarnation + bytes(8))


def _taken_and_brought_back(plan: Plan) -> None:
    _rebalances(plan)
    plan.talks = True
    plan.produce_s, plan.records = 8.0, 60
    plan.config |= {"generate_flush_ms": 0.0, "on_input": "wait"}


@mutation(_taken_and_brought_back)
def only_the_offset_compared(stack: ExitStack) -> None:
    """A generation moves no offset: another worker may have gone on with it meanwhile."""
    plain = Memory.freeze

    def freeze(self: Any, tag: bytes, *rest: Any) -> Any:
        part = plain(self, tag, *rest)
        if part is None:
            return None
        offset = part.committed.to_bytes(16, "big")
        mark = Mark.decode(part.metadata)
        assert mark is not None
        part = replace(part, tag=offset, metadata=replace(mark, tag=offset).encode())
        self.frozen = replace(self.frozen, part=part)
        return part

    _set(stack, Memory, "freeze", freeze)


# ---- X8: the takeover's order


def _slow_markers(plan: Plan) -> None:
    """Workers die and come back while their last transaction is decided and not yet seen."""
    _kills(plan)
    plan.slow_marker = 0.5
    plan.config["snapshot_interval_ms"] = 100.0


def _slow_markers_and_moves(plan: Plan) -> None:
    """Whoever takes over asks while another's transaction, without a snapshot, is decided and not yet seen."""
    _rebalances(plan)
    plan.slow_marker = 0.9
    plan.kills, plan.stops, plan.graceful, plan.joins = 0, 0, 0, 12
    plan.records, plan.produce_s, plan.faults_s = 200, 16.0, 16.0
    plan.faults = Faults()
    plan.config["snapshot_interval_ms"] = 3000.0


@mutation(_slow_markers_and_moves)
def unstable_offsets_read(stack: ExitStack) -> None:
    plain = wire.OffsetFetch.__init__

    def first(self: Any, group: Any, topics: Any, stable: bool, tags: Any) -> None:
        plain(self, group, topics, False, tags)

    _set(stack, wire.OffsetFetch, "__init__", first)


def _owners_alive(plan: Plan) -> None:
    """The old owner's records arrive while the new one takes over."""
    _rebalances(plan)
    plan.kills, plan.stops, plan.joins, plan.graceful = 0, 0, 8, 0
    plan.produce_s = plan.faults_s = 14.0
    plan.records = 150
    plan.faults = Faults(late_request=0.15, late_s=2.4, only=frozenset({0}))
    plan.config |= {"request_timeout_ms": 4000, "transaction_timeout_ms": 8000}


@mutation(_owners_alive)
def changelog_before_stable_offsets(stack: ExitStack) -> None:
    async def read(
        partition: int, membership: Any, transport: Any, copies: Any, digest: bytes, row_bytes: int, *, look_twice: bool
    ) -> Any:
        newest = await copies.restore(partition, row_bytes)
        committed = (await transport.stable_offsets(membership, [partition]))[partition]
        log_range = (await transport.log_ranges([partition]))[partition]
        mark = Mark.decode(committed.metadata) if committed is not None else None
        return takeover.Found(partition, committed, mark, log_range, restore(newest, digest))

    _set(stack, takeover, "read", read)


@mutation(_slow_markers)
def changelog_only_to_the_last_stable_offset(stack: ExitStack) -> None:
    plain = logs.offsets_at

    async def offsets_at(client: Any, topic: str, partitions: Any, which: int, *, committed: bool) -> Any:
        return await plain(client, topic, partitions, which, committed=committed or topic.endswith("-changelog"))

    _set(stack, logs, "offsets_at", offsets_at)


# ---- X14: local copies


def _copies(plan: Plan) -> None:
    """Each worker finds again what it kept, and dies within transactions."""
    _kills(plan)
    plan.copies, plan.damages = "own", 0.0
    plan.config["standbys"] = 0
    plan.crashes = plan.compactions = 0
    _late(plan, 26, 28, late=0.2)


@mutation(_copies)
def local_copy_before_commit(stack: ExitStack) -> None:
    plain_first, plain_commit, plain_send = Copies.__init__, KafkaTransport.commit, Sender.send
    copies: dict[Any, Copies] = {}
    sent: contextvars.ContextVar[dict[int, Part]] = contextvars.ContextVar("sent")

    def first(self: Any, *rest: Any) -> None:
        plain_first(self, *rest)
        copies[current()] = self

    async def commit(self: Any, membership: Any, parts: Any) -> Any:
        sent.set({part.partition: part for part in parts})
        return await plain_commit(self, membership, parts)

    async def send(self: Any, *rest: Any) -> Any:
        answered = await plain_send(self, *rest)
        for (topic, partition), where in answered.written.items():
            if topic == CONFIG.changelog:
                copies[current()].saved(sent.get()[partition], where)
        return answered

    _set(stack, Copies, "__init__", first)
    _set(stack, KafkaTransport, "commit", commit)
    _set(stack, Sender, "send", send)


def _copies_of_long_ago(plan: Plan) -> None:
    """A partition goes to and fro between machines, while its streams end and are forgotten for good."""
    _copies(plan)
    plan.partitions, plan.workers, plan.kills, plan.joins = 1, 1, 0, 5
    plan.faults = Faults()
    plan.keys, plan.records, plan.ends = 6, 250, 0.15
    plan.produce_s = plan.faults_s = 40.0
    plan.compactions, plan.horizon_s = 60, 0.4
    plan.roll_share = 1.0
    plan.config["session_timeout_ms"] = 1500


@mutation(_copies_of_long_ago)
def expired_local_copy(stack: ExitStack) -> None:
    _set(stack, LocalCopy, "expired", lambda self, now_ms, retention_ms: False)


# ---- X13: at least once


def _late_takeovers(plan: Plan) -> None:
    """Whoever takes over stands still when it knows the offset, while another goes on and streams end."""
    _hash_saved_always(plan)
    plan.partitions, plan.workers, plan.kills, plan.joins = 1, 2, 4, 2
    plan.keys, plan.records, plan.ends = 3, 300, 0.2
    plan.produce_s = plan.faults_s = 30.0
    plan.compactions, plan.horizon_s, plan.roll_share = 60, 0.3, 1.0
    plan.stop_at, plan.stop_s = 9, 5.0
    plan.faults = Faults(late_answer=0.9, late_s=1.2, only=frozenset({12}))
    plan.config |= {
        "processing_guarantee": "at_least_once",
        "request_timeout_ms": 9000,
        "transaction_timeout_ms": 12000,
        "session_timeout_ms": 2000,
    }


@mutation(_late_takeovers)
def at_least_once_without_the_second_look(stack: ExitStack) -> None:
    plain = takeover.read

    async def read(*rest: Any, look_twice: bool) -> Any:
        return await plain(*rest, look_twice=False)

    _set(stack, takeover, "read", read)


# ---- X11: failures


@mutation(_lost_answers_to_offsets)
def no_initialisation_before_asking(stack: ExitStack) -> None:
    plain = Writer.settle

    async def settle(self: Any) -> None:
        if self._sender.producer == (-1, -1):
            await plain(self)
        self._settled = True

    _set(stack, Writer, "settle", settle)


def _lost_requests(plan: Plan) -> None:
    _hash_saved_always(plan)
    plan.kills = 0
    plan.faults = Faults(lost_request=0.1, late_request=0.1, late_s=4.0, only=frozenset({0, 24, 25, 26, 28}))


@mutation(_lost_requests)
def outcome_unknown_taken_for_success(stack: ExitStack) -> None:
    plain = Lane._transaction

    async def transaction(self: Any, frozen: Any, membership: Any, parts: Any) -> Any:
        try:
            return await plain(self, frozen, membership, parts)
        except OutcomeUnknown:
            for memory, _ in frozen:
                memory.checked = True
            return {}

    _set(stack, Lane, "_transaction", transaction)


@mutation(_lost_answers)
def outcome_unknown_taken_for_failure(stack: ExitStack) -> None:
    plain = Lane._transaction

    async def transaction(self: Any, frozen: Any, membership: Any, parts: Any) -> Any:
        try:
            return await plain(self, frozen, membership, parts)
        except GroupRefused:
            raise
        except CommitError:
            for memory, _ in frozen:
                memory.checked = True
            raise

    _set(stack, Lane, "_transaction", transaction)


@mutation(_lost_answers)
def frozen_part_rebuilt_before_its_outcome_is_known(stack: ExitStack) -> None:
    plain_freeze, plain_transaction = Memory.freeze, Lane._transaction
    contents: dict[int, list[Any]] = {}

    def freeze(self: Any, *rest: Any) -> Any:
        done = list(self.pending)
        part = plain_freeze(self, *rest)
        if part is not None:
            contents[id(self)] = done
        return part

    async def transaction(self: Any, frozen: Any, membership: Any, parts: Any) -> Any:
        try:
            return await plain_transaction(self, frozen, membership, parts)
        except CommitError:
            for memory, part in frozen:
                if memory.frozen is not None and memory.frozen.part is part and memory.pending:
                    memory.pending = contents[id(memory)] + memory.pending
                    memory.frozen = None
                    memory.freeze(part.tag, self._digest, 0, self._merge)
            raise

    _set(stack, Memory, "freeze", freeze)
    _set(stack, Lane, "_transaction", transaction)


def _engine_fails(plan: Plan) -> None:
    _hash_saved_rarely(plan)
    plan.kills = 1
    plan.engine_faults = 0.3
    plan.engine_s = 0.02
    plan.keys = 3


@mutation(_engine_fails)
def torn_rows_kept(stack: ExitStack) -> None:
    plain_retake, plain_running = Ownership.retake, Worker._running
    kept: dict[tuple[int, int], dict[bytes, Any]] = {}

    def retake(self: Any, partition: int, why: str) -> None:
        owned = self._owned.get(partition)
        if owned is not None and owned.memory is not None and "model failed" in why:
            index, arena = owned.memory.index, self._residency._arena
            kept[id(self), partition] = {key: arena.read(np.array([slot])) for key, slot in index.items()}
        plain_retake(self, partition, why)

    def running(self: Any, memory: Any, live: Any) -> None:
        for key, row in kept.pop((id(self._ownership), memory.partition), {}).items():
            if key in memory.index:
                self._engine.arena.write(np.array([memory.index[key]]), row)
        plain_running(self, memory, live)

    _set(stack, Ownership, "retake", retake)
    _set(stack, Worker, "_running", running)


def _torn_while_committing(plan: Plan) -> None:
    _hash_saved_always(plan)
    plan.kills = 0
    plan.engine_faults = 1.0
    plan.records, plan.produce_s = 100, 8.0
    _late(plan, 0, 24, 26, 28, late=0.15)
    plan.faults.late_s = 0.5


@mutation(_torn_while_committing)
def torn_memorys_part_sent_after_the_takeovers_read(stack: ExitStack) -> None:
    async def quiet(self: Any) -> None:
        return

    _set(stack, Lane, "quiet", quiet)


def _slots_reused(plan: Plan) -> None:
    _hash_saved_always(plan)
    plan.kills = 0
    plan.engine_faults = 1.0
    plan.engine_s = 0.2
    plan.keys, plan.records, plan.produce_s = 3, 120, 6.0
    plan.config["slots"] = 8
    plan.faults = Faults()


def _never_closing(stack: ExitStack) -> None:
    """A takeover does not wait for the runs of the memory before it."""
    nothing = property(lambda self: [], lambda self, value: None)
    stack.enter_context(mock.patch.object(Ownership, "_closing", nothing, create=True))


@mutation(_slots_reused)
def slot_freed_while_its_batch_runs(stack: ExitStack) -> None:
    plain = Memory.close

    def close(self: Any) -> None:
        plain(self)
        self.slots.release(list(self.index.values()))
        self.index.clear()

    _set(stack, Memory, "close", close)
    _never_closing(stack)


@mutation(_slots_reused)
def late_result_of_an_earlier_takeover_used(stack: ExitStack) -> None:
    plain = Outlet.finish
    newest: dict[tuple[int, int], Memory] = {}
    plain_running = Worker._running

    def running(self: Any, memory: Any, live: Any) -> None:
        newest[id(self._outlet), memory.partition] = memory
        plain_running(self, memory, live)

    def finish(self: Any, poll: Any, now_s: float) -> None:
        for share in poll.shares:
            memory = share.memory
            now = newest.get((id(self), memory.partition))
            if memory.closed and now is not None and now is not memory and not now.closed:
                memory.in_flight -= 1
                memory.release_if_idle()
                now.in_flight += 1
                share.memory = now
        plain(self, poll, now_s)

    _set(stack, Worker, "_running", running)
    _set(stack, Outlet, "finish", finish)
    _never_closing(stack)


# ---- X2, X5, X6, X8: snapshots, R, D and replay


@mutation(_hash_saved_rarely)
def outputs_not_hidden_in_replay(stack: ExitStack) -> None:
    _set(stack, Intake, "_hidden", lambda self, shares, offsets: None)


@mutation(_hash_saved_rarely)
def replay_from_omitted(stack: ExitStack) -> None:
    _set(stack, Memory, "_replay_from", lambda self, now: now.low)


@mutation(_hash_saved_rarely)
def replay_from_above_committed(stack: ExitStack) -> None:
    _set(stack, Memory, "_replay_from", lambda self, now: now.next + 1)


def _deaths_in_replays(plan: Plan) -> None:
    _hash_saved_rarely(plan)
    plan.kills = 8
    plan.records = 80
    plan.produce_s = 4.0
    plan.engine_s = 0.2
    plan.config |= {"snapshot_interval_ms": 400.0, "max_steps": 2}


@mutation(_deaths_in_replays)
def replay_from_computed_over_memory_in_a_replay(stack: ExitStack) -> None:
    def replay_from(self: Any, now: Any) -> int:
        dirty = self.dirty.lowest()
        return max(self.replay_from, now.low if dirty is None else min(now.low, dirty))

    _set(stack, Memory, "_replay_from", replay_from)


def _behind_the_snapshot(stack: ExitStack) -> None:
    """A part has the newest poll's snapshots, and not its outputs."""
    plain = Memory.freeze

    def freeze(self: Any, *rest: Any) -> Any:
        if self.frozen is None and len(self.pending) > 1:
            *some, last = self.pending
            saved = Snapshots.latest([some[-1].snapshots, last.snapshots])
            some[-1] = replace(some[-1], snapshots=saved)
            progress, self.progress = self.progress, some[-1].progress
            self.pending = some
            try:
                return plain(self, *rest)
            finally:
                self.pending, self.progress = [last, *self.pending], progress
        return plain(self, *rest)

    _set(stack, Memory, "freeze", freeze)


def _kills_in_traffic(plan: Plan) -> None:
    _kills(plan)
    plan.records, plan.produce_s = 150, 8.0
    plan.config["commit_interval_ms"] = 100.0


@mutation(_kills_in_traffic)
def snapshot_beyond_done(stack: ExitStack) -> None:
    _behind_the_snapshot(stack)


@mutation(_talk)
def snapshot_inside_a_record(stack: ExitStack) -> None:
    """The row is copied before the last call of the poll, and not after it."""
    plain = SimEngine._run

    def run(self: Any, run: Any, job: Any) -> None:
        if len(run.jobs) == 1 and len(job.calls) > 1 and len(run.snapshot_slots):
            last = job.calls.pop()
            plain(self, run, job)
            rows = run.rows.copy()
            if run.error is None:
                job.calls = [last]
                plain(self, run, job)
                run.rows = rows
        else:
            plain(self, run, job)

    _set(stack, SimEngine, "_run", run)


@mutation(_talk)
def snapshot_older_than_the_last_published_token(stack: ExitStack) -> None:
    """Choices do not bind."""
    plain = Intake.__init__

    def first(self: Any, *args: Any, **settings: Any) -> None:
        plain(self, *args, **settings)
        self.binds = self._saves_all = False

    _set(stack, Intake, "__init__", first)


def _talk_late(plan: Plan) -> None:
    _talk(plan)
    plan.config["commit_interval_ms"] = 50.0


@mutation(_talk_late)
def snapshot_newer_than_the_last_published_token(stack: ExitStack) -> None:
    _behind_the_snapshot(stack)


def _interrupts(plan: Plan) -> None:
    _talk(plan)
    plan.keys = 1
    plan.records = 80
    plan.config["on_input"] = "interrupt"


@mutation(_interrupts)
def interrupt_without_snapshot(stack: ExitStack) -> None:
    plain = Outlet._snapshots

    def taken(self: Any, poll: Any, share: Any, rows: Any, any_ended: bool) -> Any:
        whole = plain(self, poll, share, rows, any_ended)
        return whole if share.a == share.b else replace(whole, **vars_of(Snapshots.none()))

    def vars_of(nothing: Snapshots) -> dict[str, Any]:
        return {name: getattr(nothing, name) for name in ("serials", "keys", "applied", "rows")}

    _set(stack, Outlet, "_snapshots", taken)


def _poison(plan: Plan) -> None:
    _hash_saved_rarely(plan)
    plan.poison = 0.2
    plan.config["snapshot_interval_ms"] = 3000.0


@mutation(_poison)
def dead_letter_without_snapshot(stack: ExitStack) -> None:
    plain = Intake._advance

    def advance(
        self: Any, shares: Any, slots: Any, offsets: Any, ended: Any, fed: Any, failed: Any, saving: Any
    ) -> Any:
        return plain(self, shares, slots, offsets, ended, fed, {}, saving)

    _set(stack, Intake, "_advance", advance)


# ---- X10: topics that are others by now


def _made_anew(plan: Plan) -> None:
    """In the middle of the work the input is deleted, made anew and filled."""
    _hash_saved_rarely(plan)
    plan.deleted, plan.meddlings = "input", 0
    plan.records, plan.produce_s, plan.keys = 100, 9.0, 3
    plan.kills, plan.stops, plan.retentions, plan.ends = 2, 2, 0, 0.0
    plan.faults = Faults(lost_answer=0.02, late_answer=0.05, late_s=1.0, only=ALL_BUT_FETCHES)


@mutation(_made_anew)
def offset_without_its_input(stack: ExitStack) -> None:
    plain = Mark.encode

    def encode(self: Any) -> str:
        return plain(replace(self, topics=Topics(self.topics.changelog)))

    _set(stack, Mark, "encode", encode)


@mutation(_made_anew)
def failed_fetch_raises_no_doubt(stack: ExitStack) -> None:
    _set(stack, Doubt, "rise", lambda self: None)


# ---- X12: forgetting


def _ends(plan: Plan) -> None:
    """Streams end and begin again while others hold R back; replays take their time, and are saved in the middle."""
    _deaths_in_replays(plan)
    plan.ends = 0.25
    plan.keys, plan.records = 3, 100
    plan.engine_s = 0.05
    plan.config |= {"slots": 3, "snapshot_interval_ms": 300.0, "max_steps": 1}


@mutation(_ends)
def tombstone_too_early(stack: ExitStack) -> None:
    plain = Memory._to_forget

    def to_forget(self: Any, replay_from: int, latest: Any) -> Any:
        return plain(self, 2**62, latest)

    _set(stack, Memory, "_to_forget", to_forget)


@mutation(_ends)
def tombstone_after_reopening(stack: ExitStack) -> None:
    def to_forget(self: Any, replay_from: int, latest: Any) -> list[bytes]:
        gone = []
        while self._ended_by_offset and self._ended_by_offset[0][0] < replay_from:
            _, key = self._ended_by_offset.popleft()
            self.ended.pop(key, None)
            gone.append(key)
        return [key for key in gone if key not in {*latest.keys, *latest.ended_keys}]

    _set(stack, Memory, "_to_forget", to_forget)


def _passing(plan: Plan) -> None:
    _talk(plan)
    plan.keys = 3
    plan.records, plan.produce_s = 60, 1.0
    plan.engine_s = 0.1


@mutation(_passing)
def done_above_committed_not_stored(stack: ExitStack) -> None:
    plain = Mark.encode

    def encode(self: Any) -> str:
        return plain(replace(self, done_above=()))

    _set(stack, Mark, "encode", encode)
