"""What `eddy produce` makes of lines, bytes and arrays."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from pipeline.contract import CodecSpec, StepInput
from pipeline.errors import ConfigError, UserError
from services.cli import build_parser
from services.produce import array_of, produce, read_records
from services.producing.send import Record
from tests.contracts import tensor_contract
from tests.models import stepper


def records(*argv: str, files: tuple[Path, ...] = ()) -> list[Record]:
    args = build_parser().parse_args(["produce", "t", *argv, *map(str, files)])
    assert isinstance(args, argparse.Namespace)
    with tqdm(disable=True) as bar:
        return [r for some in read_records(args, files, bar) for r in some]


def file(folder: Path, content: bytes, name: str = "in.txt") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_lines_are_cut_at_the_first_separator(tmp_path: Path) -> None:
    source = file(tmp_path, b"a\tone\ttwo\n\nb\t\nc\tno newline at the end")
    assert records(files=(source,)) == [(b"a", b"one\ttwo"), (b"b", b""), (b"c", b"no newline at the end")]
    source = file(tmp_path, "ä::ö\n".encode())
    assert records("--key-separator", "::", files=(source,)) == [("ä".encode(), "ö".encode())]


def test_a_line_longer_than_one_read_stays_whole(tmp_path: Path) -> None:
    long = b"x" * 200_001
    assert records(files=(file(tmp_path, b"a\t" + long + b"\nb\ty"),)) == [(b"a", long), (b"b", b"y")]


def test_a_line_without_a_key_is_named(tmp_path: Path) -> None:
    source = file(tmp_path, b"a\tone\nno key here\n")
    with pytest.raises(UserError, match=r"in\.txt, line 2: no '\\t' between key and value"):
        records(files=(source,))


def test_with_a_key_input_is_bytes_cut_anywhere(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10
    found = records("--key", "k", "--record-bytes", "1000", files=(file(tmp_path, content),))
    assert {key for key, _ in found} == {b"k"}
    assert b"".join(value for _, value in found if value is not None) == content
    assert max(len(value or b"") for _, value in found) == 1000


def test_stdin_is_read_where_no_file_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\tb\n")))
    assert records() == [(b"a", b"b")]


def test_ends_come_last_and_alone_need_no_input(tmp_path: Path) -> None:
    assert records("--end", "a", "--end", "b") == [(b"a", None), (b"b", None)]
    assert records("--end", "a", files=(file(tmp_path, b"a\tx\n"),)) == [(b"a", b"x"), (b"a", None)]


@pytest.mark.parametrize("dtype", [">f4", "<f4", "<i8", "u1"])
def test_arrays_are_little_endian_whatever_they_were(tmp_path: Path, dtype: str) -> None:
    array = np.arange(70).reshape(10, 7).astype(dtype)
    path = tmp_path / "sensor.npy"
    np.save(path, array)
    found = records("--steps-per-record", "4", files=(path,))
    assert [key for key, _ in found] == [b"sensor"] * 3
    little = np.dtype(dtype).newbyteorder("<")
    back = [np.frombuffer(value or b"", little).reshape(-1, 7) for _, value in found]
    assert [len(b) for b in back] == [4, 4, 2]
    assert (np.concatenate(back) == array).all()
    assert records("--key", "k", files=(path,))[0][0] == b"k"


@pytest.mark.parametrize("array", [np.array(3.0), np.array([{}], object)])
def test_what_has_no_steps_or_no_numbers_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    path = tmp_path / "odd.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(UserError, match=r"odd\.npy"):
        records(files=(path,))


def test_what_numpy_makes_by_itself_is_not_read_as_twice_as_many_steps(tmp_path: Path) -> None:
    array = np.random.default_rng(4).standard_normal((6, 3))
    np.save(tmp_path / "wide.npy", array)
    path = tmp_path / "wide.npy"
    with pytest.raises(UserError, match=r"wide\.npy: holds float64.*--dtype float32 turns it"):
        records(files=(path,))
    turned = records("--dtype", "float32", files=(path,))
    assert b"".join(value or b"" for _, value in turned) == array.astype("<f4").tobytes()
    as_it_is = records("--dtype", "float64", files=(path,))
    assert b"".join(value or b"" for _, value in as_it_is) == array.tobytes()


def test_numbers_that_a_dtype_cannot_hold_are_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.npy"
    np.save(path, np.array([[1.0], [1e300]]))
    with pytest.raises(UserError, match=r"odd\.npy: has .*1e\+300.*, which float32 cannot hold"):
        records("--dtype", "float32", files=(path,))
    np.save(path, np.array([1, 70_000]))
    with pytest.raises(UserError, match=r"has .*70000.*, which int16 cannot hold"):
        records("--dtype", "int16", files=(path,))
    np.save(path, np.array([1.5]))
    with pytest.raises(UserError, match="holds float64, which --dtype int64 would not keep"):
        records("--dtype", "int64", files=(path,))


def test_arrays_are_held_against_the_model(tmp_path: Path) -> None:
    model = stepper(tmp_path / "models" / "stepper" / "1", StepInput("x", "float32", (3,)), CodecSpec("tensor"))
    path = tmp_path / "a.npy"
    right = np.random.default_rng(5).standard_normal((5, 3))
    for array, message in (
        (right, r"a\.npy: has steps of float64\[3\], stepper/1 reads x float32\[3\]; --dtype float32 turns it into"),
        (right[:, :2].astype("f4"), r"has steps of float32\[2\], stepper/1 reads x float32\[3\]$"),
    ):
        np.save(path, array)
        with pytest.raises(UserError, match=message):
            records("--model", str(model), files=(path,))
    for order in "<>":
        np.save(path, right.astype(f"{order}f4"))
        found = records("--model", str(model), "--steps-per-record", "5", files=(path,))
        assert found == [(b"a", right.astype("<f4").tobytes())]
    np.save(path, right)
    assert records("--model", str(model), "--dtype", "float32", "--steps-per-record", "5", files=(path,)) == found


def test_several_inputs_of_a_step_are_the_fields_of_one_array(tmp_path: Path) -> None:
    contract = tensor_contract((StepInput("x", "float32", (3,)), StepInput("n", "int64")))
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((2, 3), np.float32))
    with pytest.raises(UserError, match=r"reads x float32\[3\], n int64\[\]; save one array of a structured dtype"):
        array_of(path, None, contract)
    np.save(path, np.zeros(2, [("x", "f4", (3,)), ("n", "i8")]))
    assert len(array_of(path, None, contract)) == 2


def test_what_is_said_of_arrays_needs_one(tmp_path: Path) -> None:
    args = build_parser().parse_args(["produce", "t", "--dtype", "float32", str(file(tmp_path, b"a\tb"))])
    with pytest.raises(ConfigError, match=r"--model and --dtype are about \.npy arrays, and there is none"):
        produce(args)
