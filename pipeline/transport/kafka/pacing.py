"""How often the input is asked for more while a transaction runs (S2)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

LONGEST_S = 0.05
"""After a transaction's begin nobody waits longer for its end: one that the broker is slow with, or that was opened and
has nothing to hold, must not hold back what can be done."""


class Pacing:
    """What is fetched while a transaction runs is visible with the next one at the earliest. Where it is little work,
    it is asked for once, when the transaction is about to end, and not as each record arrives: the same answers at the
    same time, for a fraction of the requests and polls, which would only slow the transaction down.

    ``unhurried``: whoever works on what comes has little to do.
    """

    def __init__(self) -> None:
        self.unhurried = False
        self._may_go = asyncio.Event()
        self._may_go.set()
        self._until = 0.0
        """Of the loop's clock."""

    def begin(self) -> None:
        """A transaction is being opened: what is asked for now comes too late for it."""
        self._may_go.clear()
        self._until = asyncio.get_running_loop().time() + LONGEST_S

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """One runs inside."""
        self.begin()
        try:
            yield
        finally:
            self._may_go.set()

    def ending(self) -> None:
        """All that is left of it is its end: time enough to fetch, and to work on, what goes into the next one."""
        self._may_go.set()

    async def turn(self) -> None:
        """Returns when a fetch may be sent."""
        if self.unhurried and not self._may_go.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._until):
                    await self._may_go.wait()
