"""Who does not get on: a stream that holds back its partition's C, and a worker that gets nothing done. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.partition import Memory


@dataclass(frozen=True, slots=True)
class Held:
    """A partition whose C has not moved for long."""

    partition: int
    committed: int
    seconds: float
    key: bytes | None
    """The stream whose record waits there; None where it is in flight."""

    def __str__(self) -> str:
        who = f"stream {self.key!r}" if self.key is not None else "a record that is in flight"
        return f"partition {self.partition}: C stands at {self.committed} for {self.seconds:.0f} s, held by {who}"


class Watch:
    """See the module. ``now_s``: seconds of one clock."""

    def __init__(self, max_stall_s: float) -> None:
        self._max_stall_s = max_stall_s
        self._stood: dict[int, tuple[Memory, int, float]] = {}
        """Partition -> its memory, C, and since when that is so with records beyond it."""
        self._bases: dict[int, bytes | None] = {}
        self._moved_s: float | None = None

    def held(self, memories: Sequence[Memory], now_s: float) -> list[Held]:
        """Partitions that have had the same C, with records beyond it, for longer than ``max_stall``."""
        stood: dict[int, tuple[Memory, int, float]] = {}
        found = []
        for memory in memories:
            before = self._stood.get(memory.partition)
            since = now_s
            if before is not None and before[0] is memory and before[1] == memory.committed and memory.behind:
                since = before[2]
            stood[memory.partition] = memory, memory.committed, since
            if now_s - since >= self._max_stall_s:
                key = memory.aside.first_of(memory.committed)
                found.append(Held(memory.partition, memory.committed, now_s - since, key))
        self._stood = stood
        return found

    def stalled(self, memories: Sequence[Memory], taking_over: int, now_s: float) -> bool:
        """Whether nothing was committed for ``max_stall`` though there was work. ``taking_over``: partitions that are
        not running yet."""
        bases = {m.partition: m.base for m in memories}
        idle = not taking_over and not any(m.busy for m in memories)
        if self._moved_s is None or idle or bases != self._bases:
            self._moved_s, self._bases = now_s, bases
        return now_s - self._moved_s >= self._max_stall_s
