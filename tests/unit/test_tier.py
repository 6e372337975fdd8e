"""The host tier: what is put there comes back as it was, wherever it was kept meanwhile."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipeline.errors import ConfigError, TierFull
from pipeline.streams.tier import Tier

ROW = 4
KEYS = st.lists(st.integers(0, 30).map(lambda i: b"%d" % i), unique=True, max_size=12)
PARTITIONS = st.integers(0, 2)
Kept = tuple[int, bytes, int]
"""A, row, when it was touched."""


class AsADictionary(RuleBasedStateMachine):
    """Every call beside the same call on dictionaries."""

    @initialize(rows_max=st.integers(0, 20))
    def begin(self, rows_max: int) -> None:
        self.tier = Tier(ROW, rows_max * ROW, Path(self.directory))
        self.model: dict[int, dict[bytes, Kept]] = {p: {} for p in range(3)}
        self.rows_max = rows_max
        self.count = 0

    directory = ""

    @rule(partition=PARTITIONS, keys=KEYS, data=st.data())
    def put(self, partition: int, keys: list[bytes], data: st.DataObject) -> None:
        n = len(keys)
        touched = data.draw(st.lists(st.integers(0, 100), min_size=n, max_size=n))
        applied = np.arange(self.count, self.count + n)
        self.count += n
        rows = np.frombuffer(applied.astype("<i4").tobytes(), np.uint8).reshape(n, ROW)
        self.tier.put(partition, keys, applied, rows, np.array(touched, np.int64))
        self.model[partition] |= {
            k: (int(a), r.tobytes(), t) for k, a, r, t in zip(keys, applied, rows, touched, strict=True)
        }

    @rule(partition=PARTITIONS, keys=KEYS, remove=st.booleans())
    def look(self, partition: int, keys: list[bytes], remove: bool) -> None:
        got = (self.tier.take if remove else self.tier.read)(partition, keys)
        mine = self.model[partition]
        assert [keys[i] for i in got.found.tolist()] == [k for k in keys if k in mine]
        kept = zip(got.applied.tolist(), [row.tobytes() for row in got.rows], got.touched_ms.tolist(), strict=True)
        assert list(kept) == [mine[k] for k in keys if k in mine]
        for key in keys if remove else []:
            mine.pop(key, None)

    @rule(partition=PARTITIONS, keys=KEYS)
    def forget(self, partition: int, keys: list[bytes]) -> None:
        self.tier.forget(partition, keys)
        for key in keys:
            self.model[partition].pop(key, None)

    @rule(partition=PARTITIONS)
    def drop(self, partition: int) -> None:
        self.tier.drop(partition)
        self.model[partition].clear()

    @rule(partition=PARTITIONS, before_ms=st.integers(0, 101))
    def idle(self, partition: int, before_ms: int) -> None:
        expected = {k for k, (_, _, touched) in self.model[partition].items() if touched < before_ms}
        assert set(self.tier.idle(partition, before_ms)) == expected

    @invariant()
    def holds_the_same(self) -> None:
        if not hasattr(self, "tier"):
            return
        for partition, mine in self.model.items():
            assert self.tier.count(partition) == len(mine)
            assert set(self.tier.keys(partition)) == set(mine)
        assert len(self.tier) == sum(map(len, self.model.values()))
        assert ((0, b"7") in self.tier) == (b"7" in self.model[0])
        assert len(self.tier) - self.tier.in_file <= self.rows_max

    def teardown(self) -> None:
        if hasattr(self, "tier"):
            for partition, mine in self.model.items():
                got = self.tier.take(partition, list(mine))
                assert [r.tobytes() for r in got.rows] == [row for _, row, _ in mine.values()]
            self.tier.close()


def test_it_holds_what_a_dictionary_would(tmp_path: Path) -> None:
    class Here(AsADictionary):
        directory = str(tmp_path)

    Here.TestCase.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
    Here.TestCase().runTest()


def rows_of(numbers: range) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Keys, A, and rows of 4096 bytes, each told by its number."""
    n = np.array(numbers)
    return [b"%d" % i for i in numbers], n, np.repeat(n.astype("<u2").view(np.uint8).reshape(-1, 2), 2048, axis=1)


def put(tier: Tier, numbers: range, partition: int = 0) -> None:
    keys, n, rows = rows_of(numbers)
    tier.put(partition, keys, n, rows, n)


def holds(tier: Tier, numbers: range) -> bool:
    keys, n, rows = rows_of(numbers)
    got = tier.read(0, keys)
    return len(got) == len(keys) and bool((got.rows == rows).all()) and got.applied.tolist() == n.tolist()


def test_the_streams_that_were_touched_longest_ago_go_to_the_file(tmp_path: Path) -> None:
    tier = Tier(4096, 100 * 4096, tmp_path)
    put(tier, range(100, 200))
    assert tier.file_bytes == 0
    put(tier, range(50))
    assert tier.file_bytes > 0
    assert tier.nbytes < 110 * 4096
    assert holds(tier, range(50))
    assert holds(tier, range(100, 200))
    spilled = tier.in_file
    assert 50 <= spilled < 60
    tier.forget(0, [b"%d" % i for i in (*range(160, 200), *range(50))])
    assert tier.in_file == spilled
    tier.forget(0, [b"%d" % i for i in range(100, 150)])
    assert tier.in_file == spilled - 50


def test_the_file_is_gone_with_its_process(tmp_path: Path) -> None:
    tier = Tier(4096, 0, tmp_path / "made")
    put(tier, range(100))
    assert holds(tier, range(100))
    assert list((tmp_path / "made").iterdir()) == []


def test_what_was_taken_gives_its_room_to_others(tmp_path: Path) -> None:
    tier = Tier(4096, 10 * 4096, tmp_path)
    put(tier, range(1000))
    full = tier.file_bytes, tier.nbytes
    for round_ in range(1, 20):
        assert len(tier.take(0, [b"%d" % i for i in range(1000 * round_ - 1000, 1000 * round_)])) == 1000
        put(tier, range(1000 * round_, 1000 * round_ + 1000))
    assert (tier.file_bytes, tier.nbytes) == full
    tier.drop(0)
    assert (tier.nbytes, tier.file_bytes) == (0, 0)


def test_memory_alone_is_full_with_one_error_and_nothing_is_lost() -> None:
    tier = Tier(4096, 10 * 4096, None)
    put(tier, range(8))
    with pytest.raises(TierFull, match=r"8 streams .* 40960 bytes .*raise host_bytes or slots, or name a state_dir"):
        put(tier, range(5, 13))
    assert tier.keys(0) == [b"%d" % i for i in range(8)]
    assert holds(tier, range(8))
    put(tier, range(10))
    assert holds(tier, range(10))


@pytest.fixture
def small_disk() -> Iterator[int]:
    """Files of this process may have so many bytes, as on a disk that is full."""
    size = 400 * 4096
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    yield size
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_is_one_error_and_nothing_is_lost(tmp_path: Path, small_disk: int) -> None:
    tier = Tier(4096, 100 * 4096, tmp_path)
    for a in range(0, 480, 60):
        put(tier, range(a, a + 60))
    with pytest.raises(TierFull, match=f"{tmp_path} is full: .* bytes, and .* more are needed; free some .*host_bytes"):
        put(tier, range(450, 550))
    assert tier.count(0) == 480
    assert holds(tier, range(480))
    for i in range(480, 500):
        put(tier, range(i, i + 1))
    assert holds(tier, range(500))
    tier.take(0, [b"%d" % i for i in range(100)])
    put(tier, range(500, 600))
    assert holds(tier, range(100, 600))
    assert tier.file_bytes <= small_disk


def test_more_memory_than_there_is_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"host_bytes is 1152921504606846976: this machine does not have so much"):
        Tier(4096, 1 << 60, None)


def test_a_directory_that_cannot_be_written_to_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=rf"state_directory {tmp_path}/file/below cannot be written to: Not a dir"):
        Tier(4096, 0, tmp_path / "file" / "below")
