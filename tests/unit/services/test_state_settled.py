"""What offsets must say before states are moved: each reason why not is told by name."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.columns import Committed
from pipeline.errors import UserError
from pipeline.mark import Mark
from pipeline.transport.base import LogRange
from services.state.export import settled
from services.state.group import Held
from services.state.install import check_offset
from services.state.moving import finished

MARK = Mark(bytes(16), 7, 7, b"digest-1")


def held(mark: Mark | None, offset: int = 7, end: int = 9, partition: int = 0) -> Held:
    return Held(partition, Committed(offset, mark.encode() if mark is not None else ""), mark, LogRange(0, end))


NEVER_BEGUN = Held(1, None, None, LogRange(0, 0))


def changed(**fields: object) -> Mark:
    return dataclasses.replace(MARK, **fields)  # type: ignore[arg-type]


def test_a_group_whose_states_are_all_saved_may_be_exported() -> None:
    assert settled("g", "t", [held(MARK), NEVER_BEGUN, held(MARK, partition=2)]) == b"digest-1"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([held(None)], "partition 0 of group 'g': another tool has set its offset to 7"),
        ([held(MARK, offset=6)], "another tool has set its offset to 6"),
        (
            [held(MARK), held(changed(replay_from=5), partition=1)],
            "partition 1 of group 'g': records from 5 on are done",
        ),
        ([held(changed(done_above=((8, 9),)))], "1 records above C 7 are done"),
        ([held(changed(version=9))], "metadata version 9, this Eddy reads"),
        ([held(MARK), held(changed(digest=b"digest-2"))], "several models (6469676573742d31, 6469676573742d32)"),
        ([NEVER_BEGUN], "group 'g' has no offset of 't'"),
    ],
)
def test_what_would_lose_or_repeat_is_refused(parts: list[Held], said: str) -> None:
    with pytest.raises(UserError) as refused:
        settled("g", "t", parts)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (held(MARK, offset=7, end=6), "outside the log 0..6"),
        (held(changed(replay_from=5)), "is in use (C 7, R 5)"),
        (held(changed(done_above=((8, 9),))), "is in use"),
        (held(MARK, offset=6), "is in use"),
        (held(changed(digest=b"digest-2")), "was run by a model with"),
    ],
)
def test_an_import_begins_at_no_other_offset(part: Held, said: str) -> None:
    with pytest.raises(UserError) as refused:
        check_offset("g", part, b"digest-1")
    assert said in str(refused.value)
    for good in (held(MARK), held(None), NEVER_BEGUN):
        check_offset("g", good, b"digest-1")


def test_an_input_is_finished_when_nothing_is_left_of_it() -> None:
    finished("t", [held(MARK, end=7), NEVER_BEGUN])
    for left in (held(MARK, end=8), Held(1, None, None, LogRange(3, 4))):
        with pytest.raises(UserError, match=r"is done up to \d of \d: stop its producers"):
            finished("t", [held(MARK, end=7), left])
