"""Records that wait for others of their stream, against one naive queue a stream."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.aside import Aside
from pipeline.columns import Segment
from pipeline.mark import runs_of

KEYS = (b"a", b"b", b"c", b"d")


def stretch(first: int, keys: list[bytes]) -> Segment:
    n = len(keys)
    offsets = np.arange(first, first + n)
    return Segment(0, list(keys), [b"%d" % o for o in offsets], offsets, offsets * 2, first + n, None, 3 * n)


class Model:
    def __init__(self) -> None:
        self.aside = Aside()
        self.queues: dict[bytes, list[int]] = {}
        self.next = 0

    def add(self, keys: list[bytes]) -> None:
        later: dict[bytes, list[int]] = {}
        for i, key in enumerate(keys):
            later.setdefault(key, []).append(i)
            self.queues.setdefault(key, []).append(self.next + i)
        self.aside.add(stretch(self.next, keys), later)
        self.next += len(keys) + 1  # an offset that holds no record for us

    def taken(self, found: list[tuple[bytes, Segment]]) -> list[int]:
        offsets: list[int] = []
        for key, segment in found:
            n = len(segment)
            assert n
            assert segment.keys == [key] * n
            assert segment.values == [b"%d" % o for o in segment.offsets]
            assert segment.offsets.tolist() == self.queues[key][:n], "a stream's own order"
            self.queues[key] = self.queues[key][n:]
            offsets += segment.offsets.tolist()
        return offsets

    def check(self) -> None:
        waiting = sorted(o for queue in self.queues.values() for o in queue)
        assert self.aside.records == len(waiting)
        assert self.aside.runs == runs_of(np.array(waiting, np.int64))
        assert bool(self.aside) == bool(waiting)
        assert (self.aside.nbytes > 0) == bool(waiting)
        for key in KEYS:
            assert (key in self.aside) == bool(self.queues.get(key))
            if self.queues.get(key):
                assert self.aside.first_of(self.queues[key][0]) == key


STEP = st.tuples(
    st.sampled_from(["add", "take", "take lowest", "give back"]),
    st.lists(st.sampled_from(KEYS), min_size=1, max_size=10),
    st.sets(st.sampled_from(KEYS), min_size=1),
    st.integers(1, 5),
    st.integers(1, 12),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEP, max_size=20))
def test_a_streams_records_keep_their_order(steps):
    model = Model()
    for operation, keys, ready, each, most in steps:
        before = {key: list(queue) for key, queue in model.queues.items()}
        if operation == "add":
            model.add(keys)
        elif operation == "take lowest":
            found = model.aside.take_lowest(lambda key, ready=ready: key in ready, each, most)
            got = sorted(model.taken(found))
            everything = sorted(o for queue in before.values() for o in queue)
            assert got == everything[: len(got)], "nothing is passed"
            if everything and min(before, key=lambda k: before[k] or [10**9]) in ready:
                assert got, "who is first and ready goes"
            assert len(got) <= most
        else:
            assert model.aside.any(lambda key, ready=ready: key in ready) == any(before.get(key) for key in ready)
            found = model.aside.take(lambda key, ready=ready: key in ready, each, most)
            got = model.taken(found)
            assert len(got) <= most
            assert all(len(segment) <= each for _, segment in found)
            waiting = sum(min(each, len(before.get(key, []))) for key in ready)
            assert len(got) == min(most, waiting), "as many as may"
            assert {key for key, _ in found} <= ready
            if operation == "give back" and found:
                for key, segment in found:
                    cut = len(segment) // 2
                    model.aside.give_back(key, segment.cut(cut)[1])
                    model.queues[key] = segment.offsets[cut:].tolist() + model.queues[key]
        model.check()


def test_every_stream_has_its_turn():
    model = Model()
    model.add([*KEYS] * 5)
    turns = [model.aside.take(lambda key: True, 1, 1)[0][0] for _ in range(8)]
    assert turns == [*KEYS, *KEYS]


def test_nothing_is_left_after_the_end():
    model = Model()
    model.add([*KEYS])
    model.aside.clear()
    model.queues.clear()
    model.check()
