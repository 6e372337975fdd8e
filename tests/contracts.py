"""Contracts of models that are not there: what a codec or a head is built from in its tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.contract import CodecSpec, Contract, HeadSpec, Output, StepInput

LETTERS = tuple("abcdefghijklmnopqrstuvwxyz \n")


def text_contract(
    *,
    unit: str = "characters",
    vocabulary: Sequence[str] = LETTERS,
    unknown: int | None = None,
    head: Mapping[str, Any] | None = None,
    logits: int | None = None,
    dtype: str = "int64",
) -> Contract:
    """Codec ``text``, head ``generate``."""
    codec: dict[str, Any] = {"unit": unit}
    if unit == "characters":
        codec |= {"vocabulary": list(vocabulary), "unknown": unknown}
    size = logits if logits is not None else len(vocabulary) if unit == "characters" else 256
    return Contract(
        "talk",
        "1",
        (StepInput("token", dtype),),
        (),
        (Output("logits", "float32", (size,)),),
        CodecSpec("text", settings=codec),
        HeadSpec("generate", settings=head or {}),
    )


def tensor_contract(
    steps: Sequence[StepInput] = (StepInput("x", "float32", (3,)),),
    outputs: Sequence[Output] = (Output("y", "float32", (4,)),),
    *,
    head: str = "tensor",
    output: str | None = None,
    labels: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Contract:
    """Codec ``tensor``, head ``tensor`` or another."""
    return Contract(
        "numbers",
        "1",
        tuple(steps),
        (),
        tuple(outputs),
        CodecSpec("tensor"),
        HeadSpec(head, output, labels=tuple(labels), settings=settings or {}),
    )


def audio_contract(
    shape: Sequence[int] = (4,), *, rate: int = 16000, dtype: str = "float32", **settings: Any
) -> Contract:
    """Codec ``audio``, head ``tensor``."""
    contract = tensor_contract((StepInput("samples", dtype, tuple(shape)),))
    return replace(contract, codec=CodecSpec("audio", settings={"rate": rate} | settings))


def video_contract(shape: Sequence[int] = (2, 3, 3), *, dtype: str = "uint8", **settings: Any) -> Contract:
    """Codec ``video``, head ``tensor``."""
    contract = tensor_contract((StepInput("pixels", dtype, tuple(shape)),))
    return replace(contract, codec=CodecSpec("video", settings=settings))
