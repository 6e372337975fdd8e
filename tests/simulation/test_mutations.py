"""The simulator can fail: the invariants find every deliberate mistake, and its world is good without it."""

from __future__ import annotations

import os

import pytest

from tests.simulation.mutations import MUTATIONS
from tests.simulation.test_seeds import run

SEEDS = 200


@pytest.mark.timeout(960)
def test_every_deliberate_mistake_is_found():
    said = run("--mutation", "each", "--seeds", str(SEEDS), "--jobs", str(os.cpu_count() or 1))
    assert f"{len(MUTATIONS)} of {len(MUTATIONS)} mistakes found" in said


def test_a_failing_seed_prints_the_command_that_repeats_it():
    with pytest.raises(
        AssertionError, match=r"again: python -m tests.simulation --start 0 .*--mutation replay_from_omitted"
    ):
        run("--start", "0", "--verbose", "--mutation", "replay_from_omitted")
