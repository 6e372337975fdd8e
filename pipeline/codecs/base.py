"""What a codec is: record bytes in, steps out, as columns.

A codec keeps what it must remember of a stream (half a character, twenty bytes of PCM) only in the stream's row:
``memory``, ``uint8 [slots, memory_bytes]``, of the size the contract declares. All zero is a new stream. So a stream
can be snapshotted after any record and go on elsewhere, and cutting its bytes differently gives the same steps.

A codec is called on the event loop, in the order of the records, once a poll; it has no other state. Where a record
means dear work that needs nothing of its stream (an image to be decoded, a long text to be tokenized), the codec is an
``AheadCodec``: that work is done record by record on threads, before their poll is made, while the loop, the engine and
commits go on. What needs the stream is bounded by ``poll_steps`` instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.columns import I64, U8, AnyArray
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
    choices: Literal["none", "outputs"] = "none"
    """Whether what it makes of a record is a choice (X7): no function of snapshot and records, dead letters aside."""
    poll_steps: int = 2**31
    """Steps that a poll may have, for what decoding them may cost; a record with less than a step counts as one."""
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
    """A codec that can do dear work on a record without its stream. See the module."""

    ahead_from: int = 0
    """Records of fewer bytes are cheap: all is done to them in their poll."""

    @abstractmethod
    def ahead(self, value: bytes) -> AnyArray | None:
        """What is made of a record ahead of its poll; None where nothing can be. On any thread. Raises RecordError."""

    @abstractmethod
    def ahead_bytes(self, value_bytes: int) -> int:
        """About what that takes in memory, for a record of so many bytes."""

    @abstractmethod
    def decode_ahead(
        self, values: list[bytes], slots: I64, memory: U8, ahead: Sequence[AnyArray | RecordError | None]
    ) -> Steps:
        """As ``decode``; ``ahead[i]``: what ``attempt`` said of record ``i``, None where it was not asked."""

    def attempt(self, value: bytes) -> AnyArray | RecordError | None:
        """What becomes of a record ahead of its poll."""
        try:
            return self.ahead(value)
        except RecordError as error:
            return error

    def decode(self, values: list[bytes], slots: I64, memory: U8) -> Steps:
        """All of these, here and now."""
        return self.decode_ahead(values, slots, memory, [None] * len(values))
