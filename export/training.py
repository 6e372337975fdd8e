"""Truncated back-propagation through time with carried state: the text is laid out in lanes, and each window goes on
where the last one ended.

Everything random follows from the seed and the epoch, and the checkpoint holds the rest: a run that was interrupted
resumes from the end of its last epoch and ends with the weights it would have had.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from export.curves import Curve, write_curves
from export.load import read_checkpoint
from export.nets import TextNet, TextNetShape
from export.text import BREAK, Alphabet, Corpus
from pipeline.errors import ConfigError, ModelError

FORMAT = "eddy-text-1"
CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Schedule:
    """How to train. Two runs with equal schedules, data and torch give equal weights on one machine."""

    epochs: int = 40
    lanes: int = 32
    """Streams side by side, B."""
    window: int = 100
    """Steps that the error goes back, T."""
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest norm of a gradient."""
    seed: int = 0


@dataclass
class Progress:
    """What a checkpoint holds beside its settings."""

    epoch: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of all threads; what training took however busy the machine was."""
    best_bits: float = math.inf
    """Least bits per character on the development text; ``best`` are the weights that had it."""
    best: dict[str, Tensor] = field(default_factory=dict)
    curve: Curve = field(default_factory=list)


def train_text(
    corpus: Corpus,
    alphabet: Alphabet,
    shape: TextNetShape,
    schedule: Schedule,
    folder: Path,
    *,
    resume: bool = True,
) -> Progress:
    """Trains until ``schedule.epochs`` and keeps ``checkpoint.pt``, ``loss.csv`` and ``loss.png`` in ``folder``.

    On a terminal there is a progress bar, elsewhere a line an epoch. Raises ConfigError when the checkpoint found there
    belongs to other settings or the text is too short, and ModelError when training diverges.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / CHECKPOINT
    torch.manual_seed(schedule.seed)
    net = TextNet(shape)
    optimiser = torch.optim.AdamW(net.parameters(), schedule.learning_rate, weight_decay=schedule.weight_decay)
    settings = {
        "format": FORMAT,
        "data": corpus.data,
        "digest": corpus.digest,
        "alphabet": alphabet.characters,
        "shape": shape.to_dict(),
        "schedule": asdict(schedule),
    }
    described = {"source": corpus.source, "licence": corpus.licence, "threads": torch.get_num_threads()}
    progress = Progress()
    if resume and file.exists():
        progress = _restore(file, settings, net, optimiser)
    tokens = alphabet.encode(corpus.train)
    windows = list(_windows(len(tokens), schedule))
    total = schedule.epochs * len(windows)
    if not windows:
        raise ConfigError(
            f"{len(tokens)} tokens do not fill one window of {schedule.lanes} lanes; give more text or fewer --lanes"
        )
    done = progress.epoch * len(windows)
    with tqdm(total=total, initial=done, unit="window", desc=f"train {folder.name}", disable=None) as bar:
        for epoch in range(progress.epoch, schedule.epochs):
            started, cpu_started = time.monotonic(), time.process_time()
            bits = _epoch(net, optimiser, tokens, epoch, windows, total, schedule, bar)
            bits *= len(tokens) / len(corpus.train)  # from tokens to characters, where they are bytes
            develop = score_torch(net, alphabet, corpus.develop)
            if not math.isfinite(bits + develop):
                raise ModelError(
                    f"the loss is no number any more in epoch {epoch + 1}: lower --learning-rate or --clip"
                )
            progress.epoch = epoch + 1
            progress.seconds += time.monotonic() - started
            progress.cpu_seconds += time.process_time() - cpu_started
            progress.curve.append((progress.epoch, progress.seconds, bits, develop))
            if develop < progress.best_bits:
                progress.best_bits = develop
                progress.best = {k: v.detach().clone() for k, v in net.state_dict().items()}
            bar.set_postfix(epoch=progress.epoch, train=f"{bits:.3f}", develop=f"{develop:.3f}", unit="bits/char")
            _save(file, {**settings, **described}, net, optimiser, progress)
            write_curves(folder, progress.curve, "epoch", "bits per character")
            if bar.disable:
                said = f"{bits:.3f}, development {develop:.3f} bits per character"
                print(f"epoch {progress.epoch}/{schedule.epochs}: {said}", file=sys.stderr, flush=True)
    return progress


def score_torch(net: TextNet, alphabet: Alphabet, text: str, chunk: int = 2000) -> float:
    """Bits per character of a text read as one stream from the initial state, in eval mode."""
    was = net.training
    net.eval()
    tokens = torch.from_numpy(alphabet.encode(BREAK + text))
    nats, states = 0.0, net.initial_state(1)
    with torch.inference_mode():
        for at in range(0, len(tokens) - 1, chunk):
            given, wanted = tokens[at : at + chunk], tokens[at + 1 : at + chunk + 1]
            logits, *after = net(given[: len(wanted), None], *states)
            states = tuple(after)
            nats += float(nn.functional.cross_entropy(logits[:, 0], wanted, reduction="sum"))
    net.train(was)
    return (nats / math.log(2) + alphabet.hidden_bits(text)) / len(text)


def load_text_net(file: Path) -> tuple[TextNet, dict[str, Any]]:
    """The net with the best weights of a run, in eval mode, and the checkpoint's settings.

    Raises ModelError for a file that is no checkpoint of `eddy train text`.
    """
    saved = read_checkpoint(file)
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise ModelError(f"{file}: not a checkpoint of `eddy train text`; name the module that it belongs to")
    net = TextNet(TextNetShape(**saved["shape"]))
    net.load_state_dict(saved["progress"]["best"])
    return net.eval(), saved


def _windows(tokens: int, schedule: Schedule) -> Iterator[tuple[int, int]]:
    """Begin and end of each window within a lane; a target follows its last step, so one token is left over."""
    lane = (tokens - 1) // schedule.lanes
    for at in range(0, lane, schedule.window):
        yield at, min(at + schedule.window, lane)


def _epoch(
    net: TextNet,
    optimiser: torch.optim.Optimizer,
    tokens: NDArray[np.int64],
    epoch: int,
    windows: list[tuple[int, int]],
    total: int,
    schedule: Schedule,
    bar: Any,
) -> float:
    """One pass over the text, from a place of its own -> mean bits per token."""
    torch.manual_seed(schedule.seed * 1_000_003 + epoch)
    start = int(np.random.default_rng([schedule.seed, epoch]).integers(len(tokens)))
    turned = np.roll(tokens, -start)
    lane = (len(turned) - 1) // schedule.lanes
    given = torch.from_numpy(turned[: lane * schedule.lanes].reshape(schedule.lanes, lane).T.copy())
    wanted = torch.from_numpy(turned[1 : lane * schedule.lanes + 1].reshape(schedule.lanes, lane).T.copy())
    net.train()
    states, nats = net.initial_state(schedule.lanes), 0.0
    for i, (a, b) in enumerate(windows):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(schedule, epoch * len(windows) + i, total)
        logits, *after = net(given[a:b], *states)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), wanted[a:b].flatten())
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(net.parameters(), schedule.clip)
        optimiser.step()
        states = tuple(s.detach() for s in after)
        nats += float(loss.detach()) * (b - a)
        bar.update()
    return nats / lane / math.log(2)


def learning_rate(schedule: Schedule, step: int, total: int) -> float:
    """A short rise, then half a cosine down to a hundredth."""
    rise = max(1, total // 50)
    if step < rise:
        return schedule.learning_rate * (step + 1) / rise
    return schedule.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise))))


def _save(
    file: Path, settings: dict[str, Any], net: TextNet, optimiser: torch.optim.Optimizer, progress: Progress
) -> None:
    """Whole or not at all: a kill while writing leaves the checkpoint of the epoch before."""
    beside = file.with_suffix(".tmp")
    torch.save(
        {
            **settings,
            "model": net.state_dict(),
            "optimiser": optimiser.state_dict(),
            "progress": vars(progress),
        },
        beside,
    )
    os.replace(beside, file)


def _restore(file: Path, settings: dict[str, Any], net: TextNet, optimiser: torch.optim.Optimizer) -> Progress:
    saved = read_checkpoint(file)
    for key, value in settings.items():
        if saved.get(key) != value:
            raise ConfigError(
                f"{file} belongs to another run ({key} differs); give another --output, or --fresh to begin anew"
            )
    net.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optimiser"])
    return Progress(**saved["progress"])
