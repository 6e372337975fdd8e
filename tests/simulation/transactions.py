"""Transaction coordinators: epochs, fencing, time-outs; the decision and each marker are events of their own."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from tests.simulation.log import Place

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

INVALID_EPOCH, INVALID_STATE, INVALID_PRODUCER_MAPPING, INVALID_TIMEOUT, CONCURRENT = 47, 48, 49, 50, 51
NOT_ATTEMPTED, FENCED = 55, 90
UNKNOWN_TOPIC = 3


class State(Enum):
    EMPTY = "Empty"
    ONGOING = "Ongoing"
    PREPARE_COMMIT = "PrepareCommit"
    PREPARE_ABORT = "PrepareAbort"
    COMPLETE_COMMIT = "CompleteCommit"
    COMPLETE_ABORT = "CompleteAbort"


PREPARED = (State.PREPARE_COMMIT, State.PREPARE_ABORT)


@dataclass(slots=True)
class Transaction:
    """Of one transactional id. ``groups``: whose offsets are in it."""

    id: str
    producer: int
    epoch: int
    timeout_s: float
    state: State = State.EMPTY
    places: set[Place] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)
    began_s: float = 0.0
    number: int = 0
    """Which of the id's transactions this is."""
    left: int = 0
    """Markers not yet written."""


class Transactions:
    """See the module. ``check_s``: between two looks for transactions past their time-out."""

    def __init__(self, cluster: Cluster, rng: random.Random, check_s: float, marker_s: Callable[[], float]) -> None:
        self._cluster, self._rng, self._check_s, self._marker_s = cluster, rng, check_s, marker_s
        self.all: dict[str, Transaction] = {}
        self._producers = 1000
        cluster.loop.call_later(check_s, self._look)

    def next_producer(self) -> int:
        self._producers += 1
        return self._producers

    def _now(self) -> float:
        return self._cluster.loop.time()

    # ---- requests

    def init(self, id: str, timeout_ms: int) -> tuple[int, int, int]:
        """Error, producer and epoch. An open transaction is fenced and aborted first: CONCURRENT until that is over."""
        if timeout_ms > self._cluster.transaction_timeout_max_ms:
            return INVALID_TIMEOUT, -1, -1
        t = self.all.get(id)
        if t is None:
            t = self.all[id] = Transaction(id, self.next_producer(), 0, timeout_ms / 1e3)
            return 0, t.producer, t.epoch
        if t.state in PREPARED:
            return CONCURRENT, -1, -1
        if t.state is State.ONGOING:
            t.epoch += 1
            self._decide(t, commit=False)
            return CONCURRENT, -1, -1
        t.epoch += 1
        t.timeout_s = timeout_ms / 1e3
        t.state = State.EMPTY
        return 0, t.producer, t.epoch

    def _known(self, id: str, producer: int, epoch: int) -> tuple[int, Transaction | None]:
        t = self.all.get(id)
        if t is None or t.producer != producer:
            return INVALID_PRODUCER_MAPPING, None
        if t.epoch != epoch:
            return INVALID_EPOCH, None
        return 0, t

    def _enter(self, id: str, producer: int, epoch: int) -> tuple[int, Transaction | None]:
        error, t = self._known(id, producer, epoch)
        if t is None:
            return error, None
        if t.state in PREPARED:
            return CONCURRENT, None
        return 0, t

    def _begin(self, t: Transaction) -> None:
        if t.state is not State.ONGOING:
            t.state = State.ONGOING
            t.places, t.groups = set(), set()
            t.began_s = self._now()
            t.number += 1

    def add_places(self, id: str, producer: int, epoch: int, places: list[Place]) -> dict[Place, int]:
        unknown = [p for p in places if p not in self._cluster.logs]
        if unknown:
            return {p: UNKNOWN_TOPIC if p in unknown else NOT_ATTEMPTED for p in places}
        error, t = self._enter(id, producer, epoch)
        if t is not None:
            self._begin(t)
            t.places.update(places)
        return dict.fromkeys(places, error)

    def add_group(self, id: str, producer: int, epoch: int, group: str) -> int:
        error, t = self._enter(id, producer, epoch)
        if t is not None:
            self._begin(t)
            t.groups.add(group)
        return error

    def end(self, id: str, producer: int, epoch: int, commit: bool) -> int:
        error, t = self._known(id, producer, epoch)
        if t is None:
            return error
        if t.state is State.ONGOING:
            self._decide(t, commit)
            return 0
        done, prepared = (
            (State.COMPLETE_COMMIT, State.PREPARE_COMMIT) if commit else (State.COMPLETE_ABORT, State.PREPARE_ABORT)
        )
        if t.state is done:
            return 0
        return CONCURRENT if t.state is prepared else INVALID_STATE

    def verify_place(self, id: str, producer: int, epoch: int, place: Place) -> int:
        """Whether records may be written there now: the leader asks before it takes the first."""
        error, t = self._known(id, producer, epoch)
        if t is None:
            return error
        return 0 if t.state is State.ONGOING and place in t.places else INVALID_STATE

    def verify_group(self, id: str, producer: int, epoch: int, group: str) -> int:
        error, t = self._known(id, producer, epoch)
        if t is None:
            return error
        return 0 if t.state is State.ONGOING and group in t.groups else INVALID_STATE

    # ---- decisions and markers

    def _decide(self, t: Transaction, commit: bool) -> None:
        """The decision is durable; the markers follow, each in its own time."""
        t.state = State.PREPARE_COMMIT if commit else State.PREPARE_ABORT
        places, groups = sorted(t.places), sorted(t.groups)
        t.left = len(places) + len(groups)
        if not t.left:
            self._complete(t, commit)
        for place in places:
            self._later(lambda place=place: self._mark_place(t, place, commit))
        for group in groups:
            self._later(lambda group=group: self._mark_group(t, group, commit))

    def _later(self, write: Callable[[], bool]) -> None:
        def attempt() -> None:
            if not write():
                self._cluster.loop.call_later(0.05, attempt)

        self._cluster.loop.call_later(self._marker_s(), attempt)

    def _mark_place(self, t: Transaction, place: Place, commit: bool) -> bool:
        if not self._cluster.leads(place):
            return False
        log = self._cluster.logs.get(place)
        if log is not None:
            log.mark(t.producer, t.epoch, commit, self._cluster.now_ms())
        self._marked(t, commit)
        return True

    def _mark_group(self, t: Transaction, group: str, commit: bool) -> bool:
        if not self._cluster.coordinates("group", group):
            return False
        self._cluster.groups.group(group).mark(t.producer, t.epoch, commit)
        self._marked(t, commit)
        return True

    def _marked(self, t: Transaction, commit: bool) -> None:
        t.left -= 1
        if not t.left:
            self._complete(t, commit)

    @staticmethod
    def _complete(t: Transaction, commit: bool) -> None:
        t.state = State.COMPLETE_COMMIT if commit else State.COMPLETE_ABORT

    def _look(self) -> None:
        now = self._now()
        for t in self.all.values():
            if t.state is State.ONGOING and now - t.began_s > t.timeout_s and self._cluster.coordinates("txn", t.id):
                t.epoch += 1
                self._decide(t, commit=False)
        self._cluster.loop.call_later(self._check_s, self._look)
