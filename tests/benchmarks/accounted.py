"""``eddy``, which tells at its end what its event loop's time went into: ``python -m tests.benchmarks.accounted run``.

Whatever a commit begins inherits its context, and so is known when it runs. An answer's bytes arrive in the context of
their connection: they count as ``the rest``, as does everything else that a worker does on its loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import sys
import time
from asyncio.events import Handle
from collections import defaultdict
from typing import Any

from pipeline.committer import Committer
from services.cli import main

TRANSACTIONS, REST = "transactions", "the rest"

_part: contextvars.ContextVar[str] = contextvars.ContextVar("part", default=REST)


def account() -> dict[str, float]:
    """From now on adds up CPU seconds of this thread's event loops, by part."""
    taken: defaultdict[str, float] = defaultdict(float)
    plain_run, plain_committing, clock = Handle._run, Committer.run, time.thread_time

    def run(self: Any) -> None:
        began = clock()
        plain_run(self)
        taken[self._context.get(_part, REST)] += clock() - began

    async def committing(self: Any) -> None:
        # The task's own context was copied before it had a part: its steps run in this one.
        context = contextvars.copy_context()
        context.run(_part.set, TRANSACTIONS)
        await asyncio.create_task(plain_committing(self), context=context)

    Handle._run = run  # type: ignore[method-assign]
    Committer.run = committing  # type: ignore[method-assign]
    return taken


if __name__ == "__main__":
    cpu_s = account()
    code = main()
    print(json.dumps({"loop_cpu_s": cpu_s}), file=sys.stderr)
    sys.exit(code)
