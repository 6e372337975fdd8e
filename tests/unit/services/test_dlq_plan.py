"""Which dead letters were sent, beside one offset: C and D as runs, over any history."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.columns import Segment
from pipeline.mark import Mark
from services.dlq.letters import Replayed, read_letters
from services.dlq.replay import Plan

TAG = bytes(16)


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=60))
def test_the_offset_tells_of_every_letter(letters: list[tuple[int, bool]]) -> None:
    """Offsets have gaps, where the markers of transactions are."""
    offsets = np.cumsum([gap for gap, _ in letters]).astype(np.int64)
    done = np.array([was for _, was in letters])
    mark = Mark.decode(Plan(0, offsets, ~done, done, 0).mark(TAG).encode())
    assert mark is not None
    told = Replayed(mark.committed, mark.done_above)
    assert [int(o) in told for o in offsets] == done.tolist()
    assert len(mark.done_above) <= 30
    assert int(offsets[-1]) + 1 not in told, "a letter that is yet to come"


def test_only_what_a_worker_adds_is_taken_off_a_letters_headers() -> None:
    source = (2).to_bytes(4, "big") + (77).to_bytes(8, "big")
    own = [("eddy-model", b"theirs"), ("eddy-source", b"theirs"), ("eddy-error", b"theirs")]
    added = [("eddy-error", b"length"), ("eddy-message", b"why")]
    headers = [
        [("eddy-model", b"chars/1"), ("eddy-source", source), *own, *added],
        [("eddy-source", source), *own, *added],
        [("eddy-source", source), *added],
        [("eddy-source", source[::-1]), *added],
        [*added, ("eddy-source", source)],
        [("mine", b"1")],
        [],
    ]
    n = len(headers)
    numbers = np.arange(n, dtype=np.int64)
    letters = read_letters(Segment(2, [b"k"] * n, [b"v"] * n, numbers, numbers, n, headers))
    assert [(letter.offset, letter.headers) for letter in letters] == [(0, own), (1, own), (2, [])]
    assert {(letter.source, letter.reason, letter.message) for letter in letters} == {(77, "length", "why")}
