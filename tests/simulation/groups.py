"""Group coordinators: generations, static members, eager rebalances, and offsets, those pending in transactions too."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

ILLEGAL_GENERATION, UNKNOWN_MEMBER, REBALANCING, METADATA_TOO_LARGE = 22, 25, 27, 12
MEMBER_ID_REQUIRED, FENCED_INSTANCE, UNSTABLE, INVALID_EPOCH, INVALID_STATE = 79, 82, 88, 47, 48
METADATA_MAX = 4096
TOOL = 9
"""A producer's id, of somebody else's."""

Place = tuple[str, int]
Answer = Callable[[Any], None]


class State(Enum):
    EMPTY = "Empty"
    PREPARING = "PreparingRebalance"
    COMPLETING = "CompletingRebalance"
    STABLE = "Stable"


@dataclass(slots=True)
class Member:
    id: str
    instance: str | None
    session_s: float
    rebalance_s: float
    protocols: list[tuple[str, bytes]]
    heard_s: float
    assignment: bytes = b""
    join: Answer | None = None
    """Told when the rebalance has all members."""
    sync: Answer | None = None


@dataclass(frozen=True, slots=True)
class Joined:
    error: int
    generation: int = -1
    protocol: str = ""
    leader: str = ""
    member: str = ""
    members: tuple[tuple[str, str | None, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Synced:
    error: int
    assignment: bytes = b""


@dataclass(frozen=True, slots=True)
class Commit:
    """An offset; ``by`` is who committed it, for the invariants."""

    offset: int
    metadata: str
    by: tuple[str, int, str]
    """(transactional id, or who set it by hand, generation, member id)."""
    at: int = 0
    """Its place in ``__consumer_offsets``."""


class Group:
    """One group. Sessions are looked at every ``LOOK_S``."""

    LOOK_S = 0.1

    def __init__(self, name: str, cluster: Cluster) -> None:
        self.name, self._cluster = name, cluster
        self.state = State.EMPTY
        self.generation = 0
        self.members: dict[str, Member] = {}
        self.instances: dict[str, str] = {}
        self.leader: str | None = None
        self.protocol = ""
        self._preparing_until = 0.0
        self._ids = 0
        self.offsets: dict[Place, Commit] = {}
        self.pending: dict[int, dict[Place, Commit]] = {}
        self.epochs: dict[int, int] = {}
        self.history: list[tuple[Place, Commit]] = []
        """Every offset that became visible, in order."""
        self.overtaken: list[tuple[Place, Commit]] = []
        """Committed, but another one was written before that was decided."""
        self._written = 0
        cluster.loop.call_later(self.LOOK_S, self._look)

    def _now(self) -> float:
        return self._cluster.loop.time()

    # ---- membership

    def join(
        self,
        member_id: str,
        instance: str | None,
        session_s: float,
        rebalance_s: float,
        protocols: list[tuple[str, bytes]],
        answer: Answer,
    ) -> None:
        if not member_id:
            self._join_unknown(instance, session_s, rebalance_s, protocols, answer)
            return
        error = self._check(member_id, instance)
        if error:
            answer(Joined(error, member=member_id))
            return
        m = self.members[member_id]
        m.heard_s = self._now()
        same = m.protocols == protocols
        m.protocols, m.session_s, m.rebalance_s = protocols, session_s, rebalance_s
        if self.state is State.PREPARING:
            m.join = answer
            self._try_complete()
        elif (self.state is State.COMPLETING and same) or (self.state is State.STABLE and same and m.id != self.leader):
            answer(self._joined(m))
        else:
            m.join = answer
            self._prepare()

    def _join_unknown(
        self,
        instance: str | None,
        session_s: float,
        rebalance_s: float,
        protocols: list[tuple[str, bytes]],
        answer: Answer,
    ) -> None:
        self._ids += 1
        new = f"{instance or 'member'}-{self._ids}"
        if instance is not None and instance in self.instances:
            old_id = self.instances[instance]
            old = self.members.pop(old_id)
            for waiting in (old.join, old.sync):
                if waiting is not None:
                    kind = Joined(FENCED_INSTANCE) if waiting is old.join else Synced(FENCED_INSTANCE)
                    waiting(kind)
            m = Member(new, instance, session_s, rebalance_s, protocols, self._now(), old.assignment)
            self.members[new] = m
            self.instances[instance] = new
            was_leader = self.leader == old_id
            if was_leader:
                self.leader = new
            if self.state is State.STABLE and old.protocols == protocols:
                # The old leader's id is told, so that the new one does not assign again.
                leader = old_id if was_leader else self.leader or ""
                answer(Joined(0, self.generation, self.protocol, leader, new))
                return
            m.join = answer
            if self.state is State.PREPARING:
                self._try_complete()
            else:
                self._prepare()
            return
        m = Member(new, instance, session_s, rebalance_s, protocols, self._now())
        self.members[new] = m
        if instance is not None:
            self.instances[instance] = new
        m.join = answer
        if self.state is State.PREPARING:
            self._try_complete()
        else:
            self._prepare()

    def _check(self, member_id: str, instance: str | None) -> int:
        if instance is not None:
            known = self.instances.get(instance)
            if known is None:
                return UNKNOWN_MEMBER
            if known != member_id:
                return FENCED_INSTANCE
        return 0 if member_id in self.members else UNKNOWN_MEMBER

    def _prepare(self) -> None:
        waiting = []
        if self.state is State.COMPLETING:
            for m in self.members.values():
                if m.sync is not None:
                    waiting.append(m.sync)
                    m.sync, m.heard_s = None, self._now()
        self.state = State.PREPARING
        longest = max((m.rebalance_s for m in self.members.values()), default=0.0)
        until = self._preparing_until = self._now() + longest
        self._cluster.loop.call_later(longest, self._expire_join, until)
        for answer in waiting:
            answer(Synced(REBALANCING))  # who is told may join anew at once
        self._try_complete()

    def _expire_join(self, until: float) -> None:
        if self.state is State.PREPARING and until == self._preparing_until:
            self._complete()

    def _try_complete(self) -> None:
        if self.state is State.PREPARING and all(m.join is not None for m in self.members.values()):
            self._complete()

    def _complete(self) -> None:
        # Static members that have not come are kept until their session ends.
        for m in [m for m in self.members.values() if m.join is None and m.instance is None]:
            self._forget(m)
        if not self.members:
            self.state, self.leader = State.EMPTY, None
            self.generation += 1
            return
        joined = [m for m in self.members.values() if m.join is not None]
        if not joined:
            self._cluster.loop.call_later(1.0, self._expire_join, self._preparing_until)
            return
        if self.leader is None or self.leader not in self.members or self.members[self.leader].join is None:
            self.leader = joined[0].id
        self.generation += 1
        self.state = State.COMPLETING
        self.protocol = joined[0].protocols[0][0]
        for m in joined:
            answer, m.join = m.join, None
            m.heard_s = self._now()
            if answer is not None:
                answer(self._joined(m))

    def _joined(self, m: Member) -> Joined:
        members: tuple[tuple[str, str | None, bytes], ...] = ()
        if m.id == self.leader:
            members = tuple((o.id, o.instance, o.protocols[0][1]) for o in self.members.values())
        return Joined(0, self.generation, self.protocol, self.leader or "", m.id, members)

    def sync(
        self,
        generation: int,
        member_id: str,
        instance: str | None,
        assignments: list[tuple[str, bytes]],
        answer: Answer,
    ) -> None:
        error = self._check(member_id, instance)
        if not error and generation != self.generation:
            error = ILLEGAL_GENERATION
        if not error and self.state is State.PREPARING:
            error = REBALANCING
        if error:
            answer(Synced(error))
            return
        m = self.members[member_id]
        m.heard_s = self._now()
        if self.state is State.STABLE:
            answer(Synced(0, m.assignment))
            return
        m.sync = answer
        if member_id != self.leader:
            return
        given = dict(assignments)
        self.state = State.STABLE
        for o in self.members.values():
            o.assignment = given.get(o.id, b"")
            if o.sync is not None:
                waiting, o.sync = o.sync, None
                o.heard_s = self._now()
                waiting(Synced(0, o.assignment))

    def heartbeat(self, generation: int, member_id: str, instance: str | None = None) -> int:
        error = self._check(member_id, instance)
        if error:
            return error
        if generation != self.generation:
            return ILLEGAL_GENERATION
        self.members[member_id].heard_s = self._now()
        return REBALANCING if self.state is State.PREPARING else 0

    def leave(self, member_id: str, instance: str | None) -> int:
        if instance is not None and not member_id:
            member_id = self.instances.get(instance, "")
        error = self._check(member_id, instance)
        if not error:
            self._forget(self.members[member_id])
            self._less()
        return error

    def _forget(self, m: Member) -> None:
        del self.members[m.id]
        if m.instance is not None and self.instances.get(m.instance) == m.id:
            del self.instances[m.instance]
        for waiting, answer in ((m.join, Joined(UNKNOWN_MEMBER)), (m.sync, Synced(UNKNOWN_MEMBER))):
            if waiting is not None:
                waiting(answer)

    def _less(self) -> None:
        if self.state in (State.STABLE, State.COMPLETING):
            self._prepare()
        elif self.state is State.PREPARING:
            self._try_complete()

    def _look(self) -> None:
        self._cluster.loop.call_later(self.LOOK_S, self._look)
        if not self._cluster.coordinates("group", self.name):
            return
        now = self._now()
        late = [m for m in self.members.values() if m.join is None and m.sync is None and now - m.heard_s > m.session_s]
        for m in late:
            self._forget(m)
        if late:
            self._less()

    def loaded(self) -> None:
        """Another node coordinates now: sessions begin anew, whoever waited for an answer gets none."""
        for m in self.members.values():
            m.heard_s = self._now()
            m.join = m.sync = None
        if self.state in (State.PREPARING, State.COMPLETING):
            # What is not written yet is forgotten: a rebalance under way begins again.
            self.state = State.STABLE
            self._prepare()

    # ---- offsets

    def commit_in_transaction(
        self,
        producer: int,
        epoch: int,
        by: tuple[str, int, str],
        instance: str | None,
        offsets: list[tuple[Place, int, str]],
    ) -> dict[Place, int]:
        """TxnOffsetCommit v3: compares the membership, unless it is none (generation -1 and no member id)."""
        _, generation, member_id = by
        error = 0
        if generation >= 0 or member_id or instance is not None:
            error = self._check(member_id, instance)
            if not error and generation != self.generation:
                error = ILLEGAL_GENERATION
        if not error and epoch < self.epochs.get(producer, -1):
            error = INVALID_EPOCH
        found: dict[Place, int] = {}
        for place, offset, metadata in offsets:
            found[place] = error or (METADATA_TOO_LARGE if len(metadata) > METADATA_MAX else 0)
            if not found[place]:
                self._written += 1
                self.epochs[producer] = max(epoch, self.epochs.get(producer, -1))
                self.pending.setdefault(producer, {})[place] = Commit(offset, metadata, by, self._written)
        return found

    def commit(
        self, generation: int, member_id: str, offsets: list[tuple[Place, int, str]], by: str = "tool"
    ) -> dict[Place, int]:
        """OffsetCommit. Without a membership only while the group is empty."""
        error = 0
        if generation >= 0 or member_id:
            error = self._check(member_id, None)
            if not error and generation != self.generation:
                error = ILLEGAL_GENERATION
        elif self.state is not State.EMPTY:
            error = UNKNOWN_MEMBER
        for place, offset, metadata in offsets if not error else []:
            self._written += 1
            self._show(place, Commit(offset, metadata, (by, generation, member_id), self._written))
        return {place: error for place, _, _ in offsets}

    def set_by_tool(self, place: Place, offset: int, metadata: str) -> None:
        """A transaction without a membership, which nobody compares: also under a group at work."""
        self.commit_in_transaction(TOOL, 0, ("tool", -1, ""), None, [(place, offset, metadata)])
        self.mark(TOOL, 0, commit=True)

    def forget(self, place: Place, *, pending: bool) -> None:
        """Its topic is gone."""
        self.offsets.pop(place, None)
        for held in self.pending.values() if pending else ():
            held.pop(place, None)

    def mark(self, producer: int, epoch: int, commit: bool) -> None:
        self.epochs[producer] = max(epoch, self.epochs.get(producer, -1))
        held = self.pending.pop(producer, {})
        if commit:
            for place, c in held.items():
                known = self.offsets.get(place)
                if known is None or known.at < c.at:
                    self._show(place, c)
                else:
                    self.overtaken.append((place, c))

    def _show(self, place: Place, c: Commit) -> None:
        self.offsets[place] = c
        self.history.append((place, c))

    def fetch(self, place: Place, stable: bool) -> tuple[int, int, str]:
        """Error, offset, metadata."""
        if stable and any(place in held for held in self.pending.values()):
            return UNSTABLE, -1, ""
        c = self.offsets.get(place)
        return (0, c.offset, c.metadata) if c is not None else (0, -1, "")


class Groups:
    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self._cluster, self._rng = cluster, rng
        self.all: dict[str, Group] = {}

    def group(self, name: str) -> Group:
        if name not in self.all:
            self.all[name] = Group(name, self._cluster)
        return self.all[name]
