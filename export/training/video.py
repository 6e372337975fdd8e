"""Learning to watch: clips are made anew for every epoch, and each of their frames is asked for digit and direction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from export.data.digits import Clips, Digits, moving
from export.nets.video import VideoNet, VideoNetShape
from export.training.checkpoint import Run
from export.training.loop import Loss, Problem, Score

PLACES = (1, 2, 4, 8)
"""Frames after which a clip is judged."""
JPEG = 0.5
"""Share of the clips in training, and in the development sample, that have been through JPEG."""
REPEATS_DEVELOP = 4
"""Clips of each image of the development data."""
DEVELOP_SEED = 1_000

Batch: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Frames uint8 ``[T, B, 24, 24, 1]``, digits and directions int64 ``[B]``."""


class VideoProblem(Problem[Batch]):
    """To say after every frame of a clip which digit moves which way. Loss and score: nats, of both answers."""

    task: ClassVar[str] = "video"
    net: VideoNet
    unit = "nats"

    def __init__(
        self,
        train: Digits,
        develop: Digits,
        shape: VideoNetShape,
        *,
        lanes: int = 64,
        frames: int = 8,
        updates: int = 80,
    ) -> None:
        """``lanes``: clips side by side, B; ``frames`` of a clip, T; ``updates`` an epoch."""
        self.train, self.lanes, self.frames, self.updates = train, lanes, frames, updates
        self.net = VideoNet(shape)
        self.digest = train.digest + develop.digest
        index = np.tile(np.arange(len(develop.digits)), REPEATS_DEVELOP)
        self.develop_clips = moving(develop, index, max(PLACES), np.random.default_rng(DEVELOP_SEED), jpeg=JPEG)

    def settings(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "shape": self.net.shape.to_dict(),
            "lanes": self.lanes,
            "frames": self.frames,
            "updates": self.updates,
        }

    def batches(self, epoch: int, seed: int) -> Epoch:
        return Epoch(self, epoch, seed)

    def loss(self, batch: Batch, states: tuple[Tensor, ...] | None) -> Loss:
        frames, digits, directions = batch
        digit, direction, *_ = self.net.both(frames, *self.net.initial_state(frames.shape[1]))
        value = nats(digit, digits) + nats(direction, directions)
        return Loss(value, float(value.detach()))

    def develop(self) -> Score:
        frames, digits, directions = tensors(self.develop_clips)
        digit, direction, *_ = self.net.both(frames, *self.net.initial_state(frames.shape[1]))
        extras = {}
        for place in PLACES:
            plural = "s" * (place > 1)
            extras[f"digit accuracy after {place} frame{plural}"] = _share(digit[place - 1], digits)
            extras[f"direction accuracy after {place} frame{plural}"] = _share(direction[place - 1], directions)
        return Score(float(nats(digit, digits) + nats(direction, directions)), extras)


class Epoch:
    """New motions of the training images."""

    def __init__(self, problem: VideoProblem, epoch: int, seed: int) -> None:
        self.problem, self.epoch, self.seed = problem, epoch, seed

    def __len__(self) -> int:
        return self.problem.updates

    def __iter__(self) -> Iterator[Batch]:
        problem = self.problem
        random = np.random.default_rng([self.seed, self.epoch])
        for _ in range(len(self)):
            index = random.integers(len(problem.train.digits), size=problem.lanes)
            yield tensors(moving(problem.train, index, problem.frames, random, jpeg=JPEG))


def tensors(clips: Clips) -> Batch:
    """Time first."""
    frames = torch.from_numpy(np.ascontiguousarray(clips.frames.swapaxes(0, 1)))
    return frames, torch.from_numpy(clips.digits), torch.from_numpy(clips.directions)


def nats(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean over steps and clips: logits ``[T, B, C]``, wanted ``[B]``, the same at every step."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), wanted.expand(len(logits), -1).flatten())


def _share(logits: Tensor, wanted: Tensor) -> float:
    return float((logits.argmax(dim=1) == wanted).float().mean())


def net_of(run: Run) -> VideoNet:
    """The net with the best weights of a run, in eval mode."""
    net = VideoNet(VideoNetShape(**run.settings["shape"]))
    net.load_state_dict(run.progress.best)
    return net.eval()
