"""The model card beside ``model.onnx``: where the model comes from, what it promises, and what was proven of it."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort
import torch

from export.markdown import table
from export.parity import Parity
from pipeline.contract import Contract


@dataclass(frozen=True)
class CardText:
    """What only the model's maker can say; an empty part is left out, a missing licence is named as missing."""

    summary: str = ""
    data: str = ""
    metrics: tuple[tuple[str, str], ...] = ()
    precisions: tuple[tuple[str, ...], ...] = ()
    """The same model with its weights stored in fewer bits: a header and its rows."""
    training: str = ""
    licence: str = ""
    command: str = ""
    """What builds the model again."""


def write_card(file: Path, contract: Contract, parity: Parity, model_bytes: int, text: CardText) -> None:
    """Writes the card as Markdown."""
    file.write_text("\n".join(_lines(contract, parity, model_bytes, text)) + "\n", encoding="utf-8")


def _lines(contract: Contract, parity: Parity, model_bytes: int, text: CardText) -> Iterable[str]:
    yield f"# {contract.label}"
    for title, body in (("", text.summary), ("Data", text.data), ("Training", text.training)):
        if body:
            yield from ("", f"## {title}", "", body) if title else ("", body)
    if text.metrics:
        yield from ("", "## Metrics", "", *table(("metric", "value"), text.metrics))
    if text.precisions:
        header, *rows = text.precisions
        yield from ("", "## Precisions", "", *table(header, rows))
    yield from ("", "## Contract", "")
    yield from table(("part", "what"), _contract_rows(contract, model_bytes))
    yield from ("", "## Parity", "")
    yield (
        f"Largest absolute differences; allowed: {parity.tolerance:g} of the largest value (at least of 1)."
        f" PyTorch {torch.__version__}, onnxruntime {ort.__version__}, Python {platform.python_version()}."
    )
    yield ""
    yield from table(("comparison", "where", "difference"), parity.table())
    if text.command:
        yield from ("", "## Rebuild", "", "```sh", text.command, "```")
    yield from ("", "## Licence", "", text.licence or "Not stated by the model's maker.")


def _contract_rows(contract: Contract, model_bytes: int) -> Iterable[tuple[str, str]]:
    lead = {(0, 1): "T, B", (1, 0): "B, T", (None, 0): "B"}[contract.time_axis, contract.batch_axis]

    def dims(shape: Sequence[int]) -> str:
        return f"[{', '.join([lead, *map(str, shape)])}]"

    yield "file", f"{model_bytes / 1e6:.2f} MB"
    for s in contract.steps:
        yield "step input", f"`{s.name}` {s.dtype} {dims(s.shape)}"
    for state in contract.states:
        shape = ["B" if i == state.batch_axis else str(d) for i, d in enumerate(state.shape)]
        start = "zeros" if state.initial is None else "not zero"
        yield "state", f"`{state.input}` -> `{state.output}` {state.dtype} [{', '.join(shape)}], begins as {start}"
    for o in contract.outputs:
        yield "output", f"`{o.name}` {o.dtype} {dims(o.shape)}"
    yield "codec", f"{_codec(contract)}, {contract.codec.memory_bytes} bytes a stream"
    yield "head", f"{contract.head.kind}, {contract.head.memory_bytes} bytes a stream"
    yield "digest", f"`{contract.digest.hex()}`"


def _codec(contract: Contract) -> str:
    """With how a tokenizer is served, where there is one."""
    settings = contract.codec.settings
    if settings.get("unit") != "tokens":
        return contract.codec.kind
    if settings.get("flush") == "boundary":
        waits = "a record's last word waits for the next record"
        return f"{contract.codec.kind} by tokenizer.json, cut at every {settings['cut']}; {waits}"
    return f"{contract.codec.kind} by tokenizer.json, every record by itself"
