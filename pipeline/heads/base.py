"""What a head is: model outputs in, output records out, as columns.

A head keeps what it must remember of a stream (a text being generated, its counters) only in the stream's row:
``memory``, ``uint8 [slots, memory_bytes]``, of the size the contract declares. All zero is a new stream. A head is
called on the event loop when a poll finishes, polls in order, and has no other state: a stream can be snapshotted after
any record or generated step and go on elsewhere.

A head that ``generates`` feeds a stream its own output (S5): after a record (the prompt) or a generated step,
``active`` says which streams want another step, ``feed`` gives that step's inputs, ``fed`` takes its outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.columns import I64, U8, AnyArray, Bools, Headers, Records, Values
from pipeline.errors import RecordError


@dataclass(slots=True)
class Finished:
    """Records of a finished poll, those with no step included, in order; ``n`` of them."""

    slots: I64
    counts: I64
    """int64 ``[n]``: steps of each record."""
    keys: list[bytes]
    offsets: I64
    timestamps: I64
    headers: list[Headers] | None
    outputs: tuple[AnyArray, ...]
    """The outputs named by ``Head.reads``. ``keeps`` "all": ``[n_steps, *shape]``, record after record. ``keeps``
    "last": ``[n, *shape]``, that of the record's last step (anything where ``counts`` is 0)."""
    ended: Bools
    """bool ``[n]``: records with a null value, which end their stream; their steps, if any, waited in the codec."""


@dataclass(slots=True)
class Answered:
    """``k`` output records. ``index[j]`` says whose: a record of ``Finished``, a stream given to ``fed``; ascending.

    A record may be answered several times, in the order of the answers."""

    index: I64
    values: Values
    extra: list[Headers] | None = None
    """Headers beside ``eddy-model`` and ``eddy-source``."""
    offsets: I64 | None = None
    """Input offset that each answers; always for ``fed``, else None where it is the record's own."""
    timestamps: I64 | None = None
    """The timestamp of that input record."""


NOTHING = Answered(np.empty(0, np.int64), [])


class Head(ABC):
    """See the module."""

    memory_bytes: int = 0
    reads: tuple[str, ...]
    """Names of the model's outputs that it wants."""
    keeps: Literal["all", "last"] = "all"
    choices: Literal["none", "outputs"] = "none"
    """Whether its outputs are choices (X7): no function of snapshot and records."""
    generates: bool = False
    interrupts: bool = False
    """A record may come to a stream that generates, and cuts it short; else it waits until that is over."""

    def refuse(self, headers: list[Headers] | None) -> dict[int, RecordError]:
        """Records whose headers ask for what cannot be done, by index; asked before anything of them is applied."""
        return {}

    @abstractmethod
    def answer(self, finished: Finished, memory: U8) -> Answered:
        """Output records for the records of a finished poll; changes ``memory[finished.slots]`` in place."""

    # ---- heads that generate

    def active(self, slots: I64, memory: U8) -> Bools:
        """bool ``[B]``: which of these streams feed themselves another step."""
        return np.zeros(len(slots), np.bool_)

    def feed(self, slots: I64, memory: U8) -> tuple[AnyArray, ...]:
        """The next step of each stream, one array per step input, ``[B, *shape]``. Changes nothing."""
        raise NotImplementedError(f"{type(self).__name__} does not generate")

    def fed(self, slots: I64, keys: list[bytes], outputs: tuple[AnyArray, ...], memory: U8) -> Answered:
        """Outputs of one generated step, ``[B, *shape]`` each -> what became visible; changes ``memory[slots]``."""
        raise NotImplementedError(f"{type(self).__name__} does not generate")

    def merge(self, outputs: Records) -> Records:
        """Output records of one partition that go out in one part, in order -> maybe fewer, each stream in order."""
        return outputs
