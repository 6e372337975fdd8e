"""The models that the simulated workers run: a rolling hash, and a hash that talks.

Each is given twice: as what the engine computes (columns of streams), and as a reference (one stream, in order). One
step lost, repeated or out of order changes everything after it. The second state of a row is noise that depends on who
else was in the batch; the talking hash lets the noise choose between two equally likely tokens, so what it says is a
choice that nobody can make again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.memory import fit_memory
from pipeline.contract import CodecSpec, Contract, HeadSpec, Output, State, StepInput

PRIME, FACTOR, GAIN, OFFSET, INITIAL = 2**31 - 1, 48_271, 1_103_515_245, 12_345, 7
POISON = 666_666
"""A step on which the model fails whenever it meets it."""
LETTERS = "abcdefghijklmnopqrstuvwx"
SIZE = len(LETTERS)
STATES = (
    State("h", "h_next", "int64", (1, 1), 0, (INITIAL,)),
    State("noise", "noise_next", "float32", (1, 1), 0),
)


def hashing() -> Contract:
    """Records of any number of int64 steps in, the hash after each step out."""
    return fit_memory(
        Contract(
            "hashing",
            "1",
            (StepInput("x", "int64"),),
            STATES,
            (Output("y", "int64", ()),),
            CodecSpec("tensor"),
            HeadSpec("tensor"),
            batch_axis=1,
            time_axis=0,
        )
    )


def talking() -> Contract:
    """Prompts in, text out, greedily, but with two likeliest tokens at every step."""
    return fit_memory(
        Contract(
            "talking",
            "1",
            (StepInput("x", "int64"),),
            STATES,
            (Output("logits", "float32", (SIZE,)),),
            CodecSpec("text", settings={"unit": "characters", "vocabulary": list(LETTERS)}),
            HeadSpec("generate", "logits", settings={"max_steps": 4, "temperature": 0.0}),
            batch_axis=0,
            time_axis=None,
        )
    )


def advance(h: int, x: int) -> int:
    return (h * FACTOR + x * GAIN + OFFSET) % PRIME


def likeliest(h: int) -> tuple[int, int]:
    """The two tokens that the talking hash hesitates between."""
    return h % SIZE, h // SIZE % SIZE


class EngineFault(Exception):
    """What the session raises."""


@dataclass
class Binding:
    """What pipeline.engine binds for one call."""

    inputs: dict[str, Any]
    outputs: dict[str, Any]

    def bind_cpu_input(self, name: str, value: Any) -> None:
        self.inputs[name] = value

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        pass

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        pass

    def bind_output(self, name: str, device: str, number: int, dtype: Any, shape: Any, pointer: int) -> None:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if size:
            import ctypes

            raw = (ctypes.c_char * size).from_address(pointer)
            self.outputs[name] = np.frombuffer(raw, dtype).reshape(shape)


class Session:
    """In place of onnxruntime's: advances rows of the real arena in place, row by row, so that it can fail between."""

    def __init__(self, contract: Contract, rng: random.Random, fails: Callable[[], bool]) -> None:
        self._contract, self._rng, self._fails = contract, rng, fails
        self._talks = contract.head.kind == "generate"
        self.rows: Any = None
        self.noise: Any = None
        self._failed: set[int] = set()

    def _may_fail(self, x: Any) -> bool:
        """A step that fails twice is the record's fault."""
        return self._failed.isdisjoint(x.reshape(-1).tolist())

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]

    def io_binding(self) -> Binding:
        return Binding({}, {})

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        x, slots, fresh = binding.inputs["x"], binding.inputs["eddy.slots"], binding.inputs["eddy.fresh"]
        y = binding.outputs.get("logits" if self._talks else "y")
        if y is None:
            return
        fails_at = self._rng.randrange(len(slots)) if self._may_fail(x) and self._fails() else -1
        for b, slot in enumerate(slots.tolist()):
            if b == fails_at:
                self.rows[slot, 0] += 1  # torn
                self._failed.update(x.reshape(-1).tolist())
                raise EngineFault("the device was lost")
            h = INITIAL if fresh[b] else int(self.rows[slot, 0])
            self.noise[slot, 0] += self._rng.random() + len(slots)
            for t, step in enumerate([int(x[b])] if self._talks else x[:, b].tolist()):
                if step == POISON:
                    self.rows[slot, 0] = h + 1
                    raise EngineFault("no such number")
                h = advance(h, step)
                if self._talks:
                    y[b] = 0
                    y[b, list(likeliest(h))] = 10
                    y[b, likeliest(h)[self._rng.random() < 0.5]] += 1
                else:
                    y[t, b] = h
            self.rows[slot, 0] = h
