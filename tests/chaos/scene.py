"""The players of a chaos run: workers that die, sleep and come back, the broker, and what is counted of them all."""

from __future__ import annotations

import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from services.broker import Broker
from tests.kafka.harness import Topics, Worker, eventually
from tests.kafka.transactions import Open, Transactions, offsets_partition, stop_inside

BROKER = {
    # Short sessions, and transactions that are over soon after their time: else a run is mostly waiting.
    "group.min.session.timeout.ms": "1000",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
}
WORKER: dict[str, Any] = {
    # Polls are small, so that transactions are many and whatever happens finds several polls on their way.
    "max_steps": 200,
    # Shorter ones put workers out of the group on a machine that is busy with other things.
    "session_timeout_ms": 3000,
    "heartbeat_interval_ms": 300,
    "transaction_timeout_ms": 8000,
    # A worker's own patience outlasts its sleep: what stops it then is the broker, not a clock that went on.
    "request_timeout_ms": 30_000,
}
TICK_S = 0.05
QUIET_S = 0.5
"""A busy broker has read within this what was sent to it, an EndTxn say."""
ASLEEP_MAX_S = 30.0
"""Longer than a session, a transaction's time-out and a takeover together."""


@dataclass(slots=True)
class Sleeper:
    """A worker that stands still. It is a zombie once other workers run all there is."""

    worker: Worker
    since: float
    open: Open | None
    """The transaction that it stands still in."""


class Scene:
    """Up to ``regulars`` workers that should always be there, and ``guests`` that come and go."""

    def __init__(
        self, broker: Broker, topics: Topics, model: Path, rng: random.Random, regulars: int, guests: int, **more: Any
    ) -> None:
        self.broker, self.topics, self.rng = broker, topics, rng

        def worker(name: str) -> Worker:
            # Each as on a machine of its own.
            directory = {"state_directory": f"{more['state_directory']}/{name}"} if "state_directory" in more else {}
            return topics.worker(model, name, **WORKER | more | directory)

        self.regulars = [worker(f"worker-{i}") for i in range(regulars)]
        self.guests = [worker(f"guest-{i}") for i in range(guests)]
        self.counts: Counter[str] = Counter()
        self.past: list[tuple[str, dict[str, Any]]] = []
        """What lives that are over have said: worker and line."""
        self.transactions = Transactions(broker.address)
        self.partitions = range(topics.partitions)
        group = f"{topics.input}-g"
        self._places = {
            topics.output: self.partitions,
            topics.changelog: self.partitions,
            "__consumer_offsets": [offsets_partition(group)],
        }
        self._sleepers: list[Sleeper] = []
        self._returning: list[tuple[float, Worker]] = []

    # ---- who is there

    @property
    def everybody(self) -> Iterator[Worker]:
        yield from self.regulars
        yield from self.guests

    @property
    def sleeping(self) -> list[Worker]:
        return [s.worker for s in self._sleepers]

    def serving(self) -> list[Worker]:
        """Awake, and with partitions of its own."""
        return [w for w in self.awake() if _held(w).assigned]

    def awake(self) -> list[Worker]:
        return [w for w in self.everybody if w.alive and w not in self.sleeping]

    # ---- time goes on

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            self._tick()
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(TICK_S, left))

    def _tick(self) -> None:
        now = time.monotonic()
        for at, worker in [*self._returning]:
            if now >= at:
                self._returning.remove((at, worker))
                self.start(worker)
        for worker in self.everybody:
            expected = any(worker is w for _, w in self._returning)
            if not expected and worker.lines and not worker.alive:
                code = worker.ended()
                if "no broker answers" in worker.log and not _held(worker).generation:
                    self.counts["started without a broker"] += 1
                elif worker in self.regulars or code not in (0, -signal.SIGTERM):  # guests are told to leave
                    self.counts["ended by themselves"] += 1
                    print(f"{worker.worker_id} ended by itself, exit code {code}\n{worker.log[-1500:]}")
                self.bury(worker)
                if worker in self.regulars:
                    self.start(worker)
        moved = bool(self._sleepers) and self._moved()
        for sleeper in [*self._sleepers]:
            if moved or now - sleeper.since > ASLEEP_MAX_S:
                self._wake(sleeper, moved)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether it came to hold while time went on."""
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                return False
            self.wait(TICK_S)
        return True

    def start(self, worker: Worker) -> None:
        worker.start()
        self.counts["starts"] += 1

    def bury(self, worker: Worker) -> None:
        """Counts what a life that is over has said."""
        for line in worker.lines:
            self.counts["takeovers"] += " runs from offset " in line["message"]
            self.counts["refused by the group"] += "refused the membership" in line["message"]
            self.counts["failed commits"] += line["message"].startswith("commit failed")
        self.past += [(worker.worker_id, line) for line in worker.lines]
        worker.lines = []

    def note(self, worker: Worker) -> None:
        """Adds a life's counters, before it ends."""
        if not any("pages at" in line["message"] for line in worker.lines):
            return  # it is still starting
        for name, value in worker.metrics().items():
            if name == "eddy_replayed_records_total":
                self.counts["replayed"] += int(value)
            elif name == "eddy_skipped_records_total":
                self.counts["skipped"] += int(value)

    # ---- deaths

    def kill(self, worker: Worker, away_s: float) -> None:
        """SIGKILL; it is back after so many seconds."""
        self.note(worker)
        worker.kill()
        self.counts["kills"] += 1
        self.bury(worker)
        if worker in self.regulars:
            self._returning.append((time.monotonic() + away_s, worker))

    # ---- sleep

    def sleep(self, worker: Worker) -> None:
        """SIGSTOP wherever it is, until others run all that it had."""
        worker.process.send_signal(signal.SIGSTOP)
        self._sleepers.append(Sleeper(worker, time.monotonic(), None))

    def sleep_inside(self, worker: Worker, *, before_records: bool) -> bool:
        """SIGSTOP inside an open transaction, until others run all that it had; False: not to be had just now."""
        stood = stop_inside(worker, self.transactions, self._places, before_records=before_records, timeout_s=3)
        if stood is None:
            return False
        self._sleepers.append(Sleeper(worker, time.monotonic(), stood))
        return True

    def _moved(self) -> bool:
        """Whether those who are awake run all partitions, in the group's newest generation."""
        held = [_held(worker) for worker in self.awake()]
        newest = max((h.generation for h in held), default=0)
        running = [h.running for h in held if h.generation == newest]
        return frozenset().union(*running) >= set(self.partitions)

    def _wake(self, sleeper: Sleeper, moved: bool) -> None:
        self._sleepers.remove(sleeper)
        still_open = sleeper.open is not None and (
            self.transactions.ongoing().get(sleeper.worker.lane) == sleeper.open.producer_id
        )
        sleeper.worker.process.send_signal(signal.SIGCONT)
        if not moved:
            self.counts["woken too early"] += 1
            print(f"{sleeper.worker.worker_id} slept, and for long nobody took what it had")
            for worker in self.awake():
                print(worker.log[-3000:])
            return
        self.counts["zombies"] += 1
        if sleeper.open is None:
            self.counts["zombies stopped anywhere"] += 1
        elif still_open:
            self.counts["zombies inside an open transaction"] += 1
        else:
            self.counts["zombies whose transaction was ended for them"] += 1

    # ---- the broker

    def restart_broker(self, *, kill: bool) -> None:
        """It goes, by SIGTERM or SIGKILL, and comes back.

        Not between a transaction's decision and its markers: a single Kafka 4.4 that is killed there forgets the
        markers when it comes back (it takes partitions without a leader for deleted ones), and the partitions hang for
        good. So nobody's transaction is left to its time-out, all workers stand still until nothing is in that state,
        and go on when the broker is away.
        """
        assert self.wait_for(lambda: not self._left_open(), 30), f"transactions stay open: {self._left_open()}"
        stopped = self.awake()
        for worker in stopped:
            worker.process.send_signal(signal.SIGSTOP)
        self._await_decided()
        if kill:
            self.broker.kill()
        else:
            self.broker.terminate()
            eventually(lambda: self.broker.pid is None, 30, "the broker ends")
        for worker in stopped:
            worker.process.send_signal(signal.SIGCONT)
        self.broker.restart()
        self.transactions = Transactions(self.broker.address)
        self.counts["broker killed" if kill else "broker stopped"] += 1

    def _await_decided(self) -> None:
        """All workers stand still: what they had sent is read, and no decision waits for its markers any more."""
        end, quiet_since = time.monotonic() + 30, time.monotonic()
        while time.monotonic() < quiet_since + QUIET_S:
            assert time.monotonic() < end, "transactions that are decided do not end"
            if self.transactions.in_state("PrepareCommit", "PrepareAbort"):
                quiet_since = time.monotonic()

    def _left_open(self) -> set[str]:
        """Lanes with an open transaction whose worker is not awake to end it."""
        return self.transactions.ongoing().keys() - {worker.lane for worker in self.awake()}

    # ---- the end

    def heal(self) -> None:
        """Everybody awake, guests gone, regulars there."""
        self.wait_for(lambda: not self._sleepers, ASLEEP_MAX_S + 1)
        for _, worker in self._returning:
            self.start(worker)
        self._returning = []
        for worker in self.guests:
            if worker.alive:
                worker.terminate()
        assert self.wait_for(lambda: not any(w.alive for w in self.guests), 60), "guests do not leave"
        # Who has just started again does not hear a SIGTERM yet.
        assert self.wait_for(lambda: all(_held(w).generation for w in self.regulars), 60), "regulars do not come back"

    def close(self) -> None:
        """Drains who is left."""
        for worker in self.regulars:
            self.note(worker)
            worker.terminate()
        for worker in self.regulars:
            assert worker.ended(60) == 0, worker.log
            self.bury(worker)


class Held(NamedTuple):
    """What a worker has said it has."""

    generation: int
    assigned: frozenset[int]
    running: frozenset[int]


def _held(worker: Worker) -> Held:
    """By its log, which also those leave that do not answer."""
    generation, assigned, running = 0, frozenset[int](), set[int]()
    for line in list(worker.lines):
        message = line["message"]
        if found := re.match(r"assigned partitions \[(.*)\], generation (\d+)", message):
            generation, assigned = int(found[2]), frozenset(map(int, re.findall(r"\d+", found[1])))
            running &= assigned
        elif found := re.match(r"partition (\d+) (runs from offset|is taken over again|stops)", message):
            if found[2].startswith("runs"):
                running.add(int(found[1]))
            else:
                running.discard(int(found[1]))
    return Held(generation, assigned, frozenset(running))
