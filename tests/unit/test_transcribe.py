"""What the head ``transcribe`` answers, step by step, and which contracts it takes."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.language_model import build
from pipeline.beside import Beside, entry
from pipeline.columns import U8
from pipeline.contract import Contract, HeadSpec, Output
from pipeline.errors import ContractError
from pipeline.heads import make_head
from pipeline.heads.base import Finished
from pipeline.heads.transcribe import TranscribeHead
from tests.contracts import tensor_contract

LABELS = ("", *"abcdefghijklmnopqrstuvwxyz", " ", "ß", '"')


def contract(labels: Sequence[str] = LABELS, **settings: Any) -> Contract:
    """Steps of 0.1 s; utterances end after 0.3 s of silence."""
    return tensor_contract(
        outputs=(Output("logits", "float32", (len(labels),)),),
        head="transcribe",
        labels=labels,
        settings={"step_s": 0.1, "silence_s": 0.3, **settings},
    )


class Talk:
    """One stream. ``hear("aa_b")``: the likeliest label of each step, ``_`` the blank, in one record."""

    def __init__(self, labels: Sequence[str] = LABELS, **settings: Any) -> None:
        self._labels = labels
        self._head = TranscribeHead(contract(labels, **settings))
        self.memory: U8 = np.zeros((3, self._head.memory_bytes), np.uint8)

    def hear(self, *records: str | None) -> list[list[dict[str, Any]]]:
        """The answers to each record, all in one poll; None ends the stream."""
        return self.listen(*(None if r is None else [{c: 5.0} for c in r] for r in records))

    def listen(self, *records: list[dict[str, float]] | None) -> list[list[dict[str, Any]]]:
        """The same with logits of each step's labels; those of all others are 0."""
        n, at = len(records), np.arange(len(records))
        counts = np.array([len(record or "") for record in records])
        logits = np.zeros((int(counts.sum()), len(self._labels)), np.float32)
        for i, step in enumerate(step for record in records for step in record or ()):
            logits[i, [self._labels.index("" if c == "_" else c) for c in step]] = list(step.values())
        ended = np.array([record is None for record in records])
        answered = self._head.answer(
            Finished(np.full(n, 1), counts, [b"k"] * n, at, at, None, (logits,), ended), self.memory
        )
        out: list[list[dict[str, Any]]] = [[] for _ in records]
        assert isinstance(answered.values, list)
        for i, value in zip(answered.index.tolist(), answered.values, strict=True):
            out[i].append(json.loads(value or b""))
        return out


def said(text: str, start_s: float, end_s: float, final: bool = False) -> dict[str, Any]:
    return {"text": text, "final": final, "start_s": start_s, "end_s": end_s}


def test_repeats_and_blanks_are_taken_out_and_a_record_that_adds_nothing_is_not_answered() -> None:
    talk = Talk()
    assert talk.hear("__hh_", "h", "h", "_", "eh", "hh") == [
        [said("h", 0.2, 0.4)],
        [said("hh", 0.2, 0.6)],
        [],
        [],
        [said("hheh", 0.2, 1.0)],
        [],
    ]


def test_silence_after_speech_ends_an_utterance_and_before_it_says_nothing() -> None:
    talk = Talk()
    assert talk.hear("_" * 50) == [[]]
    assert talk.hear("hi__", "_", "____", "yo") == [
        [said("hi", 5.0, 5.2)],
        [said("hi", 5.0, 5.2, final=True)],
        [],
        [said("yo", 5.9, 6.1)],
    ]


def test_a_record_with_several_end_points_is_answered_several_times() -> None:
    assert Talk().hear("a___b___c") == [
        [said("a", 0.0, 0.1, final=True), said("b", 0.4, 0.5, final=True), said("c", 0.8, 0.9)]
    ]
    assert Talk(partial=False).hear("a___b__", "_c") == [
        [said("a", 0.0, 0.1, final=True)],
        [said("b", 0.4, 0.5, final=True)],
    ]


def test_a_stream_that_ends_says_its_last_word() -> None:
    talk = Talk()
    assert talk.hear("ab", None) == [[said("ab", 0.0, 0.2)], [said("ab", 0.0, 0.2, final=True)]]
    assert Talk().hear("___", None) == [[], []]
    assert Talk().hear("a___", None) == [[said("a", 0.0, 0.1, final=True)], []]


def test_an_utterance_has_a_longest_time() -> None:
    """Its last step counts, what follows is the next one's, and a character that sounds on is not said again."""
    assert Talk(longest_s=0.4).hear("_abbc", "ccd") == [
        [said("abc", 0.1, 0.5, final=True)],
        [said("d", 0.7, 0.8)],
    ]
    # The end falls into a record in which nothing begins.
    assert Talk(longest_s=0.4, silence_s=9).hear("ab", "_", "_") == [
        [said("ab", 0.0, 0.2)],
        [],
        [said("ab", 0.0, 0.2, final=True)],
    ]


def test_an_utterance_has_a_longest_text() -> None:
    """It ends while every label there is still fits, so that the row holds it."""
    (answers,) = Talk(max_bytes=16).hear("abcdefghijklmnßuvw")
    assert [(a["text"], a["final"]) for a in answers] == [("abcdefghijklmnß", True), ("uvw", False)]
    assert [len(a["text"].encode()) for a in answers] == [16, 3]


def test_spaces_around_a_text_are_not_shown_and_are_silence() -> None:
    assert Talk().hear("  a b", " ", " __") == [
        [said("a b", 0.2, 0.5)],
        [],
        [said("a b", 0.2, 0.5, final=True)],
    ]


def test_text_is_written_as_json() -> None:
    assert Talk().hear('ß"')[0][0]["text"] == 'ß"'


def test_confidence_is_the_mean_probability_of_the_characters() -> None:
    (answer,) = Talk(confidence=True).hear("ab_")[0]
    assert answer["confidence"] == round(math.exp(5) / (math.exp(5) + len(LABELS) - 1), 4)


def test_no_text_is_left_in_the_row_after_an_end_point() -> None:
    talk, other = Talk(), Talk()
    talk.hear("abc____")
    other.hear("__d____")
    assert talk.memory[1].tobytes() == other.memory[1].tobytes()
    assert talk.memory[[0, 2]].any() == np.False_


@pytest.mark.parametrize(
    "settings", [{}, {"longest_s": 0.7}, {"max_bytes": 16}, {"partial": False, "confidence": True}]
)
@pytest.mark.parametrize("certain", [0.8, 0.99])
def test_where_the_model_is_sure_a_beam_says_what_is_likeliest(settings: dict[str, Any], certain: float) -> None:
    """The same answers to every record, wherever end points fall, and whether silent steps are searched or not."""
    draw = random.Random(4)
    for _ in range(30):
        records = ["".join(draw.choices("_____aab ß", k=draw.randrange(12))) for _ in range(12)]
        greedy, beam = Talk(**settings), Talk(beam=4, certain=certain, **settings)
        at = 0
        while at < len(records):
            poll = records[at : at + draw.randrange(1, 4)]
            at += len(poll)
            assert beam.hear(*poll) == greedy.hear(*poll)
        assert beam.hear(None) == greedy.hear(None)


def test_a_language_model_decides_where_the_model_is_not_sure(tmp_path: Path) -> None:
    """Of "cat" and "cut", about as likely to the ear, the one that the text it read has; greedily the other."""
    model = build(["the cat sat", "a cat"], 4, alphabet=LABELS[1:])
    (tmp_path / "lm.bin").write_bytes(model.to_bytes())
    logits = np.full((6, len(LABELS)), -9.0, np.float32)
    for t, likely in enumerate(["c", "c", "ua", "_", "t", "_"]):
        logits[t, [LABELS.index("" if c == "_" else c) for c in likely]] = [1.1, 1.0][: len(likely)]
    beam = {"beam": 8, "language_model": entry("lm.bin", model.to_bytes())}
    heard = {}
    for name, more in {"greedy": {}, "alone": {"beam": 8}, "read": beam, "ignored": beam | {"lm_weight": 0}}.items():
        head = TranscribeHead(contract(**more), Beside(tmp_path))
        at = np.arange(1)
        finished = Finished(at, np.array([6]), [b"k"], at, at, None, (logits,), np.array([False]))
        (value,) = head.answer(finished, np.zeros((1, head.memory_bytes), np.uint8)).values
        heard[name] = json.loads(value)["text"]  # type: ignore[arg-type]  # no transcript is None
    assert heard == {"greedy": "cut", "alone": "cut", "read": "cat", "ignored": "cut"}


def test_a_text_that_differs_by_a_space_at_its_end_only_is_not_said_again() -> None:
    """First "a " is likelier, then "a"."""
    steps = [{"a": 20.0}, {" ": 11.6, "a": 11.4, "_": 10.0}, {"a": 11.4, "_": 11.0}]
    together, apart = Talk(beam=4), Talk(beam=4)
    assert together.listen(steps[:2], steps[2:]) == [[said("a", 0.0, 0.1)], []]
    assert apart.listen(steps[:2]) == [[said("a", 0.0, 0.1)]]
    assert apart.listen(steps[2:]) == [[]]
    assert apart.hear(None) == [[said("a", 0.0, 0.3, final=True)]]


def test_what_is_likely_only_over_several_steps_has_times_and_an_end_too() -> None:
    """The blank is likelier in every single step, and "a" in both together."""
    talk = Talk(beam=4)
    steps = [{"_": 12.0, "a": 11.9}] * 2
    assert talk.listen(steps) == [[said("a", 0.1, 0.2)]]
    assert talk.hear("__", "_") == [[], [said("a", 0.1, 0.2, final=True)]]
    assert Talk().listen(steps) == [[]]


def test_more_is_said_where_every_character_is_rewarded() -> None:
    quiet, eager = Talk(beam=4), Talk(beam=4, insertion_bonus=8)
    assert quiet.hear("a_b_") == [[said("ab", 0.0, 0.3)]]
    ((more,),) = eager.hear("a_b_")
    assert len(more["text"]) > 2


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        (contract(step_s=0), "setting 'step_s' is 0: expected a number from 0.0001 to 60"),
        (contract(step_s=None), "setting 'step_s' is None: expected a number from 0.0001 to 60"),
        (contract(max_bytes=5), "setting 'max_bytes' is 5: expected a whole number from 16 to 2000"),
        (contract(silence_s=True), "setting 'silence_s' is True: expected a number from 0 to 3600"),
        (contract(partial=1), "setting 'partial' is 1: expected true or false"),
        (contract(blank=0), "unknown setting 'blank'"),
        (contract(labels="abc"), "0 of the labels are empty: exactly one must be, the blank"),
        (contract(labels=("", "a", "")), "2 of the labels are empty: exactly one must be, the blank"),
        (contract(labels=("", "a", "a")), "label 'a' is given twice"),
        (contract(labels=("", "x" * 9), max_bytes=16), "a label has 9 bytes, more than half of max_bytes, 16"),
        (contract(beam=0), "setting 'beam' is 0: expected a whole number from 1 to 64"),
        (contract(lm_weight=1), "unknown setting 'lm_weight'"),
        (contract(beam=2, certain=0.5), "setting 'certain' is 0.5: expected a number above 0.5, at most 1"),
        (contract(beam=2, language_model="lm.bin"), "setting 'language_model' is 'lm.bin': expected a file beside"),
        (contract(labels=("", "\ud800")), "label '\\ud800' is no text"),
        (
            replace(contract(), outputs=(Output("y", "float32", (3,)),)),
            f"{len(LABELS)} labels for an output of 3 classes: they must be as many",
        ),
        (replace(contract(), head=HeadSpec("transcribe", labels=LABELS)), "setting 'step_s' is missing"),
    ],
)
def test_contracts_that_do_not_fit_are_refused(contract: Contract, message: str) -> None:
    with pytest.raises(ContractError) as caught:
        TranscribeHead(contract)
    assert message in str(caught.value)


def test_a_file_that_is_no_language_model_for_these_labels_is_refused(tmp_path: Path) -> None:
    for content, message in (
        (b"?", "no language model"),
        (build(["ab"], 2).to_bytes(), "does not know the labels 'c'"),
    ):
        (tmp_path / "lm.bin").write_bytes(content)
        asked = contract(beam=2, language_model=entry("lm.bin", content))
        with pytest.raises(ContractError, match=f"head transcribe: setting 'language_model': .*{message}"):
            TranscribeHead(asked, Beside(tmp_path))


def test_the_contract_says_how_large_the_row_is() -> None:
    size = TranscribeHead(contract()).memory_bytes
    assert make_head(replace(contract(), head=replace(contract().head, memory_bytes=size))).choices == "outputs"
    with pytest.raises(ContractError, match=f"head transcribe keeps {size} bytes of a stream, the contract says 0"):
        make_head(contract())
