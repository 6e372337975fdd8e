"""Snapshots to records and back: the newest of each stream, and what cannot be read by name."""

from __future__ import annotations

import re
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.columns import Changelog, Values
from pipeline.streams.snapshots import HEADER, Newest, Restored, Snapshots, restore

DIGEST, OTHER = b"digest-1", b"digest-2"
ROW = 3
VERSION_BITS = 8
"""First in every snapshot."""


def snapshots(
    live: dict[bytes, tuple[int, bytes]], ended: dict[bytes, int] | None = None, forgotten: list[bytes] | None = None
) -> Snapshots:
    """Key -> (A, row); key -> A; keys."""
    ended = ended or {}
    rows = np.array([list(row) for _, row in live.values()], np.uint8).reshape(len(live), -1 if live else ROW)
    return Snapshots(
        np.arange(len(live)),
        list(live),
        np.array([a for a, _ in live.values()], np.int64),
        rows,
        list(ended),
        np.array(list(ended.values()), np.int64),
        forgotten or [],
    )


def written(given: Snapshots, now_ms: int = 7, digest: bytes = DIGEST) -> Changelog:
    records = given.records(digest, now_ms)
    keys = [k for k in records.keys if k is not None]
    return stretch(keys, records.values)


def stretch(keys: list[bytes], values: Values) -> Changelog:
    return Changelog(keys, values, np.arange(len(keys)), len(keys))


def restored(*stretches: Changelog, row_bytes: int = ROW) -> Restored:
    newest = Newest(row_bytes)
    for each in stretches:
        newest.add(each)
    return restore(newest, DIGEST)


def as_rows(got: Restored) -> dict[bytes, tuple[int, bytes]]:
    return {k: (a, row.tobytes()) for k, a, row in zip(got.keys, got.applied.tolist(), got.rows, strict=True)}


KEYS = st.sampled_from([b"", b"a", b"b", b"c", b"d"])
OFFSETS = st.integers(-1, 2**63 - 1)
PARTS = st.builds(
    snapshots,
    st.dictionaries(KEYS, st.tuples(OFFSETS, st.binary(min_size=ROW, max_size=ROW))),
    st.dictionaries(KEYS, OFFSETS),
    st.lists(KEYS, unique=True),
)


@given(st.lists(PARTS, max_size=5))
def test_the_newest_of_each_stream_is_restored_whatever_was_written_in_which_order(parts: list[Snapshots]) -> None:
    live: dict[bytes, tuple[int, bytes]] = {}
    ended: dict[bytes, int] = {}
    for part in parts:
        for key in part.tombstones:
            live.pop(key, None)
            ended.pop(key, None)
        for key, a in zip(part.ended_keys, part.ended_applied.tolist()):
            live.pop(key, None)
            ended[key] = a
        for key, a, row in zip(part.keys, part.applied.tolist(), part.rows):
            ended.pop(key, None)
            live[key] = (a, row.tobytes())
    for cut in (True, False):  # as it was written, or as one stretch read back from a log
        stretches = [written(part) for part in parts]
        if not cut:
            values = [None if v is None else bytes(v) for s in stretches for v in s.values]
            stretches = [stretch([k for s in stretches for k in s.keys], values)]
        got = restored(*stretches)
        assert as_rows(got) == live
        assert got.ended == ended
        assert got.problems == []
        assert len(got) == len(live) + len(ended)


def test_a_tombstone_of_a_stream_that_has_a_newer_snapshot_is_not_written() -> None:
    part = snapshots({b"again": (9, b"row")}, {b"ended": 8}, [b"again", b"ended", b"gone"])
    records = part.records(DIGEST, 0)
    assert list(records.keys) == [b"gone", b"ended", b"again"]
    assert [None if v is None else len(v) for v in records.values] == [None, HEADER, HEADER + ROW]


def test_a_snapshot_tells_when_it_was_written() -> None:
    got = restored(
        written(snapshots({b"a": (1, b"row"), b"b": (2, b"row")}), 1), written(snapshots({b"a": (3, b"new")}), 2)
    )
    assert (got.keys, got.written_ms.tolist()) == ([b"a", b"b"], [2, 1])


def test_the_last_of_several_snapshots_of_a_stream_in_one_matrix_counts() -> None:
    logs = [written(snapshots({b"a": (a, b"row"), b"b": (a + 1, b"new")})) for a in (1, 5)]
    got = restored(stretch([k for log in logs for k in log.keys], np.concatenate([log.values for log in logs])))
    assert as_rows(got) == {b"a": (5, b"row"), b"b": (6, b"new")}
    assert len(got.rows) == 2


def test_streams_without_a_row_are_kept_apart_from_those_that_ended() -> None:
    got = restored(written(snapshots({b"a": (1, b""), b"b": (2, b"")}, {b"c": 5})), row_bytes=0)
    assert as_rows(got) == {b"a": (1, b""), b"b": (2, b"")}
    assert got.ended == {b"c": 5}


@given(st.sampled_from([b"whole", b"ended"]), st.data())
def test_one_wrong_bit_anywhere_is_found_and_costs_that_stream_alone(key: bytes, data: st.DataObject) -> None:
    log = written(snapshots({b"a": (1, b"abc"), b"whole": (2, b"def"), b"z": (3, b"ghi")}, {b"ended": 4}))
    values = [None if v is None else bytearray(v) for v in log.values]
    damaged = values[log.keys.index(key)]
    assert damaged is not None
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    got = restored(stretch(log.keys, [None if v is None else bytes(v) for v in values]))
    (problem,) = got.problems
    assert problem.key == key
    # The version says how to read all else, so a wrong one is told as such.
    assert problem.kind == ("version" if bit < VERSION_BITS else "corrupt")
    assert repr(key) in problem.text
    assert sorted([*got.keys, *got.ended]) == sorted({b"a", b"whole", b"z", b"ended"} - {key})
    assert as_rows(got)[b"a"] == (1, b"abc")


def value(row: bytes, digest: bytes = DIGEST) -> bytes:
    """One stream's snapshot."""
    (written_value,) = written(snapshots({b"k": (1, row)}), digest=digest).values
    return bytes(written_value)


def summed(value: bytes) -> bytes:
    """With the checksum that fits the rest."""
    return value[:4] + zlib.crc32(value[8:], zlib.crc32(value[:4])).to_bytes(4, "little") + value[8:]


SOUND = value(b"row")


@pytest.mark.parametrize(
    ("damaged", "kind", "text"),
    [
        (b"", "corrupt", r"b'k' has 0 bytes, less than its header's 32"),
        (SOUND[:31], "corrupt", r"b'k' has 31 bytes, less than its header's 32"),
        (SOUND[:-1], "corrupt", r"b'k' is damaged: its checksum does not fit its 34 bytes"),
        (SOUND + b"0", "corrupt", r"b'k' is damaged"),
        (b"\x01" + SOUND[1:], "version", r"b'k' has version 1, this Eddy reads 2"),
        (SOUND[:1] + b"\x02" + SOUND[2:], "corrupt", r"b'k' is damaged"),
        (summed(SOUND[:1] + b"\x02" + SOUND[2:]), "version", r"b'k' has flags 020000, which this Eddy does not know"),
        (
            value(b"row", OTHER),
            "foreign",
            r"b'k' was written by a model with another state .*\(6469676573742d32, this one is 6469676573742d31\)",
        ),
        (value(b"another", OTHER), "foreign", r"b'k' was written by a model with another state schema"),
        (value(b"long row"), "corrupt", r"b'k' has 40 bytes, expected 35"),
    ],
)
def test_a_snapshot_that_cannot_be_read_is_told_by_name(damaged: bytes, kind: str, text: str) -> None:
    got = restored(written(snapshots({b"before": (1, b"abc")})), stretch([b"k", b"after"], [damaged, SOUND]))
    (problem,) = got.problems
    assert (problem.key, problem.kind) == (b"k", kind)
    assert problem.text.startswith("snapshot of stream b'k' ")
    assert as_rows(got) == {b"before": (1, b"abc"), b"after": (1, b"row")}
    assert re.search(text, problem.text)
    assert len(got) == 3, "what cannot be read is there"
