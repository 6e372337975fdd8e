"""What the tensor codec makes of a producer's bytes, and what it says of bytes that are none."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest

from pipeline.codecs import make_codec
from pipeline.codecs.tensor import TensorCodec
from pipeline.contract import DTYPES, CodecSpec, StepInput
from pipeline.errors import ContractError
from tests.contracts import tensor_contract

NOTHING = np.empty((8, 0), np.uint8)


def test_steps_are_little_endian_whatever_the_record_holds() -> None:
    codec = TensorCodec(tensor_contract((StepInput("x", "float32", (2,)),)))
    records = [struct.pack("<4f", 1, 2, 3, 4), b"", struct.pack("<2f", 5, 6)]
    steps = codec.decode(records, np.array([1, 2, 1]), NOTHING)
    assert steps.values[0].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert steps.counts.tolist() == [2, 0, 1]


def test_several_inputs_come_one_after_the_other_each_with_all_its_steps() -> None:
    codec = TensorCodec(
        tensor_contract((StepInput("x", "int16", (2,)), StepInput("on", "bool"), StepInput("t", "int64")))
    )
    two = struct.pack("<4h2?2q", 1, 2, 3, 4, True, False, -5, 6)
    one = struct.pack("<2h?q", 7, 8, True, 2**62)
    steps = codec.decode([two, one], np.array([1, 2]), NOTHING)
    x, on, t = steps.values
    assert x.tolist() == [[1, 2], [3, 4], [7, 8]]
    assert on.tolist() == [True, False, True]
    assert t.tolist() == [-5, 6, 2**62]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_of_the_contract(dtype: str) -> None:
    given = np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype)
    codec = TensorCodec(tensor_contract((StepInput("x", dtype, (2,)),)))
    record = given.astype(given.dtype.newbyteorder("<")).tobytes()
    (got,) = codec.decode([record], np.array([1]), NOTHING).values
    assert got.dtype == given.dtype
    assert got.dtype.isnative
    assert (got == given).all()


def test_any_byte_but_zero_is_true() -> None:
    codec = TensorCodec(tensor_contract((StepInput("on", "bool"),)))
    (got,) = codec.decode([bytes([0, 1, 2, 255])], np.array([1]), NOTHING).values
    assert got.view(np.uint8).tolist() == [0, 1, 1, 1]


def test_a_wrong_length_fails_alone_and_says_what_a_step_is() -> None:
    codec = TensorCodec(tensor_contract((StepInput("x", "float32", (3,)), StepInput("t", "int64"))))
    good = struct.pack("<3fq", 1, 2, 3, 4)
    steps = codec.decode([good, good[:-1], good + good[:1], good], np.array([1, 2, 1, 2]), NOTHING)
    assert steps.counts.tolist() == [1, 0, 0, 1]
    assert steps.values[1].tolist() == [4, 4]
    assert {i: e.reason for i, e in steps.failed.items()} == {1: "length", 2: "length"}
    assert str(steps.failed[1]) == ("19 bytes are no whole number of steps: one step is 20 (x float32[3] + t int64[])")


def test_settings_are_refused_and_the_size_in_the_contract_is_checked() -> None:
    contract = tensor_contract()
    with pytest.raises(ContractError, match=r"numbers/1: codec tensor: unknown setting 'endian' \(there are: none\)"):
        TensorCodec(replace(contract, codec=CodecSpec("tensor", settings={"endian": "big"})))
    with pytest.raises(ContractError, match="codec tensor keeps 0 bytes of a stream, the contract says 4"):
        make_codec(replace(contract, codec=CodecSpec("tensor", memory_bytes=4)))
    assert make_codec(contract).memory_bytes == 0
