"""Which pieces of generated text become one record."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.columns import Headers, Records, source_column
from pipeline.heads.pieces import merge_pieces

Row = tuple[bytes, int, bytes, int, str]
"""Key, offset of the prompt, text, step, finish or nothing."""


def headers(step: int, finish: str) -> Headers:
    end = [("eddy-finish", finish.encode())] if finish else []
    return [("eddy-step", b"%d" % step), *end, ("traceparent", b"t%d" % step)]


def records(rows: list[Row], *, source: bool = True) -> Records:
    offsets = np.array([r[1] for r in rows], np.int64)
    return Records(
        [r[0] for r in rows],
        [r[2] for r in rows],
        offsets // 10,
        (("eddy-model", b"m/1"),),
        (("eddy-source", source_column(2, offsets)),) if source else (),
        [headers(step, finish) for *_, step, finish in rows],
    )


def rows(merged: Records) -> list[Row]:
    assert merged.extra is not None
    assert merged.constant == (("eddy-model", b"m/1"),)
    out = []
    for i, (key, value, extra) in enumerate(zip(merged.keys, merged.values, merged.extra, strict=True)):
        found = dict(extra)
        step = int(found["eddy-step"])
        assert found["traceparent"] == b"t%d" % step, "the headers are the first one's"
        assert key is not None
        offset = int.from_bytes(merged.columns[0][1][i, 4:].tobytes(), "big") if merged.columns else -1
        out.append((key, offset, bytes(value), step, found.get("eddy-finish", b"").decode()))
    return out


INTERLEAVED: list[Row] = [
    (b"a", 1, b"he", 0, ""),
    (b"b", 2, b"wor", 4, ""),
    (b"a", 1, b"ll", 2, ""),
    (b"b", 2, b"ld", 7, "stop"),
    (b"a", 1, b"o", 4, ""),
]


def test_a_streams_pieces_become_one_where_its_first_was() -> None:
    merged = merge_pieces(records(INTERLEAVED))
    assert rows(merged) == [(b"a", 1, b"hello", 0, ""), (b"b", 2, b"world", 4, "stop")]
    assert merged.timestamps.tolist() == [0, 0]


@pytest.mark.parametrize("source", [True, False])
@pytest.mark.parametrize(
    "second",
    [
        [(b"k", 2, b"c", 0, ""), (b"k", 2, b"d", 1, "end")],
        [(b"k", 2, b"c", 0, "length"), (b"k", 3, b"d", 0, "end")],
    ],
)
def test_the_next_prompt_begins_a_record_of_its_own(source: bool, second: list[Row]) -> None:
    """Also without ``eddy-source`` and at the same timestamp: a piece of step 0 is a beginning."""
    first: list[Row] = [(b"k", 1, b"a", 3, ""), (b"k", 1, b"b", 4, "stop")]
    merged = rows(merge_pieces(records(first + second, source=source)))
    texts = [(text, step, finish) for _, _, text, step, finish in merged]
    expected = [(b"cd", 0, "end")] if second[0][4] == "" else [(b"c", 0, "length"), (b"d", 0, "end")]
    assert texts == [(b"ab", 3, "stop"), *expected]


def test_what_is_over_takes_nothing_more() -> None:
    """A last piece whose successor is another generation's, the beginning of which is in an earlier part."""
    given: list[Row] = [(b"k", 1, b"a", 3, "end"), (b"k", 1, b"b", 5, "")]
    assert rows(merge_pieces(records(given))) == given
    joined: list[Row] = [(b"k", 1, b"a", 3, ""), (b"k", 1, b"b", 4, "end"), (b"k", 1, b"c", 5, "")]
    assert rows(merge_pieces(records(joined))) == [(b"k", 1, b"ab", 3, "end"), (b"k", 1, b"c", 5, "")]


def test_a_generation_that_never_finished_takes_nothing_of_the_next() -> None:
    given: list[Row] = [(b"k", 1, b"a", 3, ""), (b"k", 1, b"b", 0, "")]
    assert rows(merge_pieces(records(given))) == given


def test_another_source_or_timestamp_is_another_generation() -> None:
    given: list[Row] = [(b"k", 1, b"a", 3, ""), (b"k", 2, b"b", 5, "")]
    assert rows(merge_pieces(records(given))) == given
    apart: list[Row] = [(b"k", 1, b"a", 3, ""), (b"k", 11, b"b", 5, "")]
    assert len(merge_pieces(records(apart, source=False))) == 2


def test_nothing_to_merge_is_left_as_it_is() -> None:
    alone = records([(b"a", 1, b"x", 0, ""), (b"b", 1, b"y", 0, "")])
    assert merge_pieces(alone) is alone
    none = Records.none()
    assert merge_pieces(none) is none
