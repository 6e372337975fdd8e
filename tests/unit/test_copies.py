"""Local copies beside a changelog (X14): a takeover that reads them gets what it would get from the changelog."""

from __future__ import annotations

import asyncio
import errno
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from pipeline import copies as rooms
from pipeline.columns import Changelog, Membership, Part, Records
from pipeline.config import Config
from pipeline.copies import Copies
from pipeline.errors import ConfigError, OutcomeUnknown
from pipeline.metrics import Metrics
from pipeline.standby import Standbys, standby_for
from pipeline.streams.local_copy import LocalCopy
from pipeline.streams.snapshots import Newest
from pipeline.transport.base import Written
from pipeline.transport.memory import MemoryBroker, MemoryTransport
from tests.models import rolling_hash
from tests.unit.test_worker import check, counted, made, new_broker, produce_steps, until

LOG = "g-in-changelog"
ROW = 3
HEADER = 32
PARTITIONS = 2


def value(text: str) -> bytes:
    """As long as a snapshot of a row of three bytes; nobody here looks into it."""
    return text.encode().ljust(HEADER + ROW, b".")


class Observed(MemoryTransport):
    """Tells from where the changelog was read."""

    def __init__(self, broker: MemoryBroker, config: Config) -> None:
        super().__init__(broker, config)
        self.starts: list[int] = []
        self.first: Callable[[], None] = lambda: None
        self.before: Callable[[], None] = lambda: None
        """Called when the next reading begins, and when it has come to its end, before it returns."""
        self.failures: list[Exception] = []
        self.hidden = False
        """All that is in it was aborted."""

    async def changelog(self, partition: int, start: int = 0) -> AsyncIterator[Changelog]:
        self.starts.append(start)
        if self.failures:
            raise self.failures.pop()
        first, self.first = self.first, lambda: None
        first()
        async for stretch in super().changelog(partition, start):
            yield Changelog([], [], np.empty(0, np.int64), stretch.next_offset) if self.hidden else stretch
        before, self.before = self.before, lambda: None
        before()


class World:
    """A changelog, and copies of it in a directory."""

    def __init__(self, directory: Path | None) -> None:
        self.broker = MemoryBroker()
        for topic in ("in", "out"):
            self.broker.create(topic, PARTITIONS)
        self.broker.create(LOG, PARTITIONS)
        self.directory = directory
        self.metrics = Metrics("m", "1")
        self.begin()

    def begin(self, worker_id: str = "w") -> None:
        """A new process."""
        self.transport = Observed(self.broker, Config(input="in", output="out", group="g", worker_id=worker_id))
        self.copies = Copies(self.directory, "g", LOG, self.transport, self.metrics)

    async def again(self) -> None:
        await self.copies.close()
        self.begin()

    def written(self, *entries: tuple[bytes, bytes | None], partition: int = 0) -> Written:
        """Committed by whoever it may be."""
        offsets = [self.broker.produce(LOG, partition, key, value) for key, value in entries]
        self.broker.produce(LOG, partition, b"marker", None)
        return Written(offsets[0], offsets[-1] + 1)

    def commits(self, *entries: tuple[bytes, bytes | None], told: bool = True) -> None:
        """Committed by this worker."""
        at = self.written(*entries)
        records = Records([k for k, _ in entries], [v for _, v in entries], np.zeros(len(entries), np.int64))
        self.copies.saved(part_of(records), at if told else None)

    async def restored(self, partition: int = 0) -> dict[bytes, bytes]:
        return contents(await self.copies.restore(partition, ROW))

    def logged(self, partition: int = 0) -> dict[bytes, bytes]:
        """What the changelog itself says."""
        newest: dict[bytes, bytes] = {}
        for p, _, entry in self.broker.records(LOG):
            if p == partition:
                newest.pop(entry.key, None)
                if entry.value is not None:
                    newest[entry.key] = entry.value
        return newest


def part_of(snapshots: Records) -> Part:
    """Committed as soon as it was frozen."""
    return Part(0, b"", 0, "", snapshots=snapshots, frozen_ms=rooms._now_ms())


def contents(newest: Newest) -> dict[bytes, bytes]:
    keys, rows = newest.columns()
    return dict(zip(keys, [row.tobytes() for row in rows])) | newest.others


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_restart_reads_only_what_came_after_the_copy(world: World) -> None:
    world.written((b"a", value("1")), (b"b", value("1")))
    assert await world.restored() == {b"a": value("1"), b"b": value("1")}
    world.copies.assigned([0])
    world.commits((b"b", value("2")), (b"c", b"ended"))
    world.commits((b"a", None))
    await world.again()
    world.written((b"d", value("3")))
    assert await world.restored() == world.logged() == {b"b": value("2"), b"c": b"ended", b"d": value("3")}
    assert world.transport.starts == [7], "behind the last part, where only its marker was not yet passed"


async def test_without_a_directory_everything_is_read_from_the_changelog() -> None:
    world = World(None)
    world.written((b"a", value("1")))
    assert await world.restored() == await world.restored() == world.logged()
    assert world.transport.starts == [0, 0]


async def test_another_takeover_of_the_same_process_reads_the_copy_again(world: World) -> None:
    world.written((b"a", value("1")))
    await world.restored()
    world.commits((b"a", value("2")))
    assert await world.restored() == world.logged()
    assert world.transport.starts == [0, 3]


async def test_a_changelog_that_was_made_anew_has_no_copy(world: World) -> None:
    world.written(*((b"%d" % i, value("old")) for i in range(9)))
    await world.restored()
    await world.copies.close()
    anew = World(world.directory)
    anew.written((b"a", value("new")))
    assert await anew.restored() == {b"a": value("new")}
    assert anew.transport.starts == [0]


async def test_a_copy_that_is_longer_than_its_log_is_void(world: World) -> None:
    """A cluster that was restored from a backup has the topic's id and fewer records."""
    world.written((b"a", value("1")))
    world.written((b"a", value("2")))
    await world.restored()
    await world.again()
    del world.broker.topics[LOG][0][2:]
    assert await world.restored() == {b"a": value("1")}
    assert world.transport.starts == [4, 0]
    await world.again()
    assert await world.restored() == {b"a": value("1")}
    assert world.transport.starts == [2]


async def test_a_copy_older_than_half_the_life_of_a_tombstone_is_void(world: World, monkeypatch) -> None:
    """What it says of a stream that was forgotten meanwhile is taken back by nothing."""
    world.written((b"gone", value("1")))
    await world.restored()
    await world.again()
    world.written((b"gone", None), (b"a", value("1")))
    log = world.broker.topics[LOG][0]
    log[:3] = [log[1]] * 3  # the tombstone is compacted away, offsets stay
    later = rooms._now_ms() + 43_200_000 + 60_000
    monkeypatch.setattr(rooms, "_now_ms", lambda: later)
    assert await world.restored() == {b"a": value("1")}
    assert world.transport.starts == [0]


async def test_a_part_that_nobody_knows_the_place_of_is_read_from_the_changelog(world: World) -> None:
    world.copies.assigned([0])
    await world.restored()
    tending = asyncio.create_task(world.copies.tend())
    world.commits((b"a", value("1")), told=False)
    world.commits((b"b", value("1")))  # behind a gap
    # While it catches up, commits go on.
    world.transport.first = lambda: world.commits((b"x", value("1")))
    world.transport.before = lambda: world.commits((b"c", value("1")))
    await eventually(lambda: world.transport.starts == [0, 0])
    tending.cancel()
    world.commits((b"d", value("1")))
    await world.again()
    assert await world.restored() == world.logged()
    assert world.transport.starts == [9], "all is in it"


async def test_a_part_that_a_takeover_has_read_is_in_the_copy_once(world: World) -> None:
    """The transaction had succeeded, and the takeover was quicker than who waited for it."""
    await world.restored()
    at = world.written((b"a", value("1")))
    assert await world.restored() == world.logged()
    world.copies.saved(part_of(Records([b"a"], [value("1")], np.zeros(1, np.int64))), at)
    world.commits((b"b", value("1")))
    await world.again()
    assert await world.restored() == world.logged()
    assert world.transport.starts == [3]


async def test_a_part_that_is_missed_while_catching_up_is_not_passed_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "TEND_S", 0.01)
    world.copies.assigned([0])
    await world.restored()
    world.commits((b"a", value("1")), told=False)
    world.transport.before = lambda: world.commits((b"b", value("1")), told=False)
    tending = asyncio.create_task(world.copies.tend())
    await eventually(lambda: world.transport.starts == [0, 0, 2])
    tending.cancel()
    world.commits((b"c", value("1")))
    await world.again()
    assert await world.restored() == world.logged()


async def test_catching_up_waits_for_a_broker_that_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "TEND_S", 0.01)
    world.copies.assigned([0])
    await world.restored()
    world.transport.failures = [OutcomeUnknown("away"), OutcomeUnknown("away")]
    world.commits((b"a", value("1")), told=False)
    tending = asyncio.create_task(world.copies.tend())
    await eventually(lambda: len(world.transport.starts) == 4)
    tending.cancel()
    world.commits((b"b", value("1")))
    await world.again()
    assert await world.restored() == world.logged()
    assert world.transport.starts == [3]


async def test_what_was_not_heard_of_for_long_asks_the_changelog(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "TEND_S", 0.01)
    world.copies.assigned([0])
    await world.restored()
    tending = asyncio.create_task(world.copies.tend())
    await asyncio.sleep(0.05)
    assert world.transport.starts == [0]
    monkeypatch.setattr(rooms, "CONFIRM_S", 0.02)
    await eventually(lambda: len(world.transport.starts) > 2)
    tending.cancel()


async def test_a_copy_that_another_process_has_is_done_without_until_it_is_let_go(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "TEND_S", 0.01)
    world.written((b"a", value("1")))
    await world.restored()
    other = Copies(world.directory, "g", LOG, world.transport, world.metrics)
    other.assigned([0])
    assert contents(await other.restore(0, ROW)) == world.logged()
    assert world.transport.starts == [0, 0]
    world.copies.assigned([])  # moved to the other one
    tending = asyncio.create_task(other.tend())
    await eventually(lambda: world.transport.starts == [0, 0, 2])
    tending.cancel()
    await other.close()


async def test_superseded_records_are_dropped_beside_the_work(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "TEND_S", 0.001)
    monkeypatch.setattr("pipeline.streams.local_copy.SLACK_BYTES", 20_000)
    world.copies.assigned([0])
    await world.restored()
    tending = asyncio.create_task(world.copies.tend())
    (file,) = world.directory.iterdir() if world.directory else ()
    for i in range(400):
        world.commits((b"a", b"%d" % i + bytes(1000)), (b"b", value(str(i))))
        await asyncio.sleep(0.001)
    await eventually(lambda: file.stat().st_size < 50_000)
    tending.cancel()
    await world.again()
    assert await world.restored() == world.logged()


async def test_a_full_disk_costs_the_copy_and_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.copies.assigned([0, 1])
    world.written((b"a", value("1")), partition=1)
    for partition in (0, 1):
        await world.restored(partition)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr("os.pwritev", full)
        world.commits((b"a", value("1")))
        world.commits((b"a", value("2")))
        m.setattr(rooms, "TEND_S", 0.001)
        tending = asyncio.create_task(world.copies.tend())
        await asyncio.sleep(0.05)
        tending.cancel()
    assert caplog.text.count("No space left on device") == 1
    assert b'kind="local-copy-failed",model="m",version="1"} 1.0' in generate_latest(world.metrics.registry)
    assert await world.restored() == world.logged()
    assert await world.restored(1) == world.logged(1)
    assert world.transport.starts == [0, 0, 0, 2], "the other partition's copy is there"


async def test_a_takeover_that_is_broken_off_leaves_a_copy_that_another_may_read(world: World) -> None:
    world.written(*((b"%d" % i, value("1")) for i in range(5000)))
    await world.restored()
    for _ in range(20):
        task = asyncio.create_task(world.restored())
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()
        world.written((b"x", value("2")))
        assert await world.restored() == world.logged()


async def test_a_copy_that_is_let_go_while_it_is_read_is_free_as_soon_as_that_is_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The partition is taken away in the middle of its takeover."""
    world.copies.assigned([0])
    world.written((b"a", value("1")))
    await world.restored()
    reads, goes_on = threading.Event(), threading.Event()
    read = LocalCopy.read

    def slow(copy: LocalCopy) -> Iterator[Changelog]:
        reads.set()
        assert goes_on.wait(10)
        return read(copy)

    monkeypatch.setattr(LocalCopy, "read", slow)
    taking_over = asyncio.create_task(world.restored())
    await eventually(reads.is_set)
    world.copies.assigned([])
    taking_over.cancel()
    await asyncio.sleep(0.05)
    assert not taking_over.done(), "the thread has the file"
    goes_on.set()
    await asyncio.wait([taking_over])
    assert taking_over.cancelled()
    other = Copies(world.directory, "g", LOG, world.transport, world.metrics)
    world.transport.starts.clear()
    assert contents(await other.restore(0, ROW)) == world.logged()
    assert world.transport.starts == [2]
    await other.close()


async def test_a_commit_without_snapshots_keeps_the_copy_young(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.restored()
    (file,) = world.directory.iterdir() if world.directory else ()
    later = rooms._now_ms() + 3_600_000
    monkeypatch.setattr(rooms, "_now_ms", lambda: later)
    world.copies.saved(part_of(Records.none()), None)
    assert file.stat().st_mtime * 1000 == later


async def test_a_copy_whose_process_stood_still_for_long_is_void(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is open, and has heard of no commit since: others may have ended streams meanwhile, which nothing tells."""
    world.copies.assigned([0])
    world.written((b"gone", value("1")))
    await world.restored()
    world.commits((b"b", value("1")))
    world.written((b"gone", None), (b"a", value("1")))
    log = world.broker.topics[LOG][0]
    log[:5] = [log[2]] * 5  # the tombstone, and what it ended, are compacted away, offsets stay
    later = rooms._now_ms() + 43_200_000 + 60_000
    monkeypatch.setattr(rooms, "_now_ms", lambda: later)
    assert await world.restored() == world.logged() == {b"a": value("1"), b"b": value("1")}
    assert world.transport.starts == [0, 0]


async def test_what_is_heard_late_makes_a_copy_no_younger(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit was answered, and its process stood still before it read the answer."""
    world.copies.assigned([0])
    await world.restored()
    part, then = part_of(Records.none()), rooms._now_ms()
    monkeypatch.setattr(rooms, "_now_ms", lambda: then + 43_200_000 + 60_000)
    world.copies.saved(part, None)
    await world.restored()
    assert world.transport.starts == [0, 0]


async def test_a_changelog_with_nothing_committed_tells_of_no_group(world: World) -> None:
    """Nor from its copy: the first transaction was aborted, and a reading has gone past it."""
    world.broker.produce(LOG, 0, b"aborted", None)
    world.transport.hidden = True
    for _ in range(2):
        newest = await world.copies.restore(0, ROW)
        assert not newest.told
    assert world.transport.starts == [0, 1]


async def test_where_a_topic_cannot_be_told_from_its_next_life_there_are_no_copies(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(MemoryTransport, "changelog_id", bytes(16))
    world.written((b"a", value("1")))
    assert await world.restored() == await world.restored() == world.logged()
    assert world.transport.starts == [0, 0]
    assert caplog.text.count("no local copies: the cluster does not tell the id of g-in-changelog") == 1


# ---- standbys


@given(st.sets(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=5), st.integers(0, 9), st.integers(0, 3))
def test_whoever_takes_over_was_a_standby(members: set[str], partitions: int, deaths: int) -> None:
    def dealt(alive: Iterable[str]) -> dict[int, str]:
        order = sorted(alive)
        return {p: order[p % len(order)] for p in range(partitions)}

    expected: dict[str, set[int]] = {m: set() for m in members}
    for n in range(1, deaths + 1):
        for gone in itertools.combinations(sorted(members), n):
            if alive := members - set(gone):
                for p, owner in dealt(alive).items():
                    expected[owner].add(p)
    assert {m: standby_for(m, members, partitions, deaths) for m in members} == expected


def test_standbys_need_a_place() -> None:
    with pytest.raises(ConfigError, match="standbys is 1: they keep local copies, so give --state-directory"):
        Config(standbys=1)


async def test_a_standby_has_the_others_streams_when_they_die(world: World, tmp_path: Path) -> None:
    for partition in range(PARTITIONS):
        world.written((b"a", value("1")), partition=partition)
    # Two members: this worker and another, whose partition is 1.
    mine = World(tmp_path / "mine")
    mine.broker = world.broker
    mine.begin("v")
    for transport in (world.transport, mine.transport):
        await transport.start(Listener())
    standbys = Standbys(mine.transport, mine.copies, 1)
    (me,) = (m.member_id for m in await mine.transport.members() if 0 in m.partitions)
    mine.copies.assigned([0])
    standbys.assigned(Membership("g", 1, me), [0])
    running = asyncio.create_task(standbys.run())
    size = tmp_path / "mine" / f"{LOG}-1.copy"
    await eventually(lambda: size.exists() and b"1..." in size.read_bytes())
    world.written((b"b", value("2")), partition=1)
    await eventually(lambda: b"2..." in size.read_bytes())
    # The other one dies.
    mine.copies.assigned([0, 1])
    standbys.assigned(Membership("g", 2, me), [0, 1])
    world.written((b"c", value("3")), partition=1)
    mine.transport.starts.clear()
    assert await mine.restored(1) == world.logged(1)
    assert set(mine.transport.starts) == {4}
    running.cancel()
    await asyncio.wait([running])
    await mine.copies.close()


class Listener:
    """Of a group: does nothing."""

    async def on_revoked(self, partitions: object) -> None: ...

    def on_assigned(self, membership: object, partitions: object) -> None: ...

    def on_trouble(self, partition: int, error: Exception) -> None: ...

    def on_lost(self, reason: Exception) -> None: ...


# ---- with a worker


@pytest.fixture(scope="module")
def hash_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rolling_hash(tmp_path_factory.mktemp("hash") / "1")


@pytest.mark.parametrize("interval_ms", [0.0, 10.0])
async def test_a_worker_that_is_killed_goes_on_from_its_copies(
    hash_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, interval_ms: float
) -> None:
    caplog.set_level("INFO")
    broker, rng = new_broker(), np.random.default_rng(1)
    sent: dict[bytes, list[int]] = {}
    for life in range(1, 5):
        for key, steps in produce_steps(broker, rng, 30, 300).items():
            sent.setdefault(key, []).extend(steps)
        worker, _ = made(broker, hash_model, snapshot_interval_ms=interval_ms, state_directory=str(tmp_path))
        task = asyncio.create_task(worker.run())
        await until(broker, task, lambda life=life: counted(broker) == 300 * life)
        files = [tmp_path / f"{LOG}-{p}.copy" for p in range(4)]
        await eventually(lambda files=files: all(file.stat().st_size > 300 for file in files))  # heads have less
        assert caplog.text.count("streams from the local copy up to offset") == 4 * (life - 1)
        await kill(task)
    check(broker, sent)
    world = World(tmp_path)
    world.broker = broker
    world.begin()
    for partition in range(4):
        assert await world.restored(partition) == world.logged(partition)
    assert 0 not in world.transport.starts


async def kill(task: asyncio.Task[None]) -> None:
    """Nothing is finished or committed any more."""
    task.cancel()
    await asyncio.wait([task])
