"""What is expected of runs, from those that were."""

from __future__ import annotations

import pytest

from pipeline.engine.costs import STREAM_S, STREAM_STEPS_MIN, Alone, Costs

MOST = 256
CALL_S = 5e-5


def alone(costs: Costs, steps: int, step_s: float) -> None:
    """A call of one stream's ``steps``."""
    costs.ran_alone(Alone(1, steps, CALL_S + steps * step_s))


@pytest.mark.parametrize("step_s", [2e-4, 1e-4, 2e-5, 1e-5])
def test_a_streams_part_of_a_poll_is_bounded_in_time(step_s: float) -> None:
    costs = Costs()
    for _ in range(50):
        alone(costs, costs.stream_steps(MOST), step_s)
    for _ in range(50):
        steps = costs.stream_steps(MOST)
        assert steps * step_s == pytest.approx(min(STREAM_S, MOST * step_s), rel=0.3)
        alone(costs, steps, step_s)


def test_a_slow_models_first_long_runs_are_its_last() -> None:
    costs = Costs()
    assert costs.stream_steps(MOST) == MOST
    alone(costs, MOST, 1e-3)
    assert costs.stream_steps(MOST) == STREAM_STEPS_MIN


def test_single_steps_tell_of_a_slow_model_before_a_long_run_does() -> None:
    costs = Costs()
    for _ in range(200):
        alone(costs, 1, 1e-3)
    assert costs.stream_steps(MOST) == STREAM_STEPS_MIN


def test_single_steps_that_were_late_do_not_make_a_model_slow() -> None:
    costs = Costs()
    alone(costs, 1, 2e-3)  # the first call of all
    for i in range(200):
        alone(costs, 1, 5e-4 if i % 20 == 0 else 1e-5)
    assert costs.stream_steps(MOST) > MOST / 5
    alone(costs, costs.stream_steps(MOST), 1e-5)
    assert costs.stream_steps(MOST) == MOST


def test_what_a_call_costs_by_itself_is_not_its_steps_fault() -> None:
    """A device that takes 5 ms for any call, and 20 us for each step more."""
    costs = Costs()
    for _ in range(100):
        alone(costs, 1, 5e-3)
    for _ in range(20):
        steps = costs.stream_steps(MOST)
        costs.ran_alone(Alone(1, steps, 5e-3 + steps * 2e-5))
    assert costs.stream_steps(MOST) > 2 * STREAM_STEPS_MIN


def test_a_run_is_expected_to_take_what_runs_of_its_size_took() -> None:
    costs = Costs()
    assert costs.run_s(1) < costs.run_s(100) < costs.run_s(10_000)
    for _ in range(200):
        costs.ran(10, 1e-2)
    assert costs.run_s(12) == pytest.approx(1e-2, rel=0.05)
    assert costs.run_s(100) < 5e-3
