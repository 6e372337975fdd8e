"""The file that states travel in: what was written comes back, and no damage goes unnoticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from services.state import file as states
from services.state.file import Head, Rows, read_head, read_rows, writing

HEAD = Head("g", "t", 2, [3, 4], "00" * 7 + "a1", 5, 1_700_000_000_000, "chars/1", "ab" * 32)


def rows(partition: int, n: int, first: int = 0) -> Rows:
    """``n`` streams whose contents their numbers tell."""
    numbers = np.arange(first, first + n, dtype=np.int64)
    matrix = (numbers[:, None] * 7 + np.arange(5)).astype(np.uint8)
    keys = [b"k" * (i % 40 + 1) + b"%d" % i for i in numbers.tolist()]
    return Rows(partition, keys, numbers - 1, numbers + 10**12, matrix)


def write(path: Path, *lots: Rows) -> bytes:
    with writing(path, HEAD) as sink:
        for lot in lots:
            sink.add(lot)
    assert sink.streams == sum(len(lot.keys) for lot in lots)
    return path.read_bytes()


def flat(lots: list[Rows]) -> list[tuple[int, bytes, int, int, bytes]]:
    return [
        (lot.partition, key, int(a), int(w), row.tobytes())
        for lot in lots
        for key, a, w, row in zip(lot.keys, lot.applied, lot.written_ms, lot.rows)
    ]


def test_what_was_written_comes_back_in_pieces_of_one_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "CHUNK_BYTES", 500)
    lots = [rows(0, 30), rows(1, 1, 30), rows(0, 0), rows(1, 19, 31)]
    write(tmp_path / "s", *lots)
    assert read_head(tmp_path / "s") == HEAD
    back = list(read_rows(tmp_path / "s", HEAD))
    assert flat(back) == flat(lots)
    assert len(back) > 4
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_group_without_streams_has_a_file_too(tmp_path: Path) -> None:
    write(tmp_path / "s")
    assert list(read_rows(tmp_path / "s", read_head(tmp_path / "s"))) == []


def test_a_file_that_is_not_whole_never_appears(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"an older one")
    torn = rows(1, 3)
    torn.applied = torn.applied[:1]
    with pytest.raises(IndexError), writing(tmp_path / "s", HEAD) as sink:
        sink.add(torn)
    assert (tmp_path / "s").read_bytes() == b"an older one"
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@given(st.integers(0, 2**31), st.integers(1, 255))
def test_no_damage_goes_unnoticed(tmp_path_factory: pytest.TempPathFactory, where: int, flip: int) -> None:
    """One byte of the frames differs, or all from one on is missing, or one is too many."""
    path = tmp_path_factory.mktemp("damage") / "s"
    whole = write(path, rows(0, 3), rows(1, 2, 3))
    begin = whole.index(b"\n") + 1
    at = begin + where % (len(whole) - begin)
    for damaged in (whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :], whole[:at], whole + bytes([flip])):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"damaged|ends too early"):
            list(read_rows(path, read_head(path)))


def test_a_stream_that_is_missing_whole_is_noticed(tmp_path: Path) -> None:
    two, three = write(tmp_path / "s", rows(0, 2)), write(tmp_path / "s", rows(0, 3))
    (tmp_path / "s").write_bytes(two[: len(two) - 16] + three[-16:])
    with pytest.raises(UserError, match="should hold 3 streams"):
        list(read_rows(tmp_path / "s", HEAD))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no file of states"),
        (b"\x00\x01garbage", "is no file of states"),
        (b'{"group": "g"}\n', "is no file of states"),
        (b'{"eddy_state": 2}\n', "has version 2, this Eddy reads 1"),
        (b'{"eddy_state": 1, "group": "g"}\n', "is no file of states"),
    ],
)
def test_another_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_head(tmp_path / "other")
