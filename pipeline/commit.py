"""Parts -> one transaction -> saved, or dropped and taken over again.

X2 and X3 as numbered steps. The plain form of a failure (X4 in its last branch, X11): the writer is settled, and the
memory of every partition whose part was in the transaction is dropped; the takeover asks the group what became of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.columns import Part, Records
from pipeline.errors import CommitError, GroupRefused, PartRefused
from pipeline.partition import Memory, Tags
from pipeline.transport.base import Transport

log = logging.getLogger(__name__)

SETTLE_RETRY_S = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Between two tries to settle the writer while the broker is away; the last repeats."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one commit: ``saved`` are visible, ``dropped`` must be taken over, ``refused`` after the next assignment."""

    saved: tuple[tuple[Memory, Part], ...] = ()
    dropped: tuple[Memory, ...] = ()
    refused: tuple[Memory, ...] = ()
    stopped: tuple[tuple[Memory, PartRefused], ...] = ()
    error: CommitError | None = None


class Lane:
    """The worker's transactional writer and the rule that it does one thing at a time."""

    def __init__(self, transport: Transport, tags: Tags, digest: bytes, merge: Callable[[Records], Records]) -> None:
        self._transport, self._tags, self._digest, self._merge = transport, tags, digest, merge
        self._turn = asyncio.Lock()
        self._settled = True

    async def commit(self, memories: Sequence[Memory], now_ms: int) -> Outcome | None:
        """One transaction of whatever is finished in these partitions, all under one membership. None: nothing was."""
        async with self._turn:
            # 1. Freeze (X2): what is finished at this moment, one part a partition, each with a tag of its own.
            frozen = [(m, part) for m in memories if not m.closed and (part := self._freeze(m, now_ms)) is not None]
            if not frozen:
                return None
            # 2. The membership is the copy that came with the assignment, never a live value (X1).
            membership = frozen[0][0].membership
            parts = [part for _, part in frozen]
            # 3. One transaction of all parts (X3). A failure leaves the writer to be settled before anything else.
            try:
                await self._transport.commit(membership, parts)
            except GroupRefused as error:
                # Every other request was answered and so was EndTxn(abort): nothing is visible, the writer is good.
                return Outcome(refused=tuple(m for m, _ in frozen if not m.closed), error=error)
            except CommitError as error:
                await self._settle()
                return self._failed(frozen, error)
            except BaseException:
                self._settled = False  # cancelled in the middle: whoever comes next settles first (X11)
                raise
            # 4. EndTxn has succeeded: the parts are saved and their tags are the bases (X3).
            for memory, part in frozen:
                if not memory.closed:
                    memory.saved(part)
            return Outcome(saved=tuple(frozen))

    def _freeze(self, memory: Memory, now_ms: int) -> Part | None:
        return memory.freeze(self._tags.next(), self._digest, now_ms, self._merge)

    @staticmethod
    def _failed(frozen: Sequence[tuple[Memory, Part]], error: CommitError) -> Outcome:
        """X11: nothing is recomputed or guessed; a part that can never be sent stops its partition, others go on."""
        stopped: list[tuple[Memory, PartRefused]] = []
        dropped = []
        for memory, _ in frozen:
            if memory.closed:
                continue
            if isinstance(error, PartRefused) and error.partition == memory.partition:
                stopped.append((memory, error))
            else:
                dropped.append(memory)
        return Outcome(dropped=tuple(dropped), stopped=tuple(stopped), error=error)

    async def quiet(self) -> None:
        """Returns when no transaction runs and the writer is settled: where a takeover begins (X8)."""
        async with self._turn:
            if not self._settled:
                await self._settle()

    async def _settle(self) -> None:
        """InitProducerId until it is answered: then the open transaction is decided (X11)."""
        self._settled = False
        tries = 0
        while True:
            try:
                await self._transport.settle()
            except CommitError as error:
                pause = SETTLE_RETRY_S[min(tries, len(SETTLE_RETRY_S) - 1)]
                tries += 1
                log.warning("the writer cannot be settled yet (%s), trying again in %g s", error, pause)
                await asyncio.sleep(pause)
            else:
                self._settled = True
                return
