"""What is expected of runs, from those that were."""

from __future__ import annotations

import pytest

from pipeline.engine.costs import STREAM_S, Costs, Few

MOST = 256


def few(*calls: tuple[int, float]) -> Few:
    """Calls of so many steps, which took so long."""
    run = Few()
    for steps, took_s in calls:
        run.add(steps, 1, took_s)
    return run


def ran(costs: Costs, price_s: float, step_s: float, *neighbours: int) -> int:
    """A run of all that a stream may have, and a call of each neighbour's steps; how much that was."""
    steps = costs.stream_steps(MOST)
    costs.ran_few(few(*((n, price_s + n * step_s) for n in (steps, *neighbours))))
    return steps


@pytest.mark.parametrize("step_s", [3e-3, 1e-3, 2e-4, 1e-4, 2e-5, 1e-5])
def test_a_streams_part_of_a_poll_is_bounded_in_time(step_s: float) -> None:
    costs = Costs()
    for _ in range(10):
        ran(costs, 5e-5, step_s, 1)
    for _ in range(50):
        assert ran(costs, 5e-5, step_s, 1) * step_s <= 2 * STREAM_S
    assert costs.stream_steps(MOST) >= min(MOST, STREAM_S / step_s / 2)


def test_a_very_slow_model_has_a_step_or_two() -> None:
    """Of 100 ms each: a neighbour's step takes as long, so it waits for two of them."""
    costs = Costs()
    for _ in range(10):
        ran(costs, 0.0, 0.1, 1)
    assert costs.stream_steps(MOST) <= 2


def test_a_model_without_a_time_axis_is_bounded_as_well() -> None:
    """Each step is a call of its own; three neighbours have one in the same run."""
    costs = Costs()
    for _ in range(10):
        costs.ran_few(few(*[(1, 1e-3)] * (costs.stream_steps(MOST) + 3)))
    assert 2 <= costs.stream_steps(MOST) <= 8


def test_a_high_price_of_a_call_is_not_its_steps_fault() -> None:
    """A device that takes 10 ms for any call, and 20 us for each step."""
    costs = Costs()
    for _ in range(100):
        assert ran(costs, 1e-2, 2e-5, 1) == MOST


def test_streams_that_run_together_take_a_part_each() -> None:
    costs = Costs()
    run = few((1, 1e-4))
    run.add(MOST, 4, 6 * STREAM_S)
    costs.ran_few(run)
    assert costs.stream_steps(MOST) == MOST
    run.add(2 * MOST, 2, 6 * STREAM_S)
    costs.ran_few(run)
    assert costs.stream_steps(MOST) == 2 * MOST // 3


def test_what_was_late_once_is_soon_forgotten() -> None:
    costs = Costs()
    costs.ran_few(few((1, 2.0)))  # the first call of all
    costs.ran_few(few((MOST, 5.0)))  # the process stood still
    assert MOST // 4 <= costs.stream_steps(MOST) < MOST
    for _ in range(3):
        ran(costs, 5e-5, 5e-6)
    assert costs.stream_steps(MOST) == MOST


def test_a_model_gets_quick_again() -> None:
    costs = Costs()
    for _ in range(10):
        ran(costs, 5e-5, 1e-3, 1)
    assert costs.stream_steps(MOST) < 10
    for _ in range(10):
        ran(costs, 5e-5, 1e-5, 1)
    assert costs.stream_steps(MOST) == MOST


def test_little_that_is_quick_tells_nothing_of_much() -> None:
    costs = Costs()
    for _ in range(10):
        ran(costs, 5e-5, 2e-4, 1)
    before = costs.stream_steps(MOST)
    for _ in range(3000):
        costs.ran_few(few((1, 2e-4)))
    assert costs.stream_steps(MOST) == before


def test_no_history_is_too_much_for_it() -> None:
    costs = Costs()
    for _ in range(5000):
        ran(costs, 0.0, 0.0)
    for _ in range(5000):
        ran(costs, 0.0, 1.0)
    assert costs.stream_steps(MOST) >= 1
    for _ in range(5000):
        ran(costs, 0.0, 0.0, 1)
    assert costs.stream_steps(MOST) == MOST


def test_a_run_is_expected_to_take_what_runs_of_its_size_took() -> None:
    costs = Costs()
    assert costs.run_s(1) < costs.run_s(100) < costs.run_s(10_000)
    for _ in range(200):
        costs.ran(10, 1e-2)
    assert costs.run_s(12) == pytest.approx(1e-2, rel=0.05)
    assert costs.run_s(100) < 5e-3
    for _ in range(10):
        costs.ran(10, 1e-4)
    assert costs.run_s(12) == pytest.approx(1e-4, rel=0.15)
