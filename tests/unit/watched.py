"""A transport in memory that holds every part against the rules: what is visible, done, saved and to be replayed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.beside import Beside
from pipeline.columns import Membership, Part, Records, as_list
from pipeline.config import Config
from pipeline.mark import MARK_BYTES_MAX, Mark, contains
from pipeline.metrics import Metrics
from pipeline.model_file import load_graph, read_contract
from pipeline.streams.snapshots import APPLIED
from pipeline.transport.base import Written
from pipeline.transport.memory import MemoryBroker, MemoryTransport
from pipeline.worker import Worker


class Log:
    """What a group's parts have made visible of one topic's partitions, across all workers."""

    def __init__(self, broker: MemoryBroker, *, every: int = 1) -> None:
        self.broker = broker
        self.every = every
        self.marks: dict[int, list[Mark]] = {}
        self.applied: dict[int, dict[bytes, int]] = {}
        """Partition -> stream -> A of its newest snapshot, ended ones included."""
        self.shown: set[tuple[int, int]] = set()
        """(partition, offset) of records whose outputs or dead letters are out."""
        self.tombstones: list[tuple[int, bytes]] = []
        self.exactly_once = True
        self._commits = 0

    def add(self, part: Part) -> None:
        """Raises AssertionError naming the rule that the part breaks."""
        p = part.partition
        mark = Mark.decode(part.metadata)
        assert mark is not None
        assert len(part.metadata) <= MARK_BYTES_MAX, "X2"
        assert mark.committed == part.committed, "X2"
        marks = self.marks.setdefault(p, [])
        if marks:
            assert mark.committed >= marks[-1].committed, "C never falls"
            assert mark.replay_from >= marks[-1].replay_from, "R never falls (X6)"
            before = marks[-1].done
            assert mark.tag not in {m.tag for m in marks}, "a tag names one part (X2)"
        else:
            before = []
        marks.append(mark)
        done_before = offsets_in(before, mark.done[-1][1])
        assert done_before <= offsets_in(mark.done, mark.done[-1][1]), "what is done stays done"
        for records in (part.outputs, part.dead_letters):
            for offset in sources(records):
                assert contains(mark.done, np.array([offset]))[0], "what is shown is done once it is visible (X2)"
                if self.exactly_once:
                    assert offset not in done_before, f"record {offset} of partition {p} is shown again (X8)"
                self.shown.add((p, offset))
        applied = self.applied.setdefault(p, {})
        for key, value in zip(part.snapshots.keys, as_list(part.snapshots.values)):
            if value is None:
                if not key and len(marks) == 1:
                    continue  # it says that the group has begun
                a = applied.pop(key)
                assert mark.replay_from > a, "no replay comes to a stream that is forgotten (X12)"
                self.tombstones.append((p, key))
                continue
            a = int.from_bytes(value[APPLIED], "little", signed=True)
            assert a >= applied.get(key, -1), "a snapshot is newer than those before it (X5)"
            assert contains(mark.done, np.array([a]))[0], "all that a snapshot includes is done (X5)"
            applied[key] = a
        self._commits += 1
        if self._commits % self.every == 0:
            assert mark.replay_from <= self.lowest_unsaved(p, mark), "R (X6)"

    def lowest_unsaved(self, partition: int, mark: Mark) -> int:
        """R as the rule says it: min(C, lowest done record that no snapshot of its stream includes). A stream that was
        forgotten needs none of its records before R."""
        entries = self.broker.topics["in"][partition][mark.replay_from : mark.done[-1][1]]
        applied = self.applied.get(partition, {})
        offsets = np.arange(mark.replay_from, mark.replay_from + len(entries))
        done = contains(mark.done, offsets)
        for offset, entry in zip(offsets[done].tolist(), np.array(entries, object)[done].tolist()):
            if entry.key is not None and offset > applied.get(entry.key, -1):
                return min(mark.committed, offset)
        return mark.committed


def offsets_in(runs: Sequence[tuple[int, int]], until: int) -> set[int]:
    return {o for first, end in runs for o in range(max(0, first), min(end, until))}


def sources(records: Records) -> list[int]:
    """Input offsets, from the header ``eddy-source``."""
    for name, column in records.columns:
        if name == "eddy-source":
            return np.ascontiguousarray(column[:, 4:]).view(">i8")[:, 0].tolist()
    return []


class Watched(MemoryTransport):
    """Commits go into a ``Log``."""

    def __init__(self, broker: MemoryBroker, config: Config, log: Log) -> None:
        super().__init__(broker, config)
        self.log = log

    async def commit(self, membership: Membership, parts: Sequence[Part]) -> dict[int, Written]:
        written = await super().commit(membership, parts)
        for part in parts:
            self.log.add(part)
        return written


def made_watched(
    log: Log, file: Path, worker_id: str = "w", kind: type[Watched] = Watched, **settings
) -> tuple[Worker, Watched]:
    config = Config(model=str(file), input="in", output="out", group="g", worker_id=worker_id, **settings)
    model = load_graph(file)
    contract = read_contract(model, str(file))
    transport = kind(log.broker, config, log)
    metrics = Metrics(contract.name, contract.model_version)
    return Worker(config, transport, model, contract, metrics, Beside(file.parent)), transport


async def killed(task: asyncio.Task[None]) -> None:
    """No drain, no leave: as dead as it gets inside one process. What it failed with is the test's."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and task.exception() is not None:
        task.result()
