"""Small trainings on the Python reference topics, side by side: what the reports on units, length and activation share.

Times are processor time of one thread, so a busy machine does not change them much.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort

from export.data.topics import Alphabet, Corpus, python_topics
from export.exporter import export_module
from export.nets.text import TextNet, TextNetShape
from export.training.checkpoint import Progress
from export.training.loop import fit
from export.training.schedule import Schedule
from export.training.text import TextProblem
from pipeline.contract import StepInput


@dataclass(frozen=True)
class TextStudy:
    """How much is measured."""

    corpus: Corpus = field(default_factory=python_topics)
    epochs: int = 2
    learning_rate: float = 5e-3
    lanes: int = 32
    window: int = 100
    embedding: int = 32
    measure_s: float = 0.4
    """Processor time that a speed is measured over."""

    @property
    def alphabet(self) -> Alphabet:
        return Alphabet.of(self.corpus.train)

    def shape(self, kind: str, **more: Any) -> TextNetShape:
        return TextNetShape(kind, self.alphabet.size, embedding=self.embedding, **more)

    def train(self, name: str, shape: TextNetShape, folder: Path) -> Trained:
        """A run in ``folder/runs/name``, taken up where it is."""
        import torch

        schedule = Schedule(epochs=self.epochs, learning_rate=self.learning_rate)
        torch.manual_seed(schedule.seed)
        problem = TextProblem(self.corpus, self.alphabet, shape, lanes=self.lanes, window=self.window)
        progress = fit(problem, schedule, folder / "runs" / name, draw=False)
        problem.net.load_state_dict(progress.best)
        return Trained(problem.net.eval(), progress, problem.lane * problem.lanes * progress.epoch)


@dataclass(frozen=True)
class Trained:
    """A net after its short training."""

    net: TextNet
    progress: Progress
    steps: int
    """Tokens that it was trained on, all epochs."""

    @property
    def bits(self) -> float:
        """Per character of the development text."""
        return self.progress.best_score

    @property
    def weights(self) -> int:
        return sum(p.numel() for p in self.net.parameters())

    @property
    def training_rate(self) -> float:
        """Steps a second of processor time."""
        return self.steps / self.progress.cpu_seconds


def serving_rates(net: TextNet, rectangles: Sequence[tuple[int, int]], measure_s: float) -> list[float]:
    """Steps a second of processor time in onnxruntime, for each ``(T, B)``."""
    with TemporaryDirectory() as folder:
        exported = export_module(net, Path(folder) / "net" / "1", StepInput("tokens", "int64"))
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(str(exported.file), options, providers=["CPUExecutionProvider"])
    states = exported.contract.states
    rates = []
    for steps, batch in rectangles:
        feed = {"tokens": np.zeros((steps, batch), np.int64)}
        feed |= {s.input: np.repeat(np.zeros(s.shape, s.dtype), batch, s.batch_axis) for s in states}
        session.run(None, feed)
        calls, begun = 0, time.process_time()
        while not calls or time.process_time() - begun < measure_s:
            session.run(None, feed)
            calls += 1
        rates.append(calls * steps * batch / (time.process_time() - begun))
    return rates
