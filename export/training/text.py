"""Truncated back-propagation through time with carried state: the text is laid out in lanes, and each window goes on
where the last one ended."""

from __future__ import annotations

import math
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from export.data.topics import Corpus, Units, begun
from export.nets.text import TextNet, TextNetShape
from export.training.checkpoint import Run
from export.training.loop import Loss, Problem, Score
from pipeline.errors import ConfigError

Window: TypeAlias = tuple[Tensor, Tensor]
"""Tokens given and tokens wanted, int64 ``[T, lanes]`` each."""


class TextProblem(Problem[Window]):
    """To predict each token of a text from those before it. Loss and score: bits per character."""

    task: ClassVar[str] = "text"
    net: TextNet
    unit = "bits per character"

    def __init__(
        self, corpus: Corpus, alphabet: Units, shape: TextNetShape, *, lanes: int = 32, window: int = 100
    ) -> None:
        """``lanes``: streams side by side, B; ``window``: steps that the error goes back, T.

        Raises ConfigError when the text is too short for them.
        """
        self.corpus, self.alphabet, self.lanes, self.window = corpus, alphabet, lanes, window
        self.net = TextNet(shape)
        self.tokens = alphabet.encode(corpus.train)
        self.lane = (len(self.tokens) - 1) // lanes
        if not self.lane:
            raise ConfigError(
                f"{len(self.tokens)} tokens do not fill one window of {lanes} lanes; give more text or fewer --lanes"
            )

    def settings(self) -> dict[str, Any]:
        return {
            "data": self.corpus.data,
            "digest": self.corpus.digest,
            "alphabet": self.alphabet.saved,
            "shape": self.net.shape.to_dict(),
            "lanes": self.lanes,
            "window": self.window,
        }

    def described(self) -> dict[str, Any]:
        parts = (self.corpus.train, self.corpus.develop, self.corpus.held_out)
        return {
            "source": self.corpus.source,
            "licence": self.corpus.licence,
            "characters": [len(part) for part in parts],
        }

    def batches(self, epoch: int, seed: int) -> list[Window]:
        """One pass over the text, from a place of the epoch's own."""
        start = int(np.random.default_rng([seed, epoch]).integers(len(self.tokens)))
        turned = np.roll(self.tokens, -start)
        size = self.lane * self.lanes
        given = torch.from_numpy(turned[:size].reshape(self.lanes, self.lane).T.copy())
        wanted = torch.from_numpy(turned[1 : size + 1].reshape(self.lanes, self.lane).T.copy())
        return list(zip(torch.split(given, self.window), torch.split(wanted, self.window)))

    def loss(self, batch: Window, states: tuple[Tensor, ...] | None) -> Loss:
        given, wanted = batch
        carried = self.net.initial_state(self.lanes) if states is None else states
        logits, *after = self.net(given, *carried)
        nats = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        per_character = (
            len(self.tokens) / len(self.corpus.train) / math.log(2)
        )  # where tokens are bytes, or several characters
        return Loss(nats, float(nats.detach()) * per_character, len(given), tuple(after))

    def develop(self) -> Score:
        return Score(score_torch(self.net, self.alphabet, self.corpus.develop))


def score_torch(net: TextNet, alphabet: Units, text: str, chunk: int = 2000) -> float:
    """Bits per character of a text read as one stream from the initial state; the net is in eval mode."""
    tokens = torch.from_numpy(begun(alphabet, text))
    nats, states = 0.0, net.initial_state(1)
    with torch.inference_mode():
        for at in range(0, len(tokens) - 1, chunk):
            given, wanted = tokens[at : at + chunk], tokens[at + 1 : at + chunk + 1]
            logits, *after = net(given[: len(wanted), None], *states)
            states = tuple(after)
            nats += float(nn.functional.cross_entropy(logits[:, 0], wanted, reduction="sum"))
    return (nats / math.log(2) + alphabet.hidden_bits(text)) / len(text)


def net_of(run: Run) -> TextNet:
    """The net with the best weights of a run, in eval mode."""
    net = TextNet(TextNetShape(**run.settings["shape"]))
    net.load_state_dict(run.progress.best)
    return net.eval()
