"""One seed, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.world import Plan, Result, simulate


def run_seed(seed: int, say: Callable[[str], None] | None = None) -> Result:
    return simulate(Plan.of(seed), say)


def report(result: Result) -> str:
    lines = [f"seed {result.seed}: " + ("failed" if result.problems else "good")]
    lines += [f"  {problem}" for problem in result.problems[:8]]
    if result.problems:
        lines.append(f"  again: python -m tests.simulation --start {result.seed} --verbose")
    return "\n".join(lines)
