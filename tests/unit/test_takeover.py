"""X10: what a takeover believes, and what it refuses by name."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from pipeline.columns import Changelog, Committed, Membership
from pipeline.config import Config
from pipeline.copies import Copies
from pipeline.errors import TakeoverError
from pipeline.mark import FOR_EVER, Mark, Topics
from pipeline.metrics import Metrics
from pipeline.streams.snapshots import Newest, Restored, Snapshots, restore
from pipeline.takeover import Found, Start, check, read
from pipeline.transport.base import LogRange
from pipeline.transport.memory import MemoryBroker, MemoryTransport

DIGEST, OTHER = b"digest-1", b"digest-2"
TAG = b"t" * 16
NOBODY = np.empty(0, np.int64)


def written(live: dict[bytes, int], ended: dict[bytes, int] | None = None, digest: bytes = DIGEST) -> Changelog:
    """A changelog as the worker writes it: key -> A; rows of two bytes."""
    ended = ended or {}
    snapshots = Snapshots(
        np.arange(len(live)),
        list(live),
        np.array(list(live.values()), np.int64),
        np.arange(2 * len(live), dtype=np.uint8).reshape(-1, 2),
        list(ended),
        np.array(list(ended.values()), np.int64),
    )
    records = snapshots.records(digest, 0)
    values = records.values
    n = len(records)
    keys = [k for k in records.keys if k is not None]
    return Changelog(keys, [bytes(v) for v in values if v is not None], np.arange(n), n)


def restored_from(*stretches: Changelog, row_bytes: int = 2) -> Restored:
    newest = Newest(row_bytes)
    for stretch in stretches:
        newest.add(stretch)
    return restore(newest, DIGEST)


def found(
    offset: int | None = 10,
    *,
    mark: Mark | str | None = "own",
    log: tuple[int, int] = (0, 20),
    changelog: Changelog | None = None,
    row_bytes: int = 2,
) -> Found:
    own = Mark(TAG, offset, offset, DIGEST) if offset is not None else None
    chosen = own if mark == "own" else mark
    assert not isinstance(chosen, str)
    restored = restored_from(*([changelog] if changelog else []), row_bytes=row_bytes)
    return Found(3, None if offset is None else Committed(offset, ""), chosen, LogRange(*log), restored)


def test_a_new_group_has_no_start_yet():
    assert check(found(None, mark=None), DIGEST) is None


def test_a_group_goes_on_where_it_was():
    f = found(10, changelog=written({b"a": 9, b"b": 2}, {b"c": 5}))
    assert check(f, DIGEST) == Start(10, 10, TAG)
    assert f.restored.keys == [b"a", b"b"]
    assert f.restored.applied.tolist() == [9, 2]
    assert f.restored.rows.tolist() == [[0, 1], [2, 3]]
    assert f.restored.ended == {b"c": 5}


@pytest.mark.parametrize(
    ("replay_from", "above", "replay"),
    [
        (10, (), ()),
        (7, (), ((-FOR_EVER, 10),)),
        (7, ((12, 14),), ((-FOR_EVER, 10), (12, 14))),
        (10, ((12, 14),), ((-FOR_EVER, 10), (12, 14))),
    ],
)
def test_what_is_done_and_yet_to_be_fetched_is_applied_and_hidden(replay_from, above, replay):
    mark = Mark(TAG, 10, replay_from, DIGEST, above)
    assert check(found(10, mark=mark, changelog=written({b"a": 9})), DIGEST) == Start(10, replay_from, TAG, replay)


def test_an_offset_set_before_anything_was_served_is_a_start():
    assert check(found(10, mark=None), DIGEST) == Start(10, 10, b"not of Eddy: offset 10")


def test_the_newest_snapshot_of_a_key_counts():
    restored = restored_from(written({b"a": 1, b"b": 2}), written({b"b": 7}, {b"a": 4}))
    assert (restored.keys, restored.applied.tolist(), restored.ended) == ([b"b"], [7], {b"a": 4})


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (found(None, mark=None, changelog=written({b"a": 1})), "no offset"),
        (found(10, mark=None, changelog=written({b"a": 1})), "another tool has set this group's offset"),
        (found(10, mark=None, log=(11, 20)), "outside the log 11..20"),
        (found(10, mark=Mark(TAG, 9, 9, DIGEST)), "does not match its metadata's C 9"),
        (found(10, mark=Mark(TAG, 10, 9, OTHER)), "another state schema"),
        (found(10, mark=Mark(TAG, 10, 10, OTHER, ((12, 14),))), "another state schema"),
        (
            found(10, mark=Mark(TAG, 10, 10, OTHER), changelog=written({b"a": 9}, digest=OTHER)),
            "stream b'a' was written",
        ),
        (found(10, mark=Mark(TAG, 10, 10, DIGEST, version=9)), "newer worker"),
        (found(10, mark=Mark(TAG, 10, 7, DIGEST), log=(8, 20)), "begins at 8, a replay must begin at 7"),
        (found(10, log=(11, 20)), "its retention has passed"),
        (found(10, log=(0, 9)), "offset 9 is done, the log ends at 9"),
        (found(10, mark=Mark(TAG, 10, 10, DIGEST, ((12, 22),))), "offset 21 is done, the log ends at 20"),
        (found(10, changelog=written({b"late": 10})), "stream b'late' is at offset 10"),
        (found(10, mark=Mark(TAG, 10, 9, DIGEST, ((12, 14),)), changelog=written({b"a": 11})), "b'a' is at offset 11"),
        (found(10, changelog=written({}, {b"gone": 12})), "stream b'gone' is at offset 12"),
        (found(10, changelog=written({b"a": 1}, digest=OTHER)), "stream b'a' was written by a model with another"),
        (found(10, changelog=written({b"a": 1}), row_bytes=5), "has 34 bytes, expected 37"),
        (found(10, changelog=Changelog([b"a"], [b"short"], np.arange(1), 1)), "has 5 bytes, less than"),
        (found(10, changelog=Changelog([b"a"], [b"\xff" * 34], np.arange(1), 1)), "has version 255"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(case, message):
    with pytest.raises(TakeoverError, match=message) as raised:
        check(case, DIGEST)
    assert raised.value.partition == 3
    assert str(raised.value).startswith("partition 3: ")


class Overwritten(MemoryTransport):
    """A changelog of one stream, written again and again and not yet compacted."""

    async def changelog(self, partition, start=0):
        for a in range(200):
            row = Snapshots.of(NOBODY, [b"a"], np.array([a]), np.zeros((1, 1_000_000), np.uint8))
            yield Changelog([b"a"], [bytes(v) for v in row.records(DIGEST, 0).values], np.array([a]), a + 1)


def test_another_model_takes_over_a_group_without_states_where_nothing_is_to_be_replayed():
    """All its streams have ended, say, and their ends are no rows of any model."""
    mark = Mark(TAG, 10, 10, OTHER)
    assert check(found(10, mark=mark), DIGEST) == Start(10, 10, TAG)
    gone = written({}, {b"gone": 4}, digest=OTHER)
    assert check(found(10, mark=mark, changelog=gone), DIGEST) == Start(10, 10, TAG)


async def test_a_takeover_holds_the_newest_snapshots_and_not_the_whole_changelog():
    broker = MemoryBroker()
    broker.create("in", 1)
    broker.create("g-in-changelog", 1)
    transport = Overwritten(broker, Config(input="in", output="out", group="g", worker_id="w"))
    copies = Copies(None, "g", "g-in-changelog", transport, Metrics("m", "1"))
    tracemalloc.start()
    try:
        got = await read(0, Membership("g", 1, "w"), transport, copies, DIGEST, 1_000_000, look_twice=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert got.restored.applied.tolist() == [199]
    assert peak < 20_000_000


def test_a_topic_that_was_made_anew_is_noticed_by_its_id():
    """With a changelog its snapshots are gone, and what is done before R is in none; another input has other records at
    the offsets that are done."""
    own, other = b"o" * 16, b"x" * 16
    mark = Mark(TAG, 10, 10, DIGEST, topics=Topics.of(own, own))
    assert check(replace(found(10, mark=mark), topics=Topics.of(own, own)), DIGEST) == Start(10, 10, TAG)
    with pytest.raises(TakeoverError, match=r"the changelog topic is not .* it was deleted and made anew"):
        check(replace(found(10, mark=mark), topics=Topics.of(other, own)), DIGEST)
    with pytest.raises(TakeoverError, match=r"the input topic is not .* offset 10 is of: it was deleted and made anew"):
        check(replace(found(10, mark=mark), topics=Topics.of(own, other)), DIGEST)
    # A cluster without topic ids, and what an import writes, tell nothing.
    assert check(replace(found(10, mark=mark), topics=Topics.of(bytes(16), bytes(16))), DIGEST) is not None
    assert check(replace(found(10), topics=Topics.of(own, own)), DIGEST) is not None
