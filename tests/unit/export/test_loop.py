"""The training loop by itself, on one weight: schedule, average, early stopping, clipping, mixing, resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.training.schedule import Schedule, learning_rate
from pipeline.errors import ConfigError

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")
from torch import Tensor, nn  # noqa: E402

from export.training.average import Average  # noqa: E402
from export.training.checkpoint import read_run  # noqa: E402
from export.training.loop import Loss, Problem, Score, clip, converged, fit  # noqa: E402
from export.training.mixing import mix  # noqa: E402


class Halfway(Problem[Tensor]):
    """To make one weight the number 3; the development data say when it is 1."""

    task = "halfway"
    unit = "squares"

    def __init__(self, stop_after: int | None = None) -> None:
        self.net = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.net.weight)
        self.stop_after, self.seen = stop_after, list[bool]()

    @property
    def score_unit(self) -> str:
        return "distance"

    def settings(self) -> dict[str, Any]:
        return {"goal": 3}

    def batches(self, epoch: int, seed: int) -> list[Tensor]:
        if self.stop_after is not None and epoch >= self.stop_after:
            raise KeyboardInterrupt
        return list(torch.ones(10, 1, 1))

    def loss(self, batch: Tensor, states: tuple[Tensor, ...] | None) -> Loss:
        self.seen.append(states is not None)
        noise = torch.randn(())
        value = ((self.net(batch) - 3 + 0.1 * noise) ** 2).mean()
        return Loss(value, float(value.detach()), states=(self.net(batch),))

    def develop(self) -> Score:
        assert not self.net.training
        weight = float(self.net.weight)
        return Score(abs(weight - 1), {"weight": weight})


QUICK = Schedule(epochs=12, learning_rate=0.05, weight_decay=0.0)


def test_training_ends_when_the_score_gets_no_better(tmp_path: Path) -> None:
    torch.manual_seed(0)
    problem = Halfway()
    progress = fit(problem, replace(QUICK, epochs=50, patience=2), tmp_path)
    assert progress.epoch == progress.best_epoch + 2 < 50
    run = read_run(tmp_path / "checkpoint.pt")
    assert abs(float(run.progress.best["weight"]) - 1) == pytest.approx(progress.best_score)
    assert run.task == "halfway"
    assert problem.seen[:11] == [False, *[True] * 9, False]
    assert "development, weight" not in (tmp_path / "loss.csv").read_text()
    header = (tmp_path / "loss.csv").read_text().splitlines()[0].split(",")
    assert header[2:] == [
        "train (squares)",
        "development (distance)",
        '"gradient norm',
        ' mean"',
        '"gradient norm',
        ' largest"',
        "weight",
    ]
    again = fit(Halfway(), replace(QUICK, epochs=50, patience=2), tmp_path)
    assert again.epoch == progress.epoch
    assert converged(progress, Schedule(patience=2))
    assert not converged(progress, Schedule(patience=0))
    assert converged(progress, Schedule(), perfect=progress.best_score)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path, ema: float) -> None:
    schedule = replace(QUICK, ema=ema)
    whole = fit(Halfway(), schedule, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(Halfway(stop_after=5), schedule, tmp_path / "broken")
    broken = fit(Halfway(), schedule, tmp_path / "broken")
    assert [p.develop for p in broken.curve] == [p.develop for p in whole.curve]
    assert [p.gradient for p in broken.curve] == [p.gradient for p in whole.curve]
    with pytest.raises(ConfigError, match="schedule ema differs"):
        fit(Halfway(), replace(schedule, ema=0.5), tmp_path / "broken")


def test_the_average_is_of_what_the_weights_were() -> None:
    net = nn.Linear(1, 1, bias=False)
    average = Average(net, 0.9)
    expected = None
    for n in range(40):
        nn.init.constant_(net.weight, float(n))
        average.update()
        keep = min(0.9, (1 + n) / (10 + n))
        expected = float(n) if expected is None else keep * expected + (1 - keep) * n
    with average.in_place():
        assert float(net.weight.detach()) == pytest.approx(expected)
    assert float(net.weight.detach()) == 39


def test_gradients_are_clipped_by_norm_and_by_value() -> None:
    net = nn.Linear(2, 1, bias=False)
    for schedule, left in (
        (Schedule(clip_norm=0.0), [3.0, 4.0]),
        (Schedule(clip_norm=1.0), [0.6, 0.8]),
        (Schedule(clip_norm=0.0, clip_value=3.5), [3.0, 3.5]),
        (Schedule(clip_norm=1.0, clip_value=0.7), [0.6, 0.7]),
    ):
        net.weight.grad = torch.tensor([[3.0, 4.0]])
        assert clip(net, schedule) == pytest.approx(5.0)
        assert net.weight.grad[0].tolist() == pytest.approx(left, rel=1e-5)


def test_the_learning_rate_rises_and_falls() -> None:
    schedule = Schedule(learning_rate=1.0, warm_up=0.1)
    rates = [learning_rate(schedule, i, 100) for i in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)


def test_sources_are_mixed_by_share_and_none_repeats_early() -> None:
    sources, indices = mix([5, 1000, 7], [1, 3, 0], 40, seed=1, epoch=2)
    assert np.bincount(sources).tolist() == [10, 30]
    assert np.bincount(indices[sources == 0]).tolist() == [2] * 5
    assert len(set(indices[sources == 1])) == 30
    again, other = mix([5, 1000, 7], [1, 3, 0], 40, seed=1, epoch=2), mix([5, 1000, 7], [1, 3, 0], 40, seed=1, epoch=3)
    assert np.array_equal(again[1], indices)
    assert not np.array_equal(other[1], indices)
    with pytest.raises(ConfigError, match="source 1 has 0 examples"):
        mix([5, 0], [1, 1], 10, 0, 0)
