"""The text codec of unit tokens, with every kind of tokenizer that can be cut, held to what every codec must pass."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codecs.base import Codec
from pipeline.codecs.tokens import TokenCodec
from tests.contract.codec_suite import CodecSuite, apart, inherited
from tests.contract.test_codecs import NEVER_UTF8, cut_anywhere
from tests.tokenizations import CORPUS, tokens_contract

WORDS = (*CORPUS.split(" "), "", "\n", "\t x", "\u3000", "▁", "a" * 30, "日" * 12, "<|endoftext|>", "<mask>")


class TestByteLevel(CodecSuite):
    contract, beside = tokens_contract("byte-level", flush="boundary", cut="whitespace", hold_bytes=16)
    bad = tuple(("utf-8", value) for value in NEVER_UTF8)

    def make(self) -> Codec:
        return TokenCodec(self.contract, self.beside)

    def streams(self) -> st.SearchStrategy[bytes]:
        words = st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=6).map(" ".join)
        return words.flatmap(cut_anywhere)

    @inherited
    @given(data=st.data())
    def test_the_steps_of_an_ended_stream_do_not_depend_on_the_cutting(self, data: st.DataObject) -> None:
        stream = data.draw(self.streams())
        told = []
        for records in (data.draw(self.cuttings(stream)), data.draw(self.cuttings(stream))):
            codec = self.make()
            decoded = self.alone(records)
            row = decoded[-1].row
            assert row is not None
            (last,) = apart(codec.end(np.array([0]), np.frombuffer(row, np.uint8)[None].copy()), self.contract)
            told.append(tuple(a + b for a, b in zip(self.joined(decoded), last, strict=True)))
        assert told[0] == told[1]


class TestUnigram(TestByteLevel):
    contract, beside = tokens_contract("unigram", flush="boundary", cut="space", hold_bytes=7)


class TestWithAMask(TestByteLevel):
    """Cut where it does change tokens: then they are not those of the whole text, but the same however it is cut."""

    contract, beside = tokens_contract("with a mask", flush="boundary", cut="space")


class TestWordLevelWithoutUnknown(TestByteLevel):
    contract, beside = tokens_contract("word-level without unknown", flush="boundary", cut="space")
    bad = (*(("utf-8", value) for value in NEVER_UTF8), ("vocabulary", b"the dog sat"), ("vocabulary", b"x y"))

    def streams(self) -> st.SearchStrategy[bytes]:
        words = st.lists(st.sampled_from(["the", "cat", "sat,", "on.", ""]), max_size=8)
        return words.map(lambda some: " ".join(some).encode())


class TestRecordByRecord(TestByteLevel):
    """A record is a text of its own, so there is nothing to cut; but for half a character, which waits."""

    contract, beside = tokens_contract("byte-fallback", flush="record", dtype="int32")

    def cuttings(self, stream: bytes) -> st.SearchStrategy[list[bytes]]:
        return st.just([stream])

    def pieces(self, stream: bytes) -> list[bytes]:
        return [stream]
