"""Streams' own constants: what record headers may say, and what becomes of a stream that is given two."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.codecs.given import Given
from pipeline.contract import CodecSpec, Constant, Contract, HeadSpec, Output, StepInput


def given(constant: Constant) -> tuple[Given, np.ndarray]:
    contract = Contract(
        "m",
        "1",
        (StepInput("x", "float32"),),
        (),
        (Output("y", "float32", ()),),
        CodecSpec("tensor"),
        HeadSpec("tensor"),
        constants=(constant,),
    )
    return Given(contract), np.zeros((1, contract.given_bytes), np.uint8)


REFUSED = [
    b"",
    b"two",
    b"null",
    b"1,2,3",
    b"\xff",
    b"1" * 5000,
    b"1" * 400 + b",0.5",
    b"1," + b"[" * 100_000 + b"1",
    b"1," + b"[" * 100 + b"1" + b"],1" * 100,
    b"NaN,1",
    b"Infinity,1",
    b"1e40,1",
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("text", REFUSED, ids=lambda t: t[:12].decode(errors="replace"))
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_a_header_that_is_no_value_is_a_dead_letter(text: bytes, dtype: str) -> None:
    reader, rows = given(Constant("pair", dtype, (1, 2), (), "eddy-pair", 0))
    failed = reader.take([(("eddy-pair", text),)], np.array([0]), rows)
    assert failed[0].reason == "constant"
    assert "eddy-pair" in str(failed[0])
    assert not rows.any()


def test_a_stream_keeps_the_first_that_it_is_given() -> None:
    reader, rows = given(Constant("rate", "int64", (1,), (), "eddy-rate", 0))
    headers = [(), (("eddy-rate", b"8000"),), (), (("eddy-rate", b"16000"),), (("eddy-rate", b"8000"),)]
    failed = reader.take(headers, np.zeros(5, np.int64), rows)
    assert {i: error.reason for i, error in failed.items()} == {0: "constant", 3: "constant"}
    assert reader.columns(np.array([0]), rows)[0].tolist() == [8000]
