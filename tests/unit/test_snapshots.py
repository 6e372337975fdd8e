"""What a snapshot says of the row that is in it: when another model must not read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.beside import entry
from pipeline.contract import CodecSpec, Contract, StepInput
from pipeline.streams.snapshots import digest_of
from tests.contracts import audio_contract, tensor_contract, text_contract
from tests.models import stepper
from tests.unit.test_worker import counted, made, new_broker, running
from tests.unit.test_worker_liveness import soon

Change = Callable[[Contract], Contract]


def codec_with(**settings: Any) -> Change:
    return lambda c: replace(c, codec=replace(c.codec, settings={**c.codec.settings, **settings}))


def head_with(**settings: Any) -> Change:
    return lambda c: replace(c, head=replace(c.head, settings={**c.head.settings, **settings}))


def labels(*texts: str) -> Change:
    return lambda c: replace(c, head=replace(c.head, labels=texts))


def keeping(contract: Contract) -> Contract:
    """Codec and head keep something of a stream."""
    return replace(contract, codec=replace(contract.codec, memory_bytes=9), head=replace(contract.head, memory_bytes=9))


SPOKEN = keeping(
    head_with(step_s=0.1, language_model=entry("characters.npz", b"one"))(labels("", "a", "b")(audio_contract((160,))))
)
WRITTEN = keeping(codec_with(tokenizer=entry("tokenizer.json", b"one"))(text_contract()))


@pytest.mark.parametrize(
    ("contract", "change"),
    [
        (SPOKEN, codec_with(rate=8000)),
        (SPOKEN, codec_with(rates=[44100])),
        (SPOKEN, labels("", "b", "a")),
        (SPOKEN, head_with(step_s=0.2)),
        (SPOKEN, head_with(language_model=entry("characters.npz", b"two"))),
        (SPOKEN, head_with(language_model=None)),
        (WRITTEN, codec_with(tokenizer=entry("tokenizer.json", b"two"))),
        (WRITTEN, codec_with(vocabulary=["b", "a"])),
    ],
)
def test_a_row_that_means_something_else_has_another_digest(contract: Contract, change: Change) -> None:
    """Each of them leaves the row's size as it is."""
    assert digest_of(change(contract)) != digest_of(contract)
    assert digest_of(change(contract)) == digest_of(change(Contract.from_json(contract.to_json())))


@pytest.mark.parametrize(
    ("contract", "change"),
    [
        (SPOKEN, head_with(silence_s=2.0, longest_s=9.0, partial=False)),
        (WRITTEN, head_with(temperature=0.5, max_steps=9)),
        (WRITTEN, lambda c: replace(c, model_version="2")),
        (tensor_contract(head="classify", labels=["a", "b"]), labels("b", "a")),
        (tensor_contract(), lambda c: replace(c, name="other")),
    ],
)
def test_a_row_that_means_the_same_is_read_by_a_model_that_is_newer(contract: Contract, change: Change) -> None:
    assert digest_of(change(contract)) == digest_of(contract)


def test_a_model_whose_row_is_its_states_alone_is_known_by_its_state_schema() -> None:
    contract = tensor_contract()
    assert digest_of(contract) == contract.digest


async def test_a_model_that_would_read_what_waits_otherwise_does_not_take_it_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a hop of 16,000 samples a second is no half of a hop of 8,000, though it has as many bytes."""
    broker = new_broker()
    broker.produce("in", 0, b"k", bytes(12))
    outcomes = {16000: lambda: counted(broker) == 1, 8000: lambda: "the partition stops" in caplog.text}
    for rate, outcome in outcomes.items():
        codec = CodecSpec("audio", settings={"rate": rate, "rates": []})
        worker, _ = made(broker, stepper(tmp_path / str(rate), StepInput("x", "int16", (4,)), codec))
        async with running(worker):
            await soon(outcome)
    assert "other settings of its codec or head" in caplog.text
