"""What the heads ``tensor`` and ``classify`` answer, and which contracts they take."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.columns import AnyArray
from pipeline.contract import DTYPES, Contract, HeadSpec, Output
from pipeline.errors import ContractError
from pipeline.heads import HEADS, make_head
from pipeline.heads.base import Finished
from pipeline.heads.classify import ClassifyHead
from pipeline.heads.tensor import TensorHead
from tests.contracts import tensor_contract

NO_MEMORY = np.empty((9, 0), np.uint8)


def finished(counts: list[int], *outputs: AnyArray) -> Finished:
    n = len(counts)
    numbers = np.arange(n)
    return Finished(numbers, np.array(counts), [b"k"] * n, numbers, numbers, None, outputs, np.zeros(n, np.bool_))


# ---- tensor


def test_records_of_equal_length_are_answered_by_a_matrix() -> None:
    head = TensorHead(tensor_contract(outputs=(Output("y", "float32", (2,)),)))
    y = np.arange(8, dtype=np.float32).reshape(4, 2)
    answered = head.answer(finished([2, 0, 2], y), NO_MEMORY)
    assert isinstance(answered.values, np.ndarray)
    assert answered.index.tolist() == [0, 2]
    assert answered.values.tobytes() == struct.pack("<8f", *range(8))
    assert answered.values.shape == (2, 16)


def test_several_outputs_come_one_after_the_other_each_with_all_its_steps() -> None:
    contract = tensor_contract(outputs=(Output("y", "int16", (2,)), Output("n", "int64", ()), Output("b", "bool", ())))
    head = TensorHead(contract)
    assert head.reads == ("y", "n", "b")
    y = np.array([[1, 2], [3, 4], [5, 6]], np.int16)
    n, b = np.array([7, 8, 9]), np.array([True, False, True])
    two, one = struct.pack("<4h2q2?", 1, 2, 3, 4, 7, 8, True, False), struct.pack("<2hq?", 5, 6, 9, True)
    assert head.answer(finished([2, 1], y, n, b), NO_MEMORY).values == [two, one]
    same = head.answer(finished([1, 1, 1], y, n, b), NO_MEMORY).values
    assert isinstance(same, np.ndarray)
    assert same[2].tobytes() == one


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_written_little_endian(dtype: str) -> None:
    head = TensorHead(tensor_contract(outputs=(Output("y", dtype, (3,)),)))
    y = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    little = y.astype(y.dtype.newbyteorder("<")).tobytes()
    for given in (y, np.asfortranarray(y), y.astype(y.dtype.newbyteorder(">"))):
        values = head.answer(finished([2], given), NO_MEMORY).values
        assert isinstance(values, np.ndarray)
        assert values.tobytes() == little


def test_one_output_can_be_picked() -> None:
    outputs = (Output("y", "float32", (2,)), Output("z", "float32", ()))
    assert TensorHead(tensor_contract(outputs=outputs, output="z")).reads == ("z",)
    with pytest.raises(ContractError, match="no output named 'w'"):
        TensorHead(tensor_contract(outputs=outputs, output="w"))
    with pytest.raises(ContractError, match="unknown setting 'top'"):
        TensorHead(tensor_contract(settings={"top": 3}))


# ---- classify


def classify(
    settings: dict[str, Any] | None = None, labels: tuple[str, ...] = ("no", "yes", 'ö"'), **more: Any
) -> Contract:
    return tensor_contract(
        outputs=(Output("logits", "float32", (3,)),), head="classify", labels=labels, settings=settings, **more
    )


def answers(head: ClassifyHead, *logits: list[float]) -> list[bytes]:
    values = head.answer(finished([1] * len(logits), np.array(logits, np.float32)), NO_MEMORY).values
    assert isinstance(values, list)
    return [v or b"" for v in values]


def test_an_answer_is_a_json_object() -> None:
    head = ClassifyHead(classify({"top": 2}))
    (answer,) = answers(head, [0, 1, 2])
    assert answer.decode() == '{"label":"ö\\"","probability":0.665241,"top":[["ö\\"",0.665241],["yes",0.244728]]}'
    assert json.loads(answer)["top"][0] == ['ö"', 0.665241]


def test_equal_outputs_give_equal_bytes_and_ties_the_first_label() -> None:
    head = ClassifyHead(classify())
    assert answers(head, [0.1, 0.2, 0.3])[0] == answers(head, [5, 5, 5], [0.1, 0.2, 0.3], [1, 2, 3])[1]
    assert json.loads(answers(head, [1, 1, 1])[0])["top"] == [["no", 0.333333], ["yes", 0.333333], ['ö"', 0.333333]]


def test_probabilities_of_the_model_are_written_as_they_are() -> None:
    head = ClassifyHead(classify({"activation": "none", "top": 9}))
    assert json.loads(answers(head, [0.25, 0.75, -0.0])[0])["top"] == [["yes", 0.75], ["no", 0.25], ['ö"', 0.0]]
    assert b"-0.0" not in answers(head, [0.25, 0.75, -1e-9])[0]


@pytest.mark.parametrize("activation", ["softmax", "none"])
def test_what_is_no_number_is_null_and_still_json(activation: str) -> None:
    head = ClassifyHead(classify({"activation": activation}))
    for logits in ([np.nan, 1, 2], [np.inf, 1, 2], [-np.inf] * 3, [np.nan] * 3, [np.inf, np.inf, 0]):
        answer = json.loads(answers(head, logits)[0], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert set(answer) == {"label", "probability", "top"}


def test_records_without_steps_get_no_answer() -> None:
    head = ClassifyHead(classify())
    outputs = np.array([[np.nan] * 3, [0, 1, 0], [np.nan] * 3], np.float32)
    answered = head.answer(finished([0, 4, 0], outputs), NO_MEMORY)
    assert answered.index.tolist() == [1]
    assert len(answered.values) == 1


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        (classify({"top": 0}), "setting 'top' is 0: expected a whole number from 1 to 1000"),
        (classify({"activation": "sigmoid"}), "setting 'activation' is 'sigmoid': expected 'softmax' or 'none'"),
        (classify({"labels": 3}), "unknown setting 'labels' (there are: top, activation)"),
        (classify(labels=("no", "yes")), "2 labels for output 'logits' of 3 classes: they must be as many"),
        (classify(labels=("a", "b", "\ud800")), "label '\\ud800' is no text"),
        (replace(classify(), head=HeadSpec("classify", labels=(1, 2, 3))), "label 1 is no text"),  # type: ignore[arg-type]
        (replace(classify(), outputs=(Output("y", "int64", (3,)),)), "output 'y' is int64[3]: expected floats"),
        (replace(classify(), outputs=(Output("y", "float32", ()),)), "output 'y' is float32[]: expected floats"),
    ],
)
def test_contracts_that_do_not_fit_are_refused(contract: Contract, message: str) -> None:
    with pytest.raises(ContractError) as caught:
        ClassifyHead(contract)
    assert message in str(caught.value)


def test_unknown_heads_are_named() -> None:
    with pytest.raises(ContractError, match=f"unknown head 'shout'; this Eddy has {', '.join(HEADS)}"):
        make_head(tensor_contract(head="shout"))
