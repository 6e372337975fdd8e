"""The heads that Eddy has, each held to what every head must pass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from export.language_model import build
from pipeline.beside import Beside, entry
from pipeline.columns import Headers
from pipeline.contract import Contract, Output
from pipeline.heads.base import Head
from pipeline.heads.classify import ClassifyHead
from pipeline.heads.generate import GenerateHead
from pipeline.heads.tensor import TensorHead
from pipeline.heads.transcribe import TranscribeHead
from tests.contract.codec_suite import inherited
from tests.contract.head_suite import Event, HeadSuite, Moment
from tests.contracts import tensor_contract, text_contract
from tests.tokenizations import tokens_contract


class TestTensor(HeadSuite):
    contract = tensor_contract()

    def make(self) -> Head:
        return TensorHead(self.contract)


class TestTensorOfSeveralOutputs(TestTensor):
    contract = tensor_contract(
        outputs=(Output("y", "float16", (3,)), Output("n", "int64", ()), Output("m", "float32", (2, 2)))
    )


class TestClassify(HeadSuite):
    contract = tensor_contract(head="classify", labels=("low", "high", "wörd", '"'))

    def make(self) -> Head:
        return ClassifyHead(self.contract)


class TestGenerate(HeadSuite):
    contract = text_contract(vocabulary="abé", head={"max_steps": 9, "end_token": 3}, logits=4)

    def make(self) -> Head:
        return GenerateHead(self.contract)

    def headers(self) -> st.SearchStrategy[Headers]:
        def one(name: str, *values: bytes) -> st.SearchStrategy[list[tuple[str, bytes]]]:
            return st.sampled_from(values).map(lambda v: [(name, v)])

        stops = st.lists(st.sampled_from([b"ab", b"aab", "éa".encode(), b"bb", "bé".encode() * 8]), max_size=4)
        some = st.tuples(
            one("eddy-max-steps", b"0", b"1", b"2", b"14") | st.just([]),
            one("eddy-temperature", b"0", b"0.3", b"2.5") | st.just([]),
            one("eddy-top-k", b"0", b"1", b"2", b"99") | st.just([]),
            one("eddy-top-p", b"1", b"0.5", b"0.001") | st.just([]),
            one("eddy-seed", b"1", b"18446744073709551615") | st.just([]),
            stops.map(lambda texts: [("eddy-stop", t) for t in texts]),
            st.just([("traceparent", b"00-1")]) | st.just([]),
        )
        return some.map(lambda parts: tuple(h for part in parts for h in part))


class TestGenerateTokens(TestGenerate):
    """Parts of characters, words, a token without text, and the end by its name."""

    contract, beside = tokens_contract(
        "byte-level", head={"max_steps": 12, "end_token": "<|endoftext|>"}, cut="whitespace", dtype="int32"
    )
    bias = np.where(np.isin(np.arange(340), [0, *range(60, 70), 195, 169, 320, 330, 338]), 0.0, -50.0)

    made = GenerateHead(contract, beside)

    def make(self) -> Head:
        return self.made  # it keeps nothing of a stream


class TestGenerateBytes(TestGenerate):
    """Whole characters, halves of them and bytes that are in no character."""

    contract = text_contract(unit="bytes", head={"max_steps": 12, "end_token": 256}, logits=257)
    bias = np.where(np.isin(np.arange(257), [*b"ab\xc3\xa9\xe2\x82\xac\xff\xed\xa0", 256]), 0.0, -50.0)


def transcribing(
    outputs: Sequence[Output] = (Output("logits", "float32", (5,)),),
    labels: Sequence[str] = ("a", "", " ", "wörd", "b"),
    **settings: Any,
) -> Contract:
    return tensor_contract(
        outputs=outputs,
        head="transcribe",
        output="logits",
        labels=labels,
        settings={"step_s": 0.1, **settings},
    )


class TestTranscribe(HeadSuite):
    """Utterances that end by silence, by their time and by their text, some within a record."""

    contract = transcribing(silence_s=0.2, longest_s=1.1, max_bytes=16, confidence=True)
    bias = np.array([0.0, 2.0, 0.0, 0.0, 0.0])

    def make(self) -> Head:
        return TranscribeHead(self.contract)

    def scripts(self) -> st.SearchStrategy[list[Event]]:
        steps = st.lists(st.integers(0, 5), max_size=9).map(tuple)
        record = st.builds(Event, steps)
        # What waited in the codec comes with the end.
        end = st.builds(Event, st.just(()) | steps, null=st.just(True))
        return st.lists(st.one_of(record, record, record, end), min_size=1, max_size=6)

    @inherited
    @given(data=st.data())
    def test_cutting_elsewhere_gives_the_same_row_and_the_same_answers(self, data: st.DataObject) -> None:
        """After every step the same row, and what is said there is the same wherever it is said."""
        steps = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=40))
        places = data.draw(st.lists(st.integers(0, len(steps)), max_size=8).map(sorted))
        cuts = list(zip([0, *places], [*places, len(steps)]))
        single = self.alone([Event((step,)) for step in steps], b"k")
        whole = self.alone([Event(tuple(steps[a:b])) for a, b in cuts], b"k")
        for (a, b), moment in zip(cuts, whole, strict=True):
            if b:
                assert (moment.row, moment.model) == (single[b - 1].row, single[b - 1].model)
            assert finals(moment) == [f for m in single[a:b] for f in finals(m)]
            for said in partials(moment):
                before = [p["text"] for m in single[:b] for p in said_by(m)]
                assert before[-1] == said["text"]
                if partials(single[b - 1]):
                    assert partials(single[b - 1]) == [said]


class TestTranscribeFinalsOfHalves(TestTranscribe):
    contract = transcribing(
        (Output("x", "int64", ()), Output("logits", "float16", (5,))), silence_s=0, partial=False, confidence=True
    )


class TestTranscribeByBeam(TestTranscribe):
    """Hypotheses that disagree for longer than a tail, among them, and steps that are not searched."""

    contract = transcribing(
        silence_s=0.3, longest_s=2.1, max_bytes=16, confidence=True, beam=3, insertion_bonus=0.5, certain=0.6
    )


READ = build(["a ba a", "abba b", "wörd"], 4, alphabet="abwörd ").to_bytes()


class TestTranscribeByBeamWithLanguageModel(TestTranscribe):
    contract = transcribing(
        labels=("a", "", " ", "w", "b"),
        max_bytes=200,
        silence_s=1.0,
        beam=4,
        lm_weight=0.7,
        language_model=entry("lm.bin", READ),
    )

    def make(self) -> Head:
        return reading_head()


@cache
def reading_head() -> Head:
    """One for all: what it reads takes longer than what it does, and it has no state."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "lm.bin").write_bytes(READ)
        return TranscribeHead(TestTranscribeByBeamWithLanguageModel.contract, Beside(Path(folder)))


def said_by(moment: Moment) -> list[dict[str, Any]]:
    return [json.loads(answer.value) for answer in moment.answers]


def finals(moment: Moment) -> list[dict[str, Any]]:
    return [said for said in said_by(moment) if said["final"]]


def partials(moment: Moment) -> list[dict[str, Any]]:
    return [said for said in said_by(moment) if not said["final"]]
