"""Connectionist temporal classification (Graves et al., 2006): the net learns which characters were said, and finds out
by itself when.

Clips are drawn anew every epoch, short ones first, each made worse in its own way. In the middle of the net a second
loss asks for the sounds of the words, as espeak-ng has them: spelling is learned on top of that.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.data.distort import Distortion, distort
from export.data.prompts import CHARACTERS, RATE
from export.edits import edits
from export.nets.speech import STEP, SpeechNet, SpeechNetShape
from export.training.checkpoint import Run
from export.training.loop import Loss, Problem, Score

TAIL_S = 0.4
"""Silence behind every clip: the last word may come out late."""
_PAUSE_S = 0.3
"""Longest pause before a clip."""
_BATCH_S, _BATCH_MIN = 30.0, 8
"""Sound in a batch, and clips at least: with fewer the recurrent layers' products are too thin."""
_TOGETHER = 3
"""Clips that are joined at most."""
_MASK_BANDS, _MASK_FRAMES = 8, 20
"""Widest masks over log-mel energies (SpecAugment, Park et al., 2019)."""


@dataclass(frozen=True)
class Clip:
    """int16 samples ``[n]`` at ``RATE`` with what is said in them."""

    pcm: NDArray[np.int16]
    text: str


@dataclass(frozen=True)
class Sounds:
    """What can be heard in a run. ``human`` may be empty."""

    human: Sequence[Clip]
    synthetic: Sequence[Clip]
    develop: Sequence[Clip]
    source: str
    licence: str


@dataclass(frozen=True)
class Recipe:
    """How clips become batches."""

    human: float = 0.6
    """Share of the clips that a human speaks."""
    seconds: float = 1500.0
    """Of sound in an epoch."""
    join: float = 0.5
    """Share of the clips that are several joined together."""
    longest_s: float = 32.0
    helping: float = 0.3
    """Weight of the loss over sounds."""
    bfloat16: bool = False
    """Products in 16 bits, sums in 32: half as long again on processors that have it, much slower on others."""
    distortion: Distortion = Distortion()


@dataclass(frozen=True)
class Heap:
    """A batch: pcm float32 ``[B, T * STEP]``; steps of each clip; its characters and its sounds, numbered from 1."""

    pcm: Tensor
    steps: Tensor
    characters: list[list[int]]
    sounds: list[list[int]]


class SpeechProblem(Problem[Heap]):
    """Loss: nats per character. Score: character error rate of the likeliest characters on the development clips."""

    task: ClassVar[str] = "speech"
    net: SpeechNet
    unit = "nats per character"

    def __init__(
        self,
        sounds: Sounds,
        lexicon: dict[str, tuple[str, ...]],
        shape: SpeechNetShape,
        recipe: Recipe,
        data: str,
        epochs: int,
    ) -> None:
        """``lexicon``: each word's sounds; empty for no helping loss. ``shape.sounds`` is set from it."""
        self.sounds, self.recipe, self.data, self.epochs = sounds, recipe, data, epochs
        known = sorted({sound for word in lexicon.values() for sound in word})
        self._number = {sound: i for i, sound in enumerate(known, 1)}
        self._lexicon = lexicon
        self.net = SpeechNet(SpeechNetShape(**{**shape.to_dict(), "sounds": len(known) + 1 if known else 0}))

    @property
    def score_unit(self) -> str:
        return "character errors per character"

    def settings(self) -> dict[str, Any]:
        return {
            "data": self.data,
            "digest": digest([*self.sounds.human, *self.sounds.synthetic, *self.sounds.develop]),
            "characters": CHARACTERS,
            "shape": self.net.shape.to_dict(),
            "recipe": asdict(self.recipe),
        }

    def described(self) -> dict[str, Any]:
        parts = (self.sounds.human, self.sounds.synthetic, self.sounds.develop)
        return {
            "source": self.sounds.source,
            "licence": self.sounds.licence,
            "clips": [len(part) for part in parts],
            "seconds": [sum(len(c.pcm) for c in part) / RATE for part in parts],
        }

    def batches(self, epoch: int, seed: int) -> _Batches:
        return _Batches(self, epoch, seed)

    def loss(self, batch: Heap, states: tuple[Tensor, ...] | None) -> Loss:
        overlap, *initial = self.net.initial_state(len(batch.pcm))
        with torch.no_grad():
            mels = mask(self.net.logmel(torch.cat([overlap, batch.pcm], 1)), batch.steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bfloat16):
            heard = self.net.hear(mels, *initial)
        value = ctc(self.net.logits(heard.last.float()), batch.steps, batch.characters)
        shown = float(value.detach())
        if self.net.sounds is not None:
            value = value + self.recipe.helping * ctc(self.net.sounds(heard.middle.float()), batch.steps, batch.sounds)
        return Loss(value, shown, sum(map(len, batch.characters)))

    def develop(self) -> Score:
        errors, length = 0, 0
        for clip in self.sounds.develop:
            text = greedy_text(self.net, clip.pcm)
            errors += edits(text, clip.text)
            length += len(clip.text)
        return Score(errors / length)

    def numbers(self, text: str) -> tuple[list[int], list[int]]:
        """Characters and sounds of a text."""
        characters = [CHARACTERS.index(c) + 1 for c in text]
        return characters, [self._number[s] for word in text.split() for s in self._lexicon.get(word, ())]


class _Batches:
    """An epoch: its clips are drawn first, so that its length is known and clips of like length go together."""

    def __init__(self, problem: SpeechProblem, epoch: int, seed: int) -> None:
        self.problem, self.rng = problem, np.random.default_rng([seed, epoch, 7])
        # Short clips first: where to look is easier to learn while there are few places.
        longest = problem.recipe.longest_s * min(1.0, 0.1 + 2.2 * epoch / problem.epochs)
        groups = sorted(self._draw(longest), key=lambda g: sum(len(c.pcm) for c in g) * self.rng.uniform(0.9, 1.1))
        self.planned: list[list[list[Clip]]] = []
        sound = math.inf
        for group in groups:
            seconds = sum(len(c.pcm) for c in group) / RATE
            if sound + seconds > _BATCH_S and (not self.planned or len(self.planned[-1]) >= _BATCH_MIN):
                self.planned.append([])
                sound = 0.0
            self.planned[-1].append(group)
            sound += seconds
        self.rng.shuffle(self.planned)

    def __len__(self) -> int:
        return len(self.planned)

    def __iter__(self) -> Iterator[Heap]:
        for groups in self.planned:
            yield self._heap(groups)

    def _draw(self, longest_s: float) -> list[list[Clip]]:
        recipe, rng = self.problem.recipe, self.rng
        sources = [
            _not_longer(self.problem.sounds.human, longest_s),
            _not_longer(self.problem.sounds.synthetic, longest_s),
        ]
        turns: list[list[int]] = [[], []]
        groups, total, human_s, all_s = [], 0.0, 0.0, 0.0
        while total < recipe.seconds:
            which = 0 if sources[0] and (human_s <= recipe.human * all_s or not sources[1]) else 1
            group: list[Clip] = []
            for _ in range(int(rng.integers(2, _TOGETHER + 1)) if rng.random() < recipe.join else 1):
                if not turns[which]:  # each clip once before any comes again
                    turns[which] = list(rng.permutation(len(sources[which])))
                clip = sources[which][turns[which][-1]]
                if group and sum(len(c.pcm) for c in group) + len(clip.pcm) > min(longest_s, 12.0) * RATE:
                    break
                group.append(clip)
                turns[which].pop()
            seconds = sum(len(c.pcm) for c in group) / RATE
            groups.append(group)
            total += seconds
            all_s += seconds
            human_s += seconds * (which == 0)
        return groups

    def _heap(self, groups: Sequence[Sequence[Clip]]) -> Heap:
        rng, how = self.rng, self.problem.recipe.distortion
        sounds, characters, helping = [], [], []
        for group in groups:
            parts = []
            for clip in group:
                parts.append(np.zeros(int(rng.uniform(0, _PAUSE_S) * RATE), np.float32))
                parts.append(distort(clip.pcm, how, rng))
            parts.append(np.zeros(int(TAIL_S * RATE), np.float32))
            sounds.append(np.concatenate(parts))
            spelled, spoken = self.problem.numbers(" ".join(clip.text for clip in group))
            characters.append(spelled)
            helping.append(spoken)
        steps = [len(sound) // STEP for sound in sounds]
        size = max(steps) * STEP
        pcm = rng.standard_normal((len(sounds), size), np.float32) * np.float32(1e-4)
        for row, sound in zip(pcm, sounds):
            row[: len(sound)] += sound[:size]
        return Heap(torch.from_numpy(pcm), torch.tensor(steps), characters, helping)


def _not_longer(clips: Sequence[Clip], longest_s: float) -> list[Clip]:
    """Those clips, in their order; where all are longer, the shortest."""
    if not clips:
        return []
    most = max(longest_s * RATE, min(len(c.pcm) for c in clips))
    return [c for c in clips if len(c.pcm) <= most]


def ctc(logits: Tensor, steps: Tensor, wanted: Sequence[Sequence[int]]) -> Tensor:
    """Nats per label of logits ``[T, B, C]``, the blank being 0. A clip with more labels than steps counts nothing."""
    labels = torch.tensor([label for one in wanted for label in one])
    lengths = torch.tensor([len(one) for one in wanted])
    nats = nn.functional.ctc_loss(logits.log_softmax(-1), labels, steps, lengths, reduction="sum", zero_infinity=True)
    return nats / max(1, len(labels))


def mask(mels: Tensor, steps: Tensor) -> Tensor:
    """Two masks over bands and one per second over time, of random width, drawn from torch's seed, in place."""
    bands = mels.shape[1]
    for row, count in zip(mels, (steps * 3).tolist()):
        for _ in range(2):
            width = int(torch.randint(_MASK_BANDS + 1, ()))
            at = int(torch.randint(bands - width + 1, ()))
            row[at : at + width] = 0
        for _ in range(1 + count // 100):
            width = int(torch.randint(_MASK_FRAMES + 1, ()))
            at = int(torch.randint(max(1, count - width), ()))
            row[:, at : at + width] = 0
    return mels


def greedy_text(net: SpeechNet, pcm: NDArray[np.int16]) -> str:
    """The likeliest label of each step, repeats and blanks left out, single spaces."""
    tail = int(TAIL_S * RATE)
    steps = -(-(len(pcm) + tail) // STEP)
    sound = np.zeros((steps, 1, STEP), np.float32)
    sound.reshape(-1)[: len(pcm)] = pcm.astype(np.float32) / 32768
    logits, *_ = net(torch.from_numpy(sound), *net.initial_state(1))
    best = logits[:, 0].argmax(-1).tolist()
    kept = [b for i, b in enumerate(best) if b and (i == 0 or b != best[i - 1])]
    return " ".join("".join(CHARACTERS[b - 1] for b in kept).split())


def digest(clips: Sequence[Clip]) -> str:
    """Of all samples and texts."""
    found = hashlib.sha256()
    for clip in clips:
        found.update(clip.text.encode() + b"\0" + clip.pcm.tobytes())
    return found.hexdigest()[:16]


def net_of(run: Run) -> SpeechNet:
    """The net with the best weights of a run, in eval mode."""
    net = SpeechNet(SpeechNetShape(**run.settings["shape"]))
    net.load_state_dict(run.progress.best)
    return net.eval()
