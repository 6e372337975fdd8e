"""Triton's ``config.pbtxt``: where one with ``sequence_batching`` lies beside the file, its state pairs are read.

Beside is: in the file's folder, or, in Triton's own layout ``NAME/VERSION/model.onnx``, in ``NAME``. What it says of
states, their beginning and its control inputs is then not guessed; it is proven all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from export.adopt.file import Array, File, require
from export.adopt.verdict import Refused
from pipeline.errors import ModelError

Message: TypeAlias = "dict[str, list[Any]]"
TYPES = {
    **{"TYPE_BOOL": "bool", "TYPE_UINT8": "uint8", "TYPE_INT8": "int8", "TYPE_INT16": "int16", "TYPE_INT32": "int32"},
    **{"TYPE_INT64": "int64", "TYPE_FP16": "float16", "TYPE_FP32": "float32", "TYPE_FP64": "float64"},
}
_TOKEN = re.compile(
    r"""\s+|\#[^\n]*|(?P<mark>[{}\[\]:,;<>])|(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<word>[^\s{}\[\]:,;<>"'#]+)"""
)


@dataclass
class Config:
    """What the file beside the model says."""

    path: Path
    states: dict[str, str] = field(default_factory=dict)
    initial: dict[str, Array] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    """Control inputs with the value they have inside a sequence."""


def find_config(file: Path) -> Path | None:
    """``config.pbtxt`` beside the model, if there is one."""
    places = [file.parent / "config.pbtxt"]
    if file.resolve().parent.name.isdigit():
        places.append(file.resolve().parent.parent / "config.pbtxt")
    return next((p for p in places if p.is_file()), None)


def read_config(path: Path, file: File) -> Config | None:
    """None where it has no state pairs. Raises ModelError for no text protobuf, Refused for what does not fit."""
    try:
        whole = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a model configuration ({error}); correct it or move it away") from None
    config = Config(path)
    for batching in whole.get("sequence_batching", []):
        for state in batching.get("state", []):
            _add_state(config, file, state)
        for control in batching.get("control_input", []):
            _add_control(config, file, control)
    return config if config.states else None


def _add_state(config: Config, file: File, state: Message) -> None:
    given, made = (_one(state, key, config.path) for key in ("input_name", "output_name"))
    if given not in file.inputs and given in file.optional:
        require(file, given)
    for name, there, kind in ((given, file.inputs, "input"), (made, file.outputs, "output")):
        if name not in there:
            raise Refused(f"{config.path}: state {given}: the graph has no {kind} {name!r} (it has {', '.join(there)})")
    config.states[given] = made
    for initial in state.get("initial_state", [])[:1]:
        dims = [int(d) for d in _flat(initial.get("dims", []))]
        dtype = TYPES.get(str(_one(initial, "data_type", config.path)))
        if dtype is None:
            raise Refused(f"{config.path}: state {given}: data type {initial['data_type']} is none that Eddy streams")
        if "data_file" in initial:
            blob = config.path.parent / "initial_state" / str(initial["data_file"][0])
            try:
                value: Array = np.frombuffer(blob.read_bytes(), np.dtype(dtype).newbyteorder("<")).astype(dtype)
            except (OSError, ValueError) as error:
                raise Refused(f"{config.path}: state {given}: {blob} cannot be read ({error})") from None
        else:
            value = np.zeros([max(d, 1) for d in dims], dtype)
        config.initial[given] = value


def _add_control(config: Config, file: File, control: Message) -> None:
    name = _one(control, "name", config.path)
    if name not in file.inputs:
        return
    for entry in control.get("control", []):
        kind = str(_one(entry, "kind", config.path))
        pairs = [
            _flat(entry[key]) for key in ("int32_false_true", "fp32_false_true", "bool_false_true") if key in entry
        ]
        shape = [d if isinstance(d, int) else 1 for d in file.inputs[name].dims]
        if kind == "CONTROL_SEQUENCE_READY" and pairs:
            config.constants[name] = np.full(shape, _number(pairs[0][1])).astype(file.inputs[name].dtype)
        elif kind in ("CONTROL_SEQUENCE_START", "CONTROL_SEQUENCE_END") and pairs:
            # A stream begins with its initial states, so the model need not be told.
            config.constants[name] = np.full(shape, _number(pairs[0][0])).astype(file.inputs[name].dtype)


def _number(word: Any) -> float:
    return float({"true": 1, "false": 0}.get(str(word), word))


def _one(message: Message, key: str, path: Path) -> str:
    values = message.get(key, [])
    if len(values) != 1:
        raise Refused(f"{path}: expected one {key} in each state and control of sequence_batching, found {len(values)}")
    return str(values[0])


def _flat(values: list[Any]) -> list[Any]:
    return [v for value in values for v in (value if isinstance(value, list) else [value])]


# ---- text protobuf


def parse(text: str) -> Message:
    """Fields, each a list of all its values: text, numbers as they are written, messages. Raises ValueError."""
    tokens = list(_tokens(text))
    message, at = _fields(tokens, 0, None)
    if at != len(tokens):
        raise ValueError(f"{tokens[at]!r} closes nothing")
    return message


def _tokens(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"cannot read {text[at : at + 20]!r}")
        at = match.end()
        if match.lastgroup is not None:
            yield match.group()


def _fields(tokens: list[str], at: int, end: str | None) -> tuple[Message, int]:
    message: Message = {}
    while at < len(tokens) and tokens[at] != end:
        name, at = tokens[at], at + 1
        if name in "{}[]<>:":
            raise ValueError(f"expected a field's name, found {name!r}")
        if at < len(tokens) and tokens[at] == ":":
            at += 1
        value, at = _value(tokens, at)
        message.setdefault(name, []).extend(value if isinstance(value, list) else [value])
        if at < len(tokens) and tokens[at] in ",;":
            at += 1
    if end is not None:
        if at >= len(tokens):
            raise ValueError(f"the file ends before {end!r}")
        at += 1
    return message, at


def _value(tokens: list[str], at: int) -> tuple[Any, int]:
    if at >= len(tokens):
        raise ValueError("the file ends where a value should be")
    token = tokens[at]
    if token in "{<":
        return _fields(tokens, at + 1, "}" if token == "{" else ">")
    if token == "[":
        values: list[Any] = []
        at += 1
        while at < len(tokens) and tokens[at] != "]":
            value, at = _value(tokens, at)
            values.append(value)
            if at < len(tokens) and tokens[at] == ",":
                at += 1
        if at >= len(tokens):
            raise ValueError("the file ends before ']'")
        return values, at + 1
    if token[0] in "\"'":
        return token[1:-1], at + 1
    return token, at + 1
