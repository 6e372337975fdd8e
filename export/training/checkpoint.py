"""A run of `eddy train` as a file: what it learns, how far it has come, and everything that going on needs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.load import read_checkpoint
from export.training.schedule import Schedule
from pipeline.errors import ConfigError, ModelError

FORMAT = "eddy-run-1"
CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Point:
    """An epoch as the curves show it."""

    epoch: int
    seconds: float
    """Since the run began, without interruptions."""
    train: float
    """Mean loss in training, in the problem's unit."""
    develop: float
    """Score on the development data, in the problem's unit for scores."""
    gradient: float
    """Mean norm of the gradient over the epoch's updates, before it was clipped."""
    gradient_max: float
    extras: dict[str, float] = field(default_factory=dict)
    """What else was found on the development data, by name."""


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of all threads; what training took however busy the machine was."""
    best_score: float = math.inf
    """Least score on the development data; ``best`` are the weights that had it, at the end of ``best_epoch``."""
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    curve: list[Point] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """A checkpoint, read."""

    file: Path
    task: str
    settings: dict[str, Any]
    """Of the problem: data, net and whatever else two runs must share to be one."""
    described: dict[str, Any]
    """What the card says and no run depends on: source, licence, threads."""
    schedule: Schedule
    progress: Progress


def save(
    file: Path,
    identity: Mapping[str, Any],
    described: Mapping[str, Any],
    moving: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Whole or not at all: a kill while writing leaves the checkpoint of the epoch before.

    ``identity``: what a run that goes on must share; ``moving``: state dicts of model, optimiser and average.
    """
    plain = {**vars(progress), "curve": [asdict(p) for p in progress.curve]}
    beside = file.with_suffix(".tmp")
    torch.save(
        {"format": FORMAT, **identity, "described": dict(described), "moving": dict(moving), "progress": plain}, beside
    )
    os.replace(beside, file)


def restore(file: Path, identity: Mapping[str, Any]) -> tuple[Progress, dict[str, Any]]:
    """Progress and state dicts of a run that is to go on. Raises ConfigError when it is another run's."""
    saved = _read(file)
    wanted = dict(_flat(identity))
    found = dict(_flat({key: saved.get(key) for key in identity}))
    for key in (*wanted, *found):
        if key not in wanted or key not in found or wanted[key] != found[key]:
            raise ConfigError(
                f"{file} belongs to another run ({key} differs); give another --output, or --fresh to begin anew"
            )
    return _progress(saved["progress"]), saved["moving"]


def read_run(file: Path) -> Run:
    """Raises ModelError for a file that is no checkpoint of `eddy train`."""
    saved = _read(file)
    return Run(
        file,
        saved["task"],
        saved["settings"],
        saved["described"],
        Schedule(**saved["schedule"]),
        _progress(saved["progress"]),
    )


def _read(file: Path) -> dict[str, Any]:
    saved = read_checkpoint(file)
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise ModelError(f"{file}: not a checkpoint of `eddy train`; name the module that it belongs to")
    return saved


def _progress(plain: Mapping[str, Any]) -> Progress:
    return Progress(**{**plain, "curve": [Point(**p) for p in plain["curve"]]})


def _flat(value: Mapping[str, Any], lead: str = "") -> list[tuple[str, Any]]:
    """Nested keys as words, so that a difference is named as closely as it can be; tuples as the lists they become."""
    rows: list[tuple[str, Any]] = []
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            rows += _flat(inner, f"{lead}{key} ")
        else:
            rows.append((f"{lead}{key}", list(inner) if isinstance(inner, tuple) else inner))
    return rows
