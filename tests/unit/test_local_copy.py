"""A local copy of a changelog (X14): what it gives back, and when it gives back less."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.columns import Changelog, as_list
from pipeline.errors import Broken, LocalCopyFailed
from pipeline.streams import local_copy
from pipeline.streams.local_copy import LocalCopy, Source

SOURCE = Source("g", "g-in-changelog", bytes(range(16)), 3)
DAY_MS = 86_400_000
NOW_MS = 1_700_000_000_000
Entry = tuple[bytes, bytes | None]


def opened(directory: Path, source: Source = SOURCE) -> LocalCopy:
    copy = LocalCopy.open(directory, source, NOW_MS)
    assert copy is not None
    return copy


def stretch(entries: list[Entry], first: int = 0, gap: int = 1) -> Changelog:
    """With ``gap`` offsets behind it that hold no record (a marker of a transaction)."""
    n = len(entries)
    return Changelog([k for k, _ in entries], [v for _, v in entries], np.arange(first, first + n), first + n + gap)


def contents(copy: LocalCopy) -> dict[bytes, bytes]:
    """Newest of each key, as any reader of a changelog would have it."""
    newest: dict[bytes, bytes] = {}
    for part in copy.read():
        for key, value in zip(part.keys, as_list(part.values), strict=True):
            if value is None:
                newest.pop(key, None)
            else:
                newest[key] = value
    return newest


def file_of(directory: Path) -> Path:
    return directory / "g-in-changelog-3.copy"


ENTRIES = st.lists(
    st.tuples(
        st.sampled_from([b"", b"a", b"bb", b"ccc", b"d"]),
        st.one_of(st.none(), st.just(b""), st.binary(min_size=5, max_size=5), st.binary(max_size=9)),
    ),
    max_size=8,
)


@settings(deadline=None)
@given(st.lists(ENTRIES, max_size=8), st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7)))
def test_it_gives_back_what_the_changelog_has(
    tmp_path_factory: pytest.TempPathFactory, log: list[list[Entry]], reopened: set[int], rewritten: set[int]
) -> None:
    directory = tmp_path_factory.mktemp("copy")
    copy, model, next_offset = opened(directory), dict[bytes, bytes](), 0
    for i, entries in enumerate(log):
        if i in reopened:
            copy.close()
            copy = opened(directory)
            assert contents(copy) == model
            assert copy.next_offset == next_offset
        under_way = copy.rewrite() if i in rewritten else None
        copy.append(stretch(entries, next_offset))
        next_offset += len(entries) + 1
        if under_way is not None:
            copy.adopt(under_way)
        for key, value in entries:
            if value is None:
                model.pop(key, None)
            else:
                model[key] = value
    assert copy.next_offset == next_offset
    copy.close()
    assert contents(opened(directory)) == model


def test_a_matrix_comes_back_as_a_matrix_with_its_offsets(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(6, 4)
    copy = opened(tmp_path)
    copy.append(Changelog([b"a", b"b", b"a"], values[:3], np.array([5, 7, 8]), 10))
    copy.append(Changelog([b"c", b"", b"d"], values[3:], np.array([10, 11, 12]), 14))
    copy.close()
    first, second = opened(tmp_path).read()
    assert isinstance(first.values, np.ndarray)
    assert (first.keys, first.values.tolist()) == ([b"a", b"b"], [values[2].tolist(), values[1].tolist()])
    assert (second.keys, second.values.tolist()) == ([b"c", b"", b"d"], values[3:].tolist())
    assert (first.offsets.tolist(), first.next_offset) == ([8, 7], 10)
    assert (second.offsets.tolist(), second.next_offset) == ([10, 11, 12], 14)


def three(directory: Path) -> list[int]:
    """Three stretches, the second in two blocks; the file's size after each, and before all."""
    copy = opened(directory)
    sizes = [copy.nbytes]
    for i in range(3):
        copy.append(stretch([(b"a", b"%d" % i), (b"b", b"long value %d" % i), (b"c%d" % i, b"x")], 4 * i))
        sizes.append(copy.nbytes)
    copy.close()
    return sizes


def after(n: int) -> dict[bytes, bytes]:
    """What ``n`` stretches of ``three`` say."""
    model: dict[bytes, bytes] = {}
    for i in range(n):
        model |= {b"a": b"%d" % i, b"b": b"long value %d" % i, b"c%d" % i: b"x"}
    return model


def test_a_torn_end_is_cut_to_the_last_whole_stretch_at_every_byte(tmp_path: Path) -> None:
    sizes = three(tmp_path)
    whole = file_of(tmp_path).read_bytes()
    for size in range(sizes[0], sizes[-1] + 1):
        file_of(tmp_path).write_bytes(whole[:size])
        copy = opened(tmp_path)
        got = contents(copy)
        done = sum(size >= s for s in sizes) - 1
        assert copy.nbytes == file_of(tmp_path).stat().st_size
        assert copy.next_offset == 4 * done
        # Of the stretch that is torn a block may be there already; it is read again from the changelog.
        assert got.keys() >= after(done).keys()
        assert got.items() <= after(done).items() | after(done + 1).items()
        copy.append(stretch([(b"a", b"new")], copy.next_offset))
        copy.close()
        again = opened(tmp_path)
        assert contents(again)[b"a"] == b"new"
        again.close()


@settings(deadline=None)
@given(st.data())
def test_a_wrong_bit_anywhere_costs_only_what_comes_after(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("copy")
    sizes = three(directory)
    content = bytearray(file_of(directory).read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    file_of(directory).write_bytes(content)
    copy = opened(directory)
    got = contents(copy)
    done = max(0, sum(bit // 8 >= s for s in sizes) - 1)
    assert copy.next_offset == 4 * done
    assert got.keys() >= after(done).keys()
    assert got.items() <= after(done).items() | after(done + 1).items()
    if bit // 8 < sizes[0]:
        assert got == {}, "of another changelog, for all we know"


def test_a_hole_that_a_power_loss_left_is_no_record(tmp_path: Path) -> None:
    """The file system had room for it on record, its bytes not on the disk, but those after it."""
    sizes = three(tmp_path)
    content = bytearray(file_of(tmp_path).read_bytes())
    content[sizes[1] : sizes[2]] = bytes(sizes[2] - sizes[1])
    file_of(tmp_path).write_bytes(content)
    copy = opened(tmp_path)
    assert contents(copy) == after(1)
    assert (copy.next_offset, copy.nbytes) == (4, sizes[1])


def test_a_block_that_is_missing_is_noticed_though_those_around_it_are_whole(tmp_path: Path) -> None:
    sizes = three(tmp_path)
    content = file_of(tmp_path).read_bytes()
    file_of(tmp_path).write_bytes(content[: sizes[1]] + content[sizes[2] :])
    copy = opened(tmp_path)
    assert contents(copy) == after(1)
    assert copy.next_offset == 4


def test_blocks_of_an_earlier_life_of_the_file_do_not_count(tmp_path: Path) -> None:
    sizes = three(tmp_path)
    content = file_of(tmp_path).read_bytes()
    copy = opened(tmp_path)
    copy.reset(NOW_MS)
    copy.close()
    head = file_of(tmp_path).read_bytes()
    file_of(tmp_path).write_bytes(head + content[sizes[0] :])
    assert contents(opened(tmp_path)) == {}


@pytest.mark.parametrize(
    "source",
    [
        Source("g", "g-in-changelog", b"another topic id", 3),
        Source("h", "g-in-changelog", SOURCE.topic_id, 3),
    ],
)
def test_the_copy_of_another_changelog_is_void(tmp_path: Path, source: Source) -> None:
    three(tmp_path)
    copy = opened(tmp_path, source)
    assert (contents(copy), copy.next_offset) == ({}, 0)
    copy.close()
    assert contents(opened(tmp_path)) == {}


@pytest.mark.parametrize("content", [b"", b"eddy", b"\0" * 4096, b"eddycopy" + b"\xff" * 90])
def test_a_file_that_is_no_copy_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    file_of(tmp_path).write_bytes(content)
    copy = opened(tmp_path)
    assert (contents(copy), copy.next_offset) == ({}, 0)
    copy.append(stretch([(b"a", b"1")]))
    copy.close()
    assert contents(opened(tmp_path)) == {b"a": b"1"}


def test_a_copy_is_void_once_tombstones_may_have_gone_since_it_was_written(tmp_path: Path) -> None:
    copy = opened(tmp_path)
    copy.append(stretch([(b"a", b"1")]))
    copy.close()

    def expired_at(written_ms: int, now_ms: int) -> bool:
        os.utime(file_of(tmp_path), ns=(0, written_ms * 1_000_000))
        copy = opened(tmp_path)
        copy.close()
        return copy.expired(now_ms, DAY_MS)

    now = NOW_MS
    assert not expired_at(now - DAY_MS // 2, now)
    assert expired_at(now - DAY_MS // 2 - 1, now)
    assert not expired_at(now + 60_000, now)
    assert expired_at(now + 60_001, now), "a clock was set back: nobody knows how old it is"
    os.utime(file_of(tmp_path), ns=(0, 0))
    copy = opened(tmp_path)
    list(copy.read())
    copy.append(stretch([(b"b", b"1")], copy.next_offset))
    assert copy.expired(now, DAY_MS), "what was written to it now does not make it whole"
    copy.close()
    copy = opened(tmp_path)
    assert copy.expired(now, DAY_MS)
    copy.whole(now)
    assert not copy.expired(now, DAY_MS)
    assert copy.expired(now + DAY_MS // 2 + 1, DAY_MS), "its process may have stood still"
    copy.whole(now - DAY_MS)
    assert not copy.expired(now, DAY_MS), "what is heard late makes it no older"
    copy.close()
    copy = opened(tmp_path)
    assert not copy.expired(now, DAY_MS)
    copy.reset(now - DAY_MS)
    assert copy.expired(now, DAY_MS)
    copy.reset(now)
    assert not copy.expired(now, DAY_MS)


def test_a_file_notes_once_a_minute_that_it_is_whole_and_whenever_it_is_written_to(tmp_path: Path) -> None:
    copy = opened(tmp_path)

    def noted() -> int:
        return file_of(tmp_path).stat().st_mtime_ns // 1_000_000

    copy.whole(NOW_MS + 60_000)
    assert noted() == NOW_MS
    copy.append(stretch([(b"a", b"1")]))
    assert noted() == NOW_MS + 60_000
    copy.whole(NOW_MS + 120_001)
    assert noted() == NOW_MS + 120_001
    copy.adopt(copy.rewrite())
    assert noted() == NOW_MS + 120_001
    copy.close()
    with file_of(tmp_path).open("ab") as file:
        file.write(b"torn")
    os.utime(file_of(tmp_path), ns=(0, NOW_MS * 1_000_000))
    copy = opened(tmp_path)
    list(copy.read())
    assert noted() == NOW_MS, "cutting it makes it no younger"


def test_a_file_that_is_replaced_before_it_is_locked_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder puts a rewritten one in its place and goes, between another's opening and locking."""
    copy = opened(tmp_path)
    copy.append(stretch([(b"a", b"1"), (b"b", b"2")]))
    lock = fcntl.flock

    def late(file: FileIO, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        copy.adopt(copy.rewrite())
        copy.close()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    other = opened(tmp_path)
    list(other.read())
    other.append(stretch([(b"b", b"3")], other.next_offset))
    other.close()
    assert contents(opened(tmp_path)) == {b"a": b"1", b"b": b"3"}


def test_two_processes_do_not_share_a_copy(tmp_path: Path) -> None:
    copy = opened(tmp_path)
    code = (
        "import sys; from pathlib import Path; from pipeline.streams.local_copy import *\n"
        f"copy = LocalCopy.open(Path(sys.argv[1]), {SOURCE!r}, 0); print(copy and len(list(copy.read())))"
    )

    def elsewhere() -> str:
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert elsewhere() == "None"
    copy.append(stretch([(b"a", b"1")]))
    copy.adopt(copy.rewrite())
    assert elsewhere() == "None", "the rewritten file is held as the one before it"
    copy.close()
    assert elsewhere() == "1"


def test_superseded_records_are_dropped_before_they_are_more_than_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_copy, "SLACK_BYTES", 50_000)
    copy = opened(tmp_path)
    keys = [b"%d" % i for i in range(10)]
    largest = offset = rewritings = 0
    for i in range(300):
        rows = np.full((10, 1000), i % 256, np.uint8)
        copy.append(Changelog(keys, rows, np.arange(offset, offset + 10), offset + 11))
        offset += 11
        largest = max(largest, copy.nbytes)
        if copy.due:
            copy.adopt(copy.rewrite())
            rewritings += 1
    assert 10_000 < largest < 100_000
    assert 20 < rewritings < 100
    copy.close()
    again = opened(tmp_path)
    assert contents(again) == dict.fromkeys(keys, bytes([299 % 256]) * 1000)
    assert again.next_offset == offset
    assert [p.name for p in tmp_path.iterdir()] == [file_of(tmp_path).name]


def test_a_file_rewritten_while_the_copy_began_anew_is_not_taken(tmp_path: Path) -> None:
    copy = opened(tmp_path)
    copy.append(stretch([(b"a", b"1")]))
    under_way = copy.rewrite()
    copy.reset(NOW_MS)
    copy.append(stretch([(b"b", b"2")]))
    copy.adopt(under_way)
    copy.close()
    assert contents(opened(tmp_path)) == {b"b": b"2"}
    assert [p.name for p in tmp_path.iterdir()] == [file_of(tmp_path).name]


def test_damage_is_not_passed_on_to_the_rewritten_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_copy, "SLACK_BYTES", 0)
    sizes = three(tmp_path)
    copy = opened(tmp_path)
    assert contents(copy) == after(3)
    copy.append(stretch([(b"y", b"1")], copy.next_offset))
    assert copy.due
    with file_of(tmp_path).open("r+b") as file:
        file.seek(sizes[2] - 1)
        file.write(b"?")
    with pytest.raises(LocalCopyFailed, match=r"cannot be rewritten: a damaged block at byte"):
        copy.rewrite()
    assert not copy.due
    copy.append(stretch([(b"z", b"1")], copy.next_offset))
    assert [p.name for p in tmp_path.iterdir()] == [file_of(tmp_path).name]


def test_records_go_in_once_and_in_order(tmp_path: Path) -> None:
    copy = opened(tmp_path)
    copy.append(stretch([(b"a", b"1")]))
    with pytest.raises(Broken, match="offset 1 on, it has those before 2"):
        copy.append(stretch([(b"a", b"1")], 1))
    copy.close()
    with pytest.raises(Broken, match="before its end is known"):
        opened(tmp_path).append(stretch([(b"a", b"1")], 2))


def test_a_system_that_writes_a_little_at_a_time_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, views, at: whole(fd, [views[0][:7]], at))
    three(tmp_path)
    assert contents(opened(tmp_path)) == after(3)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files of this process may have 100,000 bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_is_one_error_and_the_file_is_gone(tmp_path: Path, small_disk: None) -> None:
    copy = opened(tmp_path)
    copy.append(stretch([(b"a", bytes(90_000))]))
    with pytest.raises(
        LocalCopyFailed, match=rf"{file_of(tmp_path)} cannot be written: File too large.*state_directory"
    ):
        copy.append(stretch([(b"b", bytes(90_000))], 2))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_during_a_rewriting_leaves_the_copy_as_it_was(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    copy = opened(tmp_path)
    copy.append(stretch([(b"a", bytes(90_000)), (b"b", bytes(90_000))]))
    request.getfixturevalue("small_disk")
    with pytest.raises(LocalCopyFailed, match=r"cannot be rewritten: File too large"):
        copy.rewrite()
    copy.close()
    assert contents(opened(tmp_path)) == {b"a": bytes(90_000), b"b": bytes(90_000)}
    assert [p.name for p in tmp_path.iterdir()] == [file_of(tmp_path).name]


def test_a_place_that_cannot_be_written_to_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalCopyFailed, match=rf"{tmp_path}/file/g-in-changelog-3.copy cannot be opened: "):
        LocalCopy.open(tmp_path / "file", SOURCE, NOW_MS)
