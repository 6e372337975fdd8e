"""Record values and headers as `eddy tail` shows them."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from pipeline.columns import source_column
from pipeline.contract import Output
from services.values import Decoder, escape, headers_as_json
from tests.contracts import tensor_contract, text_contract


@pytest.mark.parametrize(
    ("value", "fields", "line"),
    [
        (b"plain", {"value": "plain"}, "plain"),
        ("größe\n\t\x1b[2J".encode(), {"value": "größe\n\t\x1b[2J"}, "größe\\n\\t\\x1b[2J"),
        (b"", {"value": ""}, ""),
        (None, {"value": None}, "(end of stream)"),
        (b"\xff\xfe", {"value_base64": "//4="}, "base64://4="),
        (b"\0\0\0\0", {"value_base64": "AAAAAA=="}, "base64:AAAAAA=="),
    ],
)
def test_values_without_a_model(value: bytes | None, fields: dict[str, object], line: str) -> None:
    assert Decoder(None).fields(value) == fields
    assert Decoder(None).line(value) == line


def test_escaped_text_is_one_line_that_can_be_read_back() -> None:
    for text in ("a\\n\n", "tab\t", "Zeile\u2028", "\r\x00", "日本"):
        escaped = escape(text)
        assert escaped.isprintable()
        assert escaped.encode("latin-1", "backslashreplace").decode("unicode_escape") == text


def test_a_model_turns_bytes_into_numbers_output_after_output() -> None:
    contract = tensor_contract()
    assert contract.head.kind == "tensor"
    decoder = Decoder(contract)
    chosen = contract.outputs if contract.head.output is None else (contract.output(contract.head.output),)
    arrays = {o.name: np.arange(3 * o.nbytes // np.dtype(o.dtype).itemsize).astype(o.dtype) for o in chosen}
    arrays = {o.name: arrays[o.name].reshape(3, *o.shape) for o in chosen}
    value = b"".join(a.tobytes() for a in arrays.values())
    assert decoder.fields(value) == {"value": {name: a.tolist() for name, a in arrays.items()}}
    assert decoder.fields(value[:-1]) == {"value_base64": base64.b64encode(value[:-1]).decode()}


def test_a_transcript_is_shown_with_its_times_and_dots_while_it_goes_on() -> None:
    decoder = Decoder(tensor_contract(head="transcribe"))
    partial = b'{"text":"so b\xc3\xa4","final":false,"start_s":12.3,"end_s":13.04}'
    assert decoder.line(partial) == "[12.30-13.04] so bä ..."
    assert decoder.line(partial.replace(b"false", b"true")) == "[12.30-13.04] so bä"
    assert decoder.fields(partial) == {"value": partial.decode()}
    for other in (b"12", b"{}", b'{"text":"a","final":true,"start_s":"1"}', b"no JSON"):
        assert decoder.line(other) == other.decode()


def test_the_source_header_is_two_numbers() -> None:
    source = source_column(3, np.array([1 << 40])).tobytes()
    told = headers_as_json([("eddy-model", b"m/1"), ("eddy-source", source), ("odd", b"\xff")])
    assert told == {"eddy-model": "m/1", "eddy-source": {"partition": 3, "offset": 1 << 40}, "odd": {"base64": "/w=="}}


def test_records_of_another_model_are_told_apart() -> None:
    numbers = Decoder(tensor_contract(outputs=(Output("y", "float32", (2,)),)))
    mine, other = [("eddy-model", b"numbers/1")], [("eddy-model", b"chars/2")]
    assert numbers.doubt(mine, bytes(16)) is None
    assert numbers.doubt([], bytes(16)) is None
    assert numbers.doubt(other, None) is None
    assert numbers.doubt(other, bytes(16)) == (
        "values are of chars/2, their header eddy-model says, and are read as those of numbers/1"
    )
    assert numbers.doubt(other, b"It was") == (
        "values of chars/2 are not the steps of 8 bytes (y) that numbers/1 writes: they are shown as they are"
    )
    classes = Decoder(tensor_contract(head="classify"))
    assert classes.doubt([], b'{"label": "a"}') is None
    for value in (b"12", b"It was", bytes(4)):
        said = classes.doubt(mine, value)
        assert said is not None
        assert said.startswith("values are not the JSON objects (head classify) that numbers/1 writes")
    assert Decoder(text_contract()).doubt([], b"\0\0") == (
        "values are not the text that talk/1 writes: they are shown as they are"
    )
    assert Decoder(None).doubt(other, b"It was") is None
