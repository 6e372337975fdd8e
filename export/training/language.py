"""Telling languages apart, from the first byte on: every step of a stream is asked for its language."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from export.data.pages import LANGUAGES, LICENCE, Page, describe, digest, streams
from export.nets.language import LanguageNet, LanguageNetShape
from export.training.checkpoint import Run
from export.training.loop import Loss, Problem, Score

PLACES = (10, 20, 50, 100)
"""Characters after which a stream's language is judged."""
EACH_DEVELOP = 25
"""Streams of each language in the development sample."""
DEVELOP_SEED = 1_000

Window: TypeAlias = tuple[Tensor, Tensor, bool]
"""Bytes int64 ``[T, B]``, languages int64 ``[B]``, and whether the streams go on where the window before ended."""


class LanguageProblem(Problem[Window]):
    """To name the language of a stream of bytes after each of them; every language is met equally often.

    Loss: nats, early bytes counting more. Score: mean nats after 10, 20, 50 and 100 characters.
    """

    task: ClassVar[str] = "language"
    net: LanguageNet
    unit = "nats"

    def __init__(
        self,
        train: Sequence[Page],
        develop: Sequence[Page],
        shape: LanguageNetShape,
        *,
        lanes: int = 64,
        window: int = 96,
        updates: int = 150,
        packages: str = "",
    ) -> None:
        """``lanes``: streams side by side, B; ``window``: bytes that the error goes back, T; ``updates`` an epoch;
        ``packages``: what the pages are from, for the card."""
        self.lanes, self.window, self.updates = lanes, window, updates
        self.net = LanguageNet(shape)
        self.about = {
            "packages": packages,
            "licence": LICENCE,
            "train": describe(train),
            "develop": describe(develop),
        }
        self.digest = digest([*train, *develop])
        self.texts = [[p.text.encode() for p in train if p.language == code] for code in LANGUAGES]
        self.sizes = [np.array([len(t) for t in texts], np.float64) for texts in self.texts]
        self.develop_bytes, self.develop_labels, self.develop_ends = laid_out(
            streams(develop, EACH_DEVELOP, max(PLACES), DEVELOP_SEED)
        )

    def settings(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "languages": list(LANGUAGES),
            "shape": self.net.shape.to_dict(),
            "lanes": self.lanes,
            "window": self.window,
            "updates": self.updates,
        }

    def described(self) -> dict[str, Any]:
        return self.about

    def batches(self, epoch: int, seed: int) -> Windows:
        return Windows(self, epoch, seed)

    def loss(self, batch: Window, states: tuple[Tensor, ...] | None) -> Loss:
        given, labels, goes_on = batch
        carried = states if goes_on and states is not None else self.net.initial_state(given.shape[1])
        logits, *after = self.net(given, *carried)
        steps = len(given)
        nats = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.expand(steps, -1).flatten(), reduction="none"
        ).view(steps, -1)
        weights = torch.ones(steps) if goes_on else 1 / torch.sqrt(torch.arange(steps) + 8.0)
        value = (nats.mean(dim=1) * weights).sum() / weights.sum()
        return Loss(value, float(value.detach()), states=tuple(after))

    def develop(self) -> Score:
        logits, *_ = self.net(self.develop_bytes, *self.net.initial_state(self.develop_bytes.shape[1]))
        nats, extras = 0.0, {}
        for place, ends in zip(PLACES, self.develop_ends):
            at = logits[ends, torch.arange(len(ends))]
            nats += float(nn.functional.cross_entropy(at, self.develop_labels)) / len(PLACES)
            right = float((at.argmax(dim=1) == self.develop_labels).float().mean())
            extras[f"accuracy after {place} characters"] = right
        return Score(nats, extras)


class Windows:
    """An epoch's windows. Three of four streams are one window long; every fourth goes on for two more, so that the
    state is at home in streams that do not end."""

    def __init__(self, problem: LanguageProblem, epoch: int, seed: int) -> None:
        self.problem, self.epoch, self.seed = problem, epoch, seed

    def __len__(self) -> int:
        return self.problem.updates

    def __iter__(self) -> Iterator[Window]:
        problem = self.problem
        random = np.random.default_rng([self.seed, self.epoch])
        plan = [part for _ in range(-(-len(self) // 6)) for part in (1, 1, 1, 3)]
        done = 0
        for windows in plan:
            labels = random.permutation(np.arange(problem.lanes) % len(LANGUAGES))
            labels = (labels + random.integers(len(LANGUAGES))) % len(LANGUAGES)
            size = windows * problem.window
            drawn = [_draw(problem.texts[c], problem.sizes[c], size, random) for c in labels]
            given = torch.from_numpy(np.stack(drawn, axis=1).astype(np.int64))
            for i in range(windows):
                if done == len(self):
                    return
                yield given[i * problem.window : (i + 1) * problem.window], torch.from_numpy(labels), i > 0
                done += 1


def _draw(texts: Sequence[bytes], sizes: Any, size: int, random: np.random.Generator) -> Any:
    """uint8 ``[size]`` from a random character on; a page that ends goes on with its beginning."""
    text = texts[random.choice(len(texts), p=sizes / sizes.sum())]
    start = int(random.integers(len(text)))
    while text[start] & 0xC0 == 0x80:  # inside a character
        start -= 1
    found = text[start : start + size]
    while len(found) < size:
        found += b"\n" + text[: size - len(found) - 1]
    return np.frombuffer(found, np.uint8)


def laid_out(sample: Sequence[tuple[str, int]]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Bytes int64 ``[T, n]`` (zeros after the end), labels ``[n]``, and each place's last byte, its index ``[n]``."""
    raw = [text.encode() for text, _ in sample]
    given = np.zeros((max(map(len, raw)), len(raw)), np.int64)
    for i, text in enumerate(raw):
        given[: len(text), i] = np.frombuffer(text, np.uint8)
    ends = [torch.tensor([len(text[:place].encode()) - 1 for text, _ in sample]) for place in PLACES]
    return torch.from_numpy(given), torch.tensor([label for _, label in sample]), ends


def net_of(run: Run) -> LanguageNet:
    """The net with the best weights of a run, in eval mode."""
    net = LanguageNet(LanguageNetShape(**run.settings["shape"]))
    net.load_state_dict(run.progress.best)
    return net.eval()
