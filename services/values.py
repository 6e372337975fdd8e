"""Values of records for people and for JSON: text where it is text, numbers where a model says so, else base64."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.contract import Contract, Output

SOURCE_BYTES = 12


MODEL_HEADER = "eddy-model"
"""Name and version of the model that wrote a record."""


class Decoder:
    """Reads values as a model's head writes them; without a model, as text or bytes."""

    def __init__(self, contract: Contract | None) -> None:
        self._label = contract.label if contract is not None else None
        self._outputs: tuple[Output, ...] = ()
        self._head = contract.head.kind if contract is not None else None
        if contract is not None and contract.head.kind == "tensor":
            chosen = contract.head.output
            self._outputs = contract.outputs if chosen is None else (contract.output(chosen),)

    def fields(self, value: bytes | None) -> dict[str, Any]:
        """``value``: text, None, or ``{output: nested lists [T, ...]}``; ``value_base64`` where it is none of these."""
        if value is None:
            return {"value": None}
        if self._outputs:
            step_bytes = sum(o.nbytes for o in self._outputs)
            steps, left = divmod(len(value), step_bytes)
            if not left:
                return {"value": self._arrays(value, steps)}
        elif (text := _text(value)) is not None:
            return {"value": text}
        return {"value_base64": base64.b64encode(value).decode()}

    def line(self, value: bytes | None) -> str:
        """One line: control characters of a text are escaped."""
        fields = self.fields(value)
        if "value_base64" in fields:
            return f"base64:{fields['value_base64']}"
        found = fields["value"]
        if found is None:
            return "(end of stream)"
        if isinstance(found, dict):
            return " ".join(f"{name}={np.array(rows).tolist()}" for name, rows in found.items())
        return escape(_transcript(found) if self._head == "transcribe" else found)

    def doubt(self, headers: Sequence[tuple[str, bytes]], value: bytes | None) -> str | None:
        """Why a record seems not to be one of this model; None where nothing speaks against it."""
        if self._label is None or value is None:
            return None
        by = next((content.decode(errors="replace") for name, content in headers if name == MODEL_HEADER), self._label)
        form = self._other_than(value)
        if form is not None:
            whose = f" of {by}" if by != self._label else ""
            return f"values{whose} are not the {form} that {self._label} writes: they are shown as they are"
        if by != self._label:
            return f"values are of {by}, their header {MODEL_HEADER} says, and are read as those of {self._label}"
        return None

    def _other_than(self, value: bytes) -> str | None:
        """What the head writes, where this is something else."""
        if self._outputs:
            step_bytes = sum(o.nbytes for o in self._outputs)
            named = " and ".join(o.name for o in self._outputs)
            return f"steps of {step_bytes} bytes ({named})" if len(value) % step_bytes else None
        if self._head == "generate":
            return "text" if _text(value) is None else None
        return None if _is_object(value) else f"JSON objects (head {self._head})"

    def _arrays(self, value: bytes, steps: int) -> dict[str, Any]:
        arrays, at = {}, 0
        for output in self._outputs:
            dtype = np.dtype(output.dtype).newbyteorder("<")
            end = at + steps * output.nbytes
            arrays[output.name] = np.frombuffer(value[at:end], dtype).reshape(steps, *output.shape).tolist()
            at = end
        return arrays


def _transcript(value: str) -> str:
    """``[1.20-2.46] what was said``, with dots behind it while it goes on; anything else as it is."""
    try:
        said = json.loads(value)
        dots = "" if said["final"] else " ..."
        return f"[{said['start_s']:.2f}-{said['end_s']:.2f}] {said['text']}{dots}"
    except (ValueError, TypeError, KeyError):
        return value


def _is_object(value: bytes) -> bool:
    try:
        return isinstance(json.loads(value), dict)
    except ValueError:
        return False


def headers_as_json(headers: Sequence[tuple[str, bytes]]) -> dict[str, Any]:
    """By name; ``eddy-source`` as its two numbers."""
    out: dict[str, Any] = {}
    for name, value in headers:
        if name == "eddy-source" and len(value) == SOURCE_BYTES:
            partition, offset = int.from_bytes(value[:4], "big"), int.from_bytes(value[4:], "big")
            out[name] = {"partition": partition, "offset": offset}
        else:
            text = _text(value)
            out[name] = text if text is not None else {"base64": base64.b64encode(value).decode()}
    return out


def escape(text: str) -> str:
    """Printable on one line: ``\\n``, ``\\t``, ``\\x1b``, ``\\\\``."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text)


def _text(value: bytes) -> str | None:
    """None for what is no UTF-8, or has NULs in it: small numbers in binary often happen to be UTF-8."""
    try:
        return value.decode() if b"\0" not in value else None
    except UnicodeDecodeError:
        return None
