"""What an adoption tells: one JSON object, a table for a person, the card beside the model."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from typing import Any

import onnxruntime as ort

from export import markdown
from export.adopt.adoption import Adopted
from export.adopt.edges import Place
from pipeline.contract import Output


def as_json(adopted: Adopted) -> dict[str, Any]:
    """The object that ``--json`` prints. Shapes are one step's, one stream's, in the file's own axes."""
    plan, contract = adopted.plan, adopted.contract
    return {
        "file": str(adopted.file),
        "model": contract.label,
        "inputs": [_place(p) for p in plan.inputs],
        "outputs": [_place(p) for p in plan.outputs]
        or [
            {"name": o.name, "dtype": o.dtype, "shape": list(o.shape), "step": list(o.shape)} for o in contract.outputs
        ],
        "states": [
            {
                "input": s.input,
                "output": s.output,
                "batch_axis": s.batch_axis,
                "shape": list(s.shape),
                "dtype": s.dtype,
                "initial": "zeros" if s.initial is None else "given",
                "found": plan.pairs.how.get(s.input, ""),
            }
            for s in contract.states
        ],
        "constants": [
            {
                "name": c.name,
                "dtype": c.dtype,
                "shape": list(c.shape),
                "value": _value(c.value, c.shape),
                "header": c.header,
            }
            for c in contract.constants
        ],
        "time_axis": plan.timing.axis if plan.timed else None,
        "hop": plan.timing.hop,
        "batching": plan.lifted.batching,
        "parity": {
            "comparisons": [{"what": f.what, "outputs": f.outputs, "states": f.states} for f in adopted.proof.figures],
            "outputs": max(f.outputs for f in adopted.proof.figures),
            "states": max(f.states for f in adopted.proof.figures),
            "state_matters": dict(adopted.proof.matters),
        },
        "notes": list(adopted.notes),
    }


def _place(place: Place) -> dict[str, Any]:
    return {
        "name": place.name,
        "dtype": place.dtype,
        "shape": list(place.shape),
        "batch_axis": place.batch,
        "time_axis": place.time,
        "step": list(place.step_shape),
    }


def _shown(output: Output) -> dict[str, Any]:
    """A state that is shown, as the contract has it."""
    step = list(output.shape)
    return {
        "name": output.name,
        "dtype": output.dtype,
        "shape": [1, *step],
        "batch_axis": 0,
        "time_axis": None,
        "step": step,
    }


def _value(value: Sequence[float | int | bool], shape: Sequence[int]) -> Any:
    if not value:
        return None
    return value[0] if not shape else list(value)


def table(adopted: Adopted) -> Iterator[str]:
    """For a person."""
    for block in (_parts(adopted), _parity(adopted)):
        rows = list(block)
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        yield ""
    for note in adopted.notes:
        yield f"note: {note}"
    contract, file = adopted.contract, adopted.file
    yield f"{contract.label}: {file} ({file.stat().st_size / 1e6:.2f} MB), card README.md beside it"
    yield f"next: eddy run --model {file.parent} --input TOPIC --output TOPIC"


def _parts(adopted: Adopted) -> Iterator[tuple[str, str, str, str]]:
    """Part, name, dtype and shape, what was found."""
    plan, contract = adopted.plan, adopted.contract
    yield "part", "name", "shape", "found"
    for p in plan.inputs:
        yield "step input", p.name, f"{p.dtype}{list(p.shape)}", _axes(p)
    for s in contract.states:
        axis = "no batch axis" if s.batch_axis is None else f"batch axis {s.batch_axis}"
        start = "" if s.initial is None else ", begins with values of its own"
        found = plan.pairs.how.get(s.input, "")
        yield "state", f"{s.input} -> {s.output}", f"{s.dtype}{list(s.shape)}", f"{axis}{start}; {found}"
    for c in contract.constants:
        values = ", ".join(f"{v:g}" for v in c.value[:4]) + (", ..." if len(c.value) > 4 else "")
        own = f"a stream's own, header {c.header}" + (f", else {values}" if values else "")
        yield "constant", c.name, f"{c.dtype}{list(c.shape)}", own if c.header is not None else values
    for p in plan.outputs:
        yield "output", p.name, f"{p.dtype}{list(p.shape)}", _axes(p)
    time = f"axis {plan.timing.axis} of the steps" if plan.timed else "none: one step of a stream a call"
    yield "time axis", time, "", "" if plan.timing.hop is None else f"hop {plan.timing.hop}"
    yield "batching", plan.lifted.batching, "", "" if plan.lifted.axes else "one stream a call"


def _axes(place: Place) -> str:
    streams = "no batch axis" if place.batch is None else f"batch axis {place.batch}"
    return streams if place.time is None else f"{streams}, time axis {place.time}"


def _parity(adopted: Adopted) -> Iterator[tuple[str, str, str]]:
    yield "parity with the file by hand", "outputs", "states"
    for f in adopted.proof.figures:
        yield f.what, f"{f.outputs:.2g}", f"{f.states:.2g}"
    for name, size in adopted.proof.matters:
        yield f"without state {name} what follows changes by", f"{size:.2g}", ""


def write_card(adopted: Adopted) -> None:
    """``README.md`` beside the model."""
    card = "\n".join(_card(adopted)) + "\n"
    adopted.file.with_name("README.md").write_text(card, encoding="utf-8")


def _card(adopted: Adopted) -> Iterator[str]:
    yield f"# {adopted.contract.label}"
    yield ""
    yield f"Adopted from `{adopted.source.name}`, exported by somebody else: see there for its data and its licence."
    parts, parity = list(_parts(adopted)), list(_parity(adopted))
    yield from ("", "## Contract", "", *markdown.table(parts[0], parts[1:]))
    yield from ("", "## Parity", "")
    yield (
        "Largest absolute differences; allowed: 1e-4 of a step output, 1e-4 of max(1, its size) of a state (5e-3 with"
        f" float16). onnxruntime {ort.__version__}, Python {platform.python_version()}."
    )
    yield from ("", *markdown.table(parity[0], parity[1:]))
    if adopted.notes:
        yield from ("", "## Notes", "", *(f"- {note}" for note in adopted.notes))
