"""The codecs that Eddy has, each held to what every codec must pass."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from pipeline.codecs.base import Codec
from pipeline.codecs.tensor import TensorCodec
from pipeline.codecs.text import TextCodec
from pipeline.contract import StepInput
from tests.contract.codec_suite import CodecSuite
from tests.contracts import LETTERS, tensor_contract, text_contract

# Every length of UTF-8, its first and last characters, what looks like others' bytes, and a byte order mark.
CHARACTERS = tuple("ab \n\0\x7f\x80é\u07ff\u0800€\ud7ff\ue000\ufeff\ufffd\uffff\U00010000😀\U0010ffff")
NEVER_UTF8 = (
    b"\xff",
    b"\xc0\xaf",
    b"\xe0\x80",
    b"\xed\xa0",
    b"\xf4\x90",
    b"\xf5",
    b"ab\x80cd",
    b"a\xc3(",
    b"\xf0\x9f\x98a",
    b"\xe2\x82\xff\xe2",
)


def cut_anywhere(text: str) -> st.SearchStrategy[bytes]:
    """The text's bytes up to any of them."""
    data = text.encode()
    return st.integers(0, len(data)).map(lambda n: data[:n])


class TestTextOfCharacters(CodecSuite):
    contract = text_contract(vocabulary=CHARACTERS)
    bad = (
        *(("utf-8", value) for value in NEVER_UTF8),
        ("vocabulary", b"abz"),
        ("vocabulary", "aß".encode()),
        ("vocabulary", "€日".encode() + b"\xe2"),
    )

    def make(self) -> Codec:
        return TextCodec(self.contract)

    def streams(self) -> st.SearchStrategy[bytes]:
        return st.text(CHARACTERS, max_size=12).flatmap(cut_anywhere)


class TestTextWithAnUnknownToken(TestTextOfCharacters):
    contract = text_contract(vocabulary=LETTERS, unknown=28, dtype="int32")
    bad = tuple(("utf-8", value) for value in NEVER_UTF8)


class TestTextOfBytes(TestTextOfCharacters):
    contract = text_contract(unit="bytes")
    bad = tuple(("utf-8", value) for value in NEVER_UTF8)


class TestTensor(CodecSuite):
    contract = tensor_contract((StepInput("x", "float32", (3,)),))
    bad = (("length", b"1"), ("length", bytes(11)), ("length", bytes(13)))

    def make(self) -> Codec:
        return TensorCodec(self.contract)

    def streams(self) -> st.SearchStrategy[bytes]:
        size = self.contract.step_bytes
        return st.integers(0, 6).flatmap(lambda n: st.binary(min_size=n * size, max_size=n * size))

    def cuttings(self, stream: bytes) -> st.SearchStrategy[list[bytes]]:
        size = self.contract.step_bytes
        places = st.lists(st.integers(0, len(stream) // size), max_size=5).map(sorted)
        return places.map(
            lambda at: [self.record(stream[a * size : b * size]) for a, b in zip([0, *at], [*at, len(stream) // size])]
        )

    def pieces(self, stream: bytes) -> list[bytes]:
        size = self.contract.step_bytes
        return [self.record(stream[a : a + size]) for a in range(0, len(stream), size)]

    def record(self, steps: bytes) -> bytes:
        """Whole steps, one after the other -> the record that holds them."""
        return steps


class TestTensorOfScalars(TestTensor):
    contract = tensor_contract((StepInput("x", "int64"),))
    bad = (("length", b"1"), ("length", bytes(7)), ("length", bytes(9)))


class TestTensorOfSeveralInputs(TestTensor):
    """Seven bytes a step, so that nothing lies where its dtype would like it."""

    contract = tensor_contract((StepInput("x", "int16", (1, 2)), StepInput("on", "bool"), StepInput("z", "float16")))
    bad = (("length", b"1"), ("length", bytes(6)), ("length", bytes(8)))

    def record(self, steps: bytes) -> bytes:
        rows = np.frombuffer(steps, np.uint8).reshape(-1, 7)
        return rows[:, :4].tobytes() + rows[:, 4:5].tobytes() + rows[:, 5:].tobytes()
