"""What every application of Eddy gives: a problem to train, a model to export, and figures to be scored again."""

from __future__ import annotations

import json
import os
import platform
from abc import ABC, abstractmethod
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

from export.arguments import PRECISIONS
from export.training.schedule import Schedule
from pipeline.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from torch import nn

    from export.card import CardText
    from export.exporter import Exported, ExportOptions
    from export.training.checkpoint import Run
    from export.training.loop import Problem
    from pipeline.contract import CodecSpec, HeadSpec, StepInput

FIGURES_OF_PRECISIONS = 3
"""How many of a model's figures are shown for each precision."""
FIGURES = "figures.json"
"""Beside ``model.onnx``: what was scored of it, on which data."""


@dataclass(frozen=True)
class Figure:
    """One number of a model's card."""

    name: str
    """With what it was measured on: ``accuracy after 10 characters``."""
    value: float
    unit: str = ""
    digits: int = 4
    """Behind the point, where it is printed."""
    tolerance: float = 1e-3
    """How far a score of the same model and data on another machine may be from it."""
    baseline: bool = False
    """Not the model's: what another way of doing the same reaches on the same data."""

    def __str__(self) -> str:
        return f"{self.value:.{self.digits}f}" + (f" {self.unit}" if self.unit else "")


@dataclass(frozen=True)
class Scores:
    """Figures of a model, and which data they were measured on."""

    digest: str
    """Of the held-out data: figures of different data are not compared."""
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Scored:
    """The file ``figures.json``."""

    task: str
    about: dict[str, Any]
    """What the task must know to find the data again, as JSON."""
    scores: Scores
    python: str
    """Version of Python that scored it."""


@dataclass(frozen=True)
class Served:
    """What becomes of a run: what `export_module` takes, and the parts of the card that only the task can say."""

    net: nn.Module
    """With its best weights."""
    steps: StepInput
    codec: CodecSpec
    head: HeadSpec
    card: CardText
    """Without the held-out figures, which are added to it, and without the command."""
    about: dict[str, Any]
    """Kept in ``figures.json``, given to ``score``."""
    beside: Mapping[str, Path] = field(default_factory=dict)
    """Files that codec or head name, for ``ExportOptions.beside``."""


class Task(ABC):
    """One application. An object of it holds nothing."""

    name: ClassVar[str]
    """``language``: `eddy train language`, `eddy demo language`, the task that a checkpoint names."""
    help: ClassVar[str]
    """For the list of tasks."""
    defaults: ClassVar[Schedule] = Schedule()
    """The flags that all trainings share take their defaults from it."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Packages of the extra ``export`` that its training uses, beside torch and matplotlib."""

    @abstractmethod
    def add_arguments(self, parser: ArgumentParser) -> None:
        """Adds the flags of its own; those of the schedule, --output, --fresh, --threads and --json are there."""

    @abstractmethod
    def problem(self, args: Namespace) -> Problem[Any]:
        """Loads the data and builds the net, torch being seeded. Raises ConfigError for data that cannot be used."""

    @abstractmethod
    def served(self, run: Run) -> Served:
        """The net of a checkpoint with its best weights, and what is served of it. Raises ConfigError."""

    @abstractmethod
    def score(self, model: Path, about: Mapping[str, Any], *, baselines: bool = False) -> Scores:
        """The figures of a model folder on its held-out data, by onnxruntime alone.

        ``about``: as ``served`` gave it. ``baselines``: those too, which may take longer and need other packages.
        Raises ConfigError when the data cannot be had.
        """

    def export(
        self, run: Run, output: Path, command: str, settings: Mapping[str, Any], options: ExportOptions
    ) -> Exported:
        """Exports the best weights of a run to a model folder, scores them, and writes card and figures.

        ``command`` builds it again; ``settings`` change the head's. Raises what `export_module`, ``served`` and
        ``score`` raise.
        """
        from dataclasses import replace

        from export.card import write_card
        from export.exporter import export_module

        served = self.served(run)
        head = replace(served.head, settings={**served.head.settings, **settings})
        options = replace(options, beside={**options.beside, **served.beside})
        exported = export_module(served.net, output, served.steps, codec=served.codec, head=head, options=options)
        scores = self.score(output, served.about, baselines=True)
        write_figures(output, Scored(self.name, served.about, scores, platform.python_version()))
        card = replace(
            served.card,
            command=command,
            metrics=(*figure_rows(scores.figures), *served.card.metrics),
            precisions=tuple(self._precisions(served, head, exported, scores, options)),
        )
        write_card(output / "README.md", exported.contract, exported.parity, exported.file.stat().st_size, card)
        return exported

    def _precisions(
        self, served: Served, head: HeadSpec, exported: Exported, scores: Scores, options: ExportOptions
    ) -> Iterator[tuple[str, ...]]:
        """A header, and a row for each precision that weights can be stored in: size, difference, first figures."""
        from dataclasses import replace

        from export.exporter import export_module

        shown = [f.name for f in scores.figures if not f.baseline][:FIGURES_OF_PRECISIONS]
        yield ("weights", "file", "largest difference to float32", *shown)
        for precision in PRECISIONS:
            with TemporaryDirectory() as scratch:
                one, found = exported, scores
                if precision != options.precision:
                    folder = Path(scratch) / exported.contract.name / exported.contract.model_version
                    asked = replace(options, precision=precision)
                    one = export_module(served.net, folder, served.steps, codec=served.codec, head=head, options=asked)
                    found = self.score(folder, served.about)
                size = f"{one.file.stat().st_size / 1e6:.2f} MB"
            apart = [r.largest for r in one.parity.rows if r.what == f"{precision} against float32"]
            figures = {f.name: str(f) for f in found.figures}
            mark = " (this file)" if precision == options.precision else ""
            yield (f"{precision}{mark}", size, f"{max(apart, default=0.0):.2g}", *(figures[name] for name in shown))


def figure_rows(figures: Iterable[Figure]) -> list[tuple[str, str]]:
    """Rows of the card's table, the model's own figures first."""
    ordered = sorted(figures, key=lambda f: f.baseline)
    return [(f"{f.name} (baseline)" if f.baseline else f.name, str(f)) for f in ordered]


def write_figures(folder: Path, scored: Scored) -> None:
    """Writes ``figures.json`` into a model folder, whole or not at all."""
    plain = {
        "task": scored.task,
        "about": scored.about,
        "digest": scored.scores.digest,
        "python": scored.python,
        "figures": [asdict(f) for f in scored.scores.figures],
    }
    beside = folder / f"{FIGURES}.tmp"
    beside.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, folder / FIGURES)


def read_figures(folder: Path) -> Scored:
    """Raises ConfigError where there is no such file, and ModelError where it is not one that `eddy export` wrote."""
    file = folder / FIGURES
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        figures = tuple(Figure(**f) for f in plain["figures"])
        return Scored(plain["task"], plain["about"], Scores(plain["digest"], figures), plain["python"])
    except FileNotFoundError:
        raise ConfigError(
            f"no {FIGURES} in {folder}: only models exported from a run of `eddy train` can be scored again"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file}: not as `eddy export` writes it ({error}); export the model again") from None


def deviations(claimed: Sequence[Figure], found: Sequence[Figure]) -> list[str]:
    """Figures that are not as they were claimed, a sentence each; of baselines only those that were scored."""
    now = {f.name: f for f in found}
    said = []
    for figure in claimed:
        again = now.get(figure.name)
        if again is None:
            if not figure.baseline:
                said.append(f"{figure.name}: {figure} claimed, and not scored any more")
        elif not abs(again.value - figure.value) <= figure.tolerance:
            said.append(f"{figure.name}: {figure} claimed, {again} found, {figure.tolerance:g} allowed")
    known = {f.name for f in claimed}
    return said + [f"{f.name}: {f} found, and not claimed" for f in found if f.name not in known]
