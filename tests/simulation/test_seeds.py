"""The worker over the model of Kafka: a thousand seeds, and the same seed twice."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SEEDS = 1000


def run(*arguments: str) -> str:
    """The simulator in a process of its own, as by hand; its words if it found nothing."""
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(960)
def test_nothing_is_lost_repeated_or_out_of_order():
    said = run("--seeds", str(SEEDS), "--jobs", str(os.cpu_count() or 1))
    assert f"{SEEDS} seeds, 0 failed" in said


def test_a_seed_is_the_same_run_each_time():
    assert run("--start", "1", "--trace") == run("--start", "1", "--trace")
