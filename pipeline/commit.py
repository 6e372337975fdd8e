"""Parts -> one transaction -> saved, or sent again as they are.

X2, X3, X4 and X11 as numbered steps. A failed transaction costs no memory: its parts stay frozen, the group is asked
which of them it holds, and those that it does not are sent again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.columns import Membership, Part, Records
from pipeline.errors import CommitError, GroupRefused, PartRefused
from pipeline.mark import Tags, Topics, Verdict, own_rule, stable_tag
from pipeline.partition import Memory
from pipeline.transport.base import Transport, Written

log = logging.getLogger(__name__)

SETTLE_RETRY_S = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Between two tries to settle the writer while the broker is away; the last repeats."""
ALONE_AFTER = 3
"""After so many failures in a row that name no partition, parts go one by one (X11)."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A part that the group holds; ``written``: where its snapshots are, if it was said."""

    memory: Memory
    part: Part
    written: Written | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one commit: ``saved`` are visible; ``unchecked`` memories are nobody's until ``check`` says whose they are;
    ``stopped`` cannot be sent, ever."""

    saved: tuple[Saved, ...] = ()
    unchecked: tuple[Memory, ...] = ()
    stopped: tuple[tuple[Memory, PartRefused], ...] = ()
    error: CommitError | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """What the own rule says: memories that are this worker's, the parts that turned out to be committed, and memories
    that are not valid any more."""

    kept: tuple[Memory, ...]
    saved: tuple[Saved, ...]
    dropped: tuple[Memory, ...]


class Lane:
    """The worker's transactional writer and the rule that it does one thing at a time.

    ``at_least_once``: outputs are published and acknowledged before the part that makes them done (X13).
    """

    def __init__(
        self,
        transport: Transport,
        tags: Tags,
        digest: bytes,
        merge: Callable[[Records], Records],
        *,
        at_least_once: bool = False,
    ) -> None:
        self._transport, self._tags, self._digest, self._merge = transport, tags, digest, merge
        self._at_least_once = at_least_once
        self._turn = asyncio.Lock()
        self._settled = True
        self._failures = 0
        self._next = 0

    async def commit(self, memories: Sequence[Memory], now_ms: Callable[[], int]) -> Outcome | None:
        """One transaction of whatever is finished in these partitions, all under one membership. None: nothing was."""
        async with self._turn:
            if not self._settled:
                await self._settle()
            # 0. Open the transaction: that waits for the markers of the last one, and what is finished meanwhile goes
            #    along. (At least once, outputs come before it; where parts go one by one, it is opened for that one.)
            whose, most = self._whose(memories)
            if not any(m.unsaid for m in whose):
                return None
            if not self._at_least_once and most == len(whose):
                try:
                    await self._open(whose)
                except CommitError as error:
                    self._failures += 1
                    await self._settle()
                    return Outcome(error=error)
            # 1. Freeze (X2): what is finished at this moment, one part a partition, each with a tag of its own. A part
            #    of an earlier transaction that failed stays as it was (X3). Nothing unchecked is frozen or sent (X4).
            checked = (m for m in whose if m.checked and not m.closed)
            parts_of = ((m, part) for m in checked if (part := self._part(m, now_ms())) is not None)
            frozen = list(itertools.islice(parts_of, most))
            if not frozen:
                return None  # what is open stays so, with nothing in it
            # 2. The membership is the copy that came with the assignment, never a live value (X1).
            membership = frozen[0][0].membership
            parts = [part for _, part in frozen]
            try:
                # 3. At least once: outputs first, and what makes them done only when they are acknowledged (X13).
                if self._at_least_once:
                    parts = await self._publish(frozen)
                # 4. One transaction of all parts (X3). Until its outcome is known its partitions are unchecked.
                written = await self._transaction(frozen, membership, parts)
            except GroupRefused as error:
                # Every other request was answered and so was EndTxn(abort): nothing is visible, the writer is good.
                # Who was assigned anew meanwhile is asked for because of that.
                refused = tuple(m for m, _ in frozen if not m.closed and m.membership is membership)
                return Outcome(unchecked=refused, error=error)
            except CommitError as error:
                self._failures += 1
                await self._settle()
                return self._failed(frozen, error)
            # 5. EndTxn has succeeded: the parts are saved and their tags are the bases (X3).
            self._failures = 0
            for memory, part in frozen:
                if not memory.closed:
                    memory.saved(part)
            return Outcome(saved=tuple(Saved(m, part, written.get(part.partition)) for m, part in frozen))

    def _whose(self, memories: Sequence[Memory]) -> tuple[list[Memory], int]:
        """Whose parts go now, and of how many: all that are checked (X4), or, where something keeps failing and no
        partition is named, one after the other (X11)."""
        checked = [m for m in memories if m.checked and not m.closed]
        if self._failures < ALONE_AFTER or not checked:
            return checked, len(checked)
        self._next += 1
        first = self._next % len(checked)
        return [*checked[first:], *checked[:first]], 1

    def _part(self, memory: Memory, now_ms: int) -> Part | None:
        if memory.frozen is not None:
            return memory.frozen.part
        topics = Topics.of(self._transport.changelog_id, self._transport.input_id)
        return memory.freeze(self._tags.next(), self._digest, now_ms, self._merge, topics)

    async def _publish(self, frozen: Sequence[tuple[Memory, Part]]) -> list[Part]:
        """X13; returns the parts without what is out."""
        new = [(m, part) for m, part in frozen if not m.published]
        await self._transport.publish([part for _, part in new if len(part.outputs)])
        for memory, part in new:
            memory.published = memory.frozen is not None and memory.frozen.part is part
        return [replace(part, outputs=Records.none()) for _, part in frozen]

    async def _open(self, whose: Sequence[Memory]) -> None:
        """Whatever ends it early leaves the writer to be settled; nothing of it is to be asked for."""
        showing = [m.partition for m in whose if m.will_show]
        saving = [m.partition for m in whose if m.will_save]
        try:
            await self._transport.open(showing, saving)
        except BaseException:
            self._settled = False
            raise

    async def _transaction(
        self, frozen: Sequence[tuple[Memory, Part]], membership: Membership, parts: Sequence[Part]
    ) -> dict[int, Written]:
        """Whatever ends it early leaves the writer to be settled, and the group to be asked (X11)."""
        try:
            return await self._transport.commit(membership, parts)
        except BaseException as error:
            for memory, _ in frozen:
                memory.checked = False
            if not isinstance(error, GroupRefused):
                self._settled = False
            raise

    @staticmethod
    def _failed(frozen: Sequence[tuple[Memory, Part]], error: CommitError) -> Outcome:
        """X11: nothing is recomputed or guessed; a part that can never be sent stops its partition, others go on."""
        stopped: list[tuple[Memory, PartRefused]] = []
        unchecked = []
        for memory, _ in frozen:
            if memory.closed:
                continue
            if isinstance(error, PartRefused) and error.partition == memory.partition:
                stopped.append((memory, error))
            else:
                unchecked.append(memory)
        return Outcome(unchecked=tuple(unchecked), stopped=tuple(stopped), error=error)

    async def check(self, memories: Sequence[Memory]) -> Checked:
        """X4: which of the unchecked memories are still this worker's own. No transaction runs meanwhile, and the
        writer is settled, so that what it had open is decided. Raises CommitError when the group does not answer."""
        async with self._turn:
            if not self._settled:
                await self._settle()
            asked = [m for m in memories if not m.checked and not m.closed]
            if not asked:
                return Checked((), (), ())
            membership = asked[0].membership
            stable = await self._transport.stable_offsets(membership, [m.partition for m in asked])
            kept, saved, dropped = [], [], []
            for memory in asked:
                if memory.closed or memory.membership is not membership:
                    continue  # assigned anew meanwhile: to be asked again
                part = memory.frozen.part if memory.frozen is not None else None
                verdict = own_rule(memory.base, part.tag if part else None, stable_tag(stable[memory.partition]))
                if verdict is Verdict.DROP:
                    dropped.append(memory)
                    continue
                if verdict is Verdict.PROMOTE and part is not None:
                    memory.saved(part)
                    saved.append(Saved(memory, part, None))
                memory.checked = True
                kept.append(memory)
            return Checked(tuple(kept), tuple(saved), tuple(dropped))

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
