"""Training, as every text on recurrent networks tells it: initialise; then run forward, propagate the error back
through time, update the weights, and repeat until the score gets no better.

Everything random follows from the seed and the epoch, and the checkpoint holds the rest: a run that was interrupted
resumes from the end of its last epoch and ends with the weights it would have had.
"""

from __future__ import annotations

import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from export.training.average import Average
from export.training.checkpoint import CHECKPOINT, Point, Progress, restore, save
from export.training.curves import draw_curves, write_numbers
from export.training.schedule import Schedule, learning_rate
from pipeline.errors import ConfigError, ModelError

Batch = TypeVar("Batch")
Batch_co = TypeVar("Batch_co", covariant=True)
BAR = "{desc}: {percentage:3.0f}%|{bar}| epoch {n:.2f}/{total} [{elapsed}<{remaining}{postfix}]"
DRAW_EVERY_S = 10
"""A picture takes half a second, and an epoch of a small net may take less."""


class Batches(Protocol[Batch_co]):
    """An epoch's batches: how many, and one after the other. A list is one."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch_co]: ...


@dataclass(frozen=True)
class Loss:
    """Of one batch."""

    value: Tensor
    """A scalar, the one that is propagated back."""
    shown: float
    """The same as the curves show it, in the problem's unit."""
    weight: float = 1.0
    """How much it counts in the epoch's mean: its steps, say."""
    states: tuple[Tensor, ...] | None = None
    """Where the next batch goes on, cut off from this one's graph by the loop; None: it begins anew."""


@dataclass(frozen=True)
class Score:
    """On the development data; lower is better. ``extras`` are further figures of it, by name."""

    value: float
    extras: dict[str, float] = field(default_factory=dict)


class Problem(ABC, Generic[Batch]):
    """What is learned: a net, its data in batches, the loss of a batch, the score on the development data."""

    task: ClassVar[str]
    """Under which name the registry of tasks has what exports the checkpoint."""
    net: nn.Module
    unit: str
    """Of the loss as it is shown: ``bits per character``."""
    perfect: ClassVar[float] = -math.inf
    """The score than which there is no better: training ends with it."""

    @property
    def score_unit(self) -> str:
        """Of the score, where it is another."""
        return self.unit

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What two runs must share to be one: the data's digest, the net's shape ...; enough to build the net again.

        Plain values only, as JSON has them.
        """

    def described(self) -> dict[str, Any]:
        """What the model's card says of the run and nothing depends on: the data's source, its licence."""
        return {}

    @abstractmethod
    def batches(self, epoch: int, seed: int) -> Batches[Batch]:
        """Of one epoch, a function of the arguments alone. Sources of data are mixed here.

        Raises ConfigError when the data do not make one batch.
        """

    @abstractmethod
    def loss(self, batch: Batch, states: tuple[Tensor, ...] | None) -> Loss:
        """Runs forward, in training mode. ``states``: what the batch before handed on; None at an epoch's beginning."""

    @abstractmethod
    def develop(self) -> Score:
        """The score on the development data; the net is in eval mode and no gradient is kept."""


def fit(
    problem: Problem[Batch], schedule: Schedule, folder: Path, *, resume: bool = True, draw: bool = True
) -> Progress:
    """Trains, and keeps ``checkpoint.pt``, ``loss.csv`` and, where ``draw``, ``loss.png`` in ``folder``.

    The net comes initialised: whoever builds it calls ``torch.manual_seed(schedule.seed)`` first. On a terminal there
    is a progress bar, elsewhere a line an epoch. Raises ConfigError when the checkpoint found in ``folder`` belongs to
    other settings, and ModelError when training diverges.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, net = folder / CHECKPOINT, problem.net
    identity = {"task": problem.task, "settings": problem.settings(), "schedule": asdict(schedule)}
    described = {**problem.described(), "threads": torch.get_num_threads()}
    optimiser = torch.optim.AdamW(net.parameters(), schedule.learning_rate, weight_decay=schedule.weight_decay)
    average = Average(net, schedule.ema) if schedule.ema else None
    moving: dict[str, Any] = {"model": net, "optimiser": optimiser} | ({"average": average.model} if average else {})
    progress, drawn = Progress(), time.monotonic()
    if resume and file.exists():
        progress, saved = restore(file, identity)
        for name, part in moving.items():
            part.load_state_dict(saved[name])
    with tqdm(
        total=schedule.epochs, initial=progress.epoch, desc=f"train {folder.name}", bar_format=BAR, disable=None
    ) as bar:
        for epoch in range(progress.epoch, schedule.epochs):
            if converged(progress, schedule, problem.perfect):
                break
            started, cpu_started = time.monotonic(), time.process_time()
            train, norms = _epoch(problem, schedule, epoch, optimiser, average, bar)
            score, weights = _develop(problem, average)
            if not math.isfinite(train + score.value):
                raise ModelError(
                    f"the loss is no number any more in epoch {epoch + 1}: lower --learning-rate or --clip-norm"
                )
            progress.epoch = epoch + 1
            progress.seconds += time.monotonic() - started
            progress.cpu_seconds += time.process_time() - cpu_started
            mean = sum(norms) / len(norms)
            progress.curve.append(
                Point(progress.epoch, progress.seconds, train, score.value, mean, max(norms), dict(score.extras))
            )
            if score.value < progress.best_score:
                progress.best_score, progress.best_epoch, progress.best = score.value, progress.epoch, weights
            save(file, identity, described, {name: part.state_dict() for name, part in moving.items()}, progress)
            write_numbers(folder, progress.curve, problem.unit, problem.score_unit)
            if draw and time.monotonic() - drawn > DRAW_EVERY_S:
                draw_curves(folder, progress.curve, problem.unit, problem.score_unit)
                drawn = time.monotonic()
            _say(bar, problem, schedule, progress.curve[-1])
    if draw:
        draw_curves(folder, progress.curve, problem.unit, problem.score_unit)
    return progress


def converged(progress: Progress, schedule: Schedule, perfect: float = -math.inf) -> bool:
    """Whether the score on the development data has got no better for as long as the schedule's patience lasts, or
    cannot get better."""
    return progress.best_score <= perfect or 0 < schedule.patience <= progress.epoch - progress.best_epoch


def _epoch(
    problem: Problem[Batch],
    schedule: Schedule,
    epoch: int,
    optimiser: torch.optim.Optimizer,
    average: Average | None,
    bar: Any,
) -> tuple[float, list[float]]:
    """One pass over the data -> mean loss as shown, and each update's gradient norm before clipping."""
    net = problem.net
    net.train()
    torch.manual_seed(schedule.seed * 1_000_003 + epoch)
    batches = problem.batches(epoch, schedule.seed)
    count, shown, weight, norms = len(batches), 0.0, 0.0, list[float]()
    states: tuple[Tensor, ...] | None = None
    for i, batch in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(schedule, epoch * count + i, schedule.epochs * count)
        loss = problem.loss(batch, states)  # forward
        optimiser.zero_grad()
        torch.autograd.backward(loss.value)  # back-propagation through time
        norms.append(clip(net, schedule))
        optimiser.step()  # update
        if average is not None:
            average.update()
        states = None if loss.states is None else tuple(s.detach() for s in loss.states)
        shown += loss.shown * loss.weight
        weight += loss.weight
        bar.update(1 / count)
    if not norms:
        raise ConfigError(f"epoch {epoch + 1} has no batch to train on: give more data, or smaller batches")
    return shown / weight, norms


def clip(net: nn.Module, schedule: Schedule) -> float:
    """Shortens the gradient as the schedule says -> its norm before that."""
    norm = nn.utils.clip_grad_norm_(net.parameters(), schedule.clip_norm or math.inf)
    if schedule.clip_value:
        nn.utils.clip_grad_value_(net.parameters(), schedule.clip_value)
    return float(norm)


def _develop(problem: Problem[Batch], average: Average | None) -> tuple[Score, dict[str, Tensor]]:
    """The score of the weights that would be exported, and a copy of them."""
    net = problem.net
    with average.in_place() if average is not None else nullcontext(), torch.no_grad():
        net.eval()
        score = problem.develop()
        weights = {k: v.detach().clone() for k, v in net.state_dict().items()}
        net.train()
    return score, weights


def _say(bar: Any, problem: Problem[Batch], schedule: Schedule, point: Point) -> None:
    bar.set_postfix(train=f"{point.train:.3f} {problem.unit}", develop=f"{point.develop:.3f} {problem.score_unit}")
    if bar.disable:
        train = f"{point.train:.3f}" + (f" {problem.unit}" if problem.unit != problem.score_unit else "")
        said = f"{train}, development {point.develop:.3f} {problem.score_unit}"
        print(f"epoch {point.epoch}/{schedule.epochs}: {said}", file=sys.stderr, flush=True)
