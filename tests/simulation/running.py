"""One seed, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.simulation.mutations import MUTATIONS, mutated
from tests.simulation.world import Plan, Result, simulate

Say = Callable[[str], None]


def run_seed(seed: int, bias: str | None = None, mutation: str | None = None, say: Say | None = None) -> Result:
    """``mutation``: the name of a deliberate mistake that the worker is to have; ``bias``: of one towards which the
    world is bent."""
    plan = Plan.of(seed)
    if bias is not None:
        MUTATIONS[bias].bias(plan)
    with mutated(mutation):
        return simulate(plan, say)


@dataclass(frozen=True)
class Found:
    """What a search for a deliberate mistake came to."""

    name: str
    seed: int | None
    """The first seed that shows it; None: not one of those that were run."""
    problem: str = ""
    control: str = ""
    """What the same world shows without the mistake: nothing, or the search is void."""


def search(name: str, most: int) -> Found:
    """Runs seeds until one shows the mistake."""
    for seed in range(most):
        wrong = run_seed(seed, name, name).problems
        if wrong:
            right = run_seed(seed, name).problems
            return Found(name, seed, wrong[0], right[0] if right else "")
    return Found(name, None)


def report(result: Result, options: str = "") -> str:
    lines = [f"seed {result.seed}: " + ("failed" if result.problems else "good")]
    lines += [f"  {problem}" for problem in result.problems[:8]]
    if result.problems:
        lines.append(f"  again: python -m tests.simulation --start {result.seed} --verbose{options}")
    return "\n".join(lines)
