"""What a codec is: record bytes in, steps out, as columns.

A codec keeps what it must remember of a stream (half a character, twenty bytes of PCM) only in the stream's row:
``memory``, ``uint8 [slots, memory_bytes]``, of the size the contract declares. All zero is a new stream. So a stream
can be snapshotted after any record and go on elsewhere, and cutting its bytes differently gives the same steps.

A codec is called on the event loop, in the order of the records, once a poll; it has no other state. One whose work is
dear and needs no memory of the stream (an encoded image) is an ``AheadCodec``: its records are decoded one by one on
threads, before their poll is made, while the loop, the engine and commits go on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.columns import I64, U8, AnyArray
from pipeline.contract import StepInput
from pipeline.errors import RecordError


@dataclass(slots=True)
class Steps:
    """What the records of a poll decode to; record ``i`` has ``counts[i]`` steps, stored record after record."""

    values: tuple[AnyArray, ...]
    """One array per step input of the contract, ``[n_steps, *shape]``."""
    counts: I64
    """int64 ``[n]``; 0 for a record that completes no step, and for one that failed."""
    failed: dict[int, RecordError] = field(default_factory=dict)
    """Records that cannot be decoded, by index: dead letters, which is a choice (X7). They leave no steps."""


class Codec(ABC):
    """See the module."""

    memory_bytes: int = 0
    step_bytes: int = 1
    """About how many bytes of a record make a step: what a poll's bound in steps goes by."""
    step_s: float = 0.0
    """How long a step lasts, seconds, where the contract gives a rate; what the real-time factor is measured by."""

    @abstractmethod
    def decode(self, values: list[bytes], slots: I64, memory: U8) -> Steps:
        """``values[i]`` belongs to the stream in ``slots[i]``; rows ``memory[slots]`` are read and changed in place.

        A stream may have several records in one call: they are decoded in order. Never raises for bad bytes.
        """

    def end(self, slots: I64, memory: U8) -> Steps | None:
        """Steps of what still waits in the rows of streams that end, different ones; none may fail. None: there are
        none."""
        return None


class AheadCodec(Codec):
    """A codec whose records are one step each, by themselves. It keeps nothing of a stream."""

    memory_bytes = 0
    step_bytes = 2**31
    """As many bytes as a record may have: every record is one step."""
    step: StepInput

    @abstractmethod
    def decode_one(self, value: bytes) -> AnyArray:
        """The record's step, ``[*shape]`` in its input's dtype. Called on any thread. Raises RecordError."""

    def attempt(self, value: bytes) -> AnyArray | RecordError:
        """What became of a record."""
        try:
            return self.decode_one(value)
        except RecordError as error:
            return error

    def collect(self, decoded: Sequence[AnyArray | RecordError]) -> Steps:
        """What became of each record of a poll, side by side."""
        failed = {i: d for i, d in enumerate(decoded) if isinstance(d, RecordError)}
        good = [d for d in decoded if not isinstance(d, RecordError)]
        counts = np.ones(len(decoded), np.int64)
        counts[list(failed)] = 0
        steps = np.stack(good) if good else np.empty((0, *self.step.shape), self.step.dtype)
        return Steps((steps,), counts, failed)

    def decode(self, values: list[bytes], slots: I64, memory: U8) -> Steps:
        """All of these, here and now."""
        return self.collect([self.attempt(value) for value in values])
