"""Inputs that are neither step nor state: the same for every call, or for a whole stream.

That an input is one can be seen (it has no stream's axis, or its name says so); which value it has cannot. What the
graph compares it with is the value that is tried, and that the question proposes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.adopt.file import Array, File, Port, compared_with
from export.adopt.names import sounds_like_constant, sounds_like_state, sounds_like_step, words
from pipeline.errors import ConfigError

USUAL = {"sr": 16000.0, "rate": 16000.0, "hz": 16000.0, "samplerate": 16000.0}
"""Tried where the graph names no value."""


@dataclass(frozen=True)
class Guess:
    """A constant whose value nobody gave: what was tried, and the question."""

    name: str
    value: Array
    question: tuple[str, str]
    likely: Sequence[Array] = ()
    """Values that the graph, or the name, speaks of."""


def given_value(port: Port, text: str, flag: str) -> Array:
    """``16000``, ``0.5,0.25``, JSON lists, or ``@FILE.npy``, ``@FILE.json`` -> an array of the port's dtype and rank.

    Raises ConfigError.
    """
    try:
        if text.startswith("@") and text.endswith(".npy"):
            value: Array = np.load(text[1:], allow_pickle=False)
        elif text.startswith("@"):
            value = np.array(json.loads(Path(text[1:]).read_text(encoding="utf-8")))
        else:
            value = np.array(json.loads(text if text.startswith("[") or "," not in text else f"[{text}]"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{flag}={text}: cannot be read as numbers ({error})") from None
    if value.dtype.kind not in "biuf":
        raise ConfigError(f"{flag}={text}: expected numbers")
    cast = value.astype(port.dtype)
    if port.dtype.startswith(("int", "uint")) and not np.array_equal(cast, value):
        raise ConfigError(f"{flag}={text}: {port.name} is {port.dtype}")
    want = [d if isinstance(d, int) else 1 for d in port.dims]
    if cast.shape == tuple(want) or cast.ndim == len(want):
        return cast
    if cast.size == int(np.prod(want)):
        return cast.reshape(want)
    if cast.ndim == 0:
        return np.full(want, cast)
    raise ConfigError(f"{flag}={text}: {cast.size} values for {port}")


def guessed(file: File, said: Mapping[str, object], claimed: set[str]) -> list[Guess]:
    """Constants that nobody named. ``said``: inputs that the user called something; ``claimed``: states by name."""
    found = []
    others = [n for n in file.inputs if n not in said]
    for name in others:
        port = file.inputs[name]
        if name in claimed or _may_be_state(file, port):
            continue
        scalar = not port.dims
        more = any(
            n != name and n not in claimed and not sounds_like_constant(n) and file.inputs[n].dims for n in others
        )
        one = all(d == 1 for d in port.dims)
        named = sounds_like_constant(name) and not sounds_like_step(name)
        if more and (scalar or named or (one and port.dtype.startswith("int") and not sounds_like_step(name))):
            found.append(guess(file, port))
    return found


def _may_be_state(file: File, port: Port) -> bool:
    """A counter is a whole number of one element, and comes back."""
    twin = any(o.dtype == port.dtype and len(o.dims) == len(port.dims) for o in file.outputs.values())
    return (twin and not sounds_like_constant(port.name)) or sounds_like_state(port.name)


def guess(file: File, port: Port) -> Guess:
    """A value to try, and the question which it is."""
    compared = [c for c in compared_with(file.model, port.name) if c]
    usual = [v for word, v in USUAL.items() if word in port.name.lower()]
    if not compared and {"len", "lens", "length", "lengths"} & set(words(port.name)):
        usual = [1.0]  # of one step
    likely = compared or usual
    value = (likely or [1.0 if port.dtype.startswith("float") else 0.0])[0]
    shape = [d if isinstance(d, int) else 1 for d in port.dims]
    shown = f"{value:g}" if not port.dtype.startswith(("int", "uint")) else str(int(value))
    why = f" (the graph compares it with {' and '.join(f'{c:g}' for c in compared[:4])})" if compared else ""
    own = port.dims and not likely
    both = f"--stream-constant {port.name}", f"--constant {port.name}={shown}"
    flag, alternative = both if own else both[::-1]
    where = "if it is the same for all streams" if own else "if it is a stream's own, from a record header"
    return Guess(
        port.name,
        np.full(shape, value).astype(port.dtype),
        (
            f"{port} is no step, and no run tells its value{why} ({alternative} {where})",
            flag,
        ),
        [np.full(shape, v).astype(port.dtype) for v in likely],
    )
