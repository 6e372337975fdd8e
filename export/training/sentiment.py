"""To tell the mood of a message: messages of one length or so side by side, each read from its line end to its last
word, where the answer is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.data.messages import LABELS, Message, Messages
from export.data.vectors import Vectors
from export.data.words import NEWLINE, encode, tokenization, words_of
from export.nets.sentiment import SentimentNet, SentimentNetShape
from export.training.checkpoint import Run
from export.training.confusion import Confusion
from export.training.loop import Loss, Problem, Score

Batch: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Tokens int64 ``[T, B]``, where each message has its last word int64 ``[B]``, wanted shares of the labels float32
``[B, classes]``."""

POOL = 50
"""Batches that are drawn together and sorted by length: little padding, and still another order every epoch."""
SURE = 0.97
"""What is wanted of the label of a message that all judges agreed on."""


class SentimentProblem(Problem[Batch]):
    """Loss: cross entropy with the judges' shares, nats per message. Score: that of the labels alone, of development
    messages."""

    task: ClassVar[str] = "sentiment"
    net: SentimentNet
    unit = "nats per message"

    def __init__(
        self,
        messages: Messages,
        tokenizer: bytes,
        shape: SentimentNetShape,
        vectors: Vectors | None = None,
        *,
        lanes: int = 64,
    ) -> None:
        """``tokenizer``: what ``shape``'s tokens are of; ``lanes``: messages side by side, B."""
        self.messages, self.tokenizer, self.lanes, self.vectors = messages, tokenizer, lanes, vectors
        self.net = SentimentNet(shape)
        if vectors is not None:
            begin_with(self.net, vectors)
        self.train = read(tokenizer, messages.train)
        self.wanted = shares(messages.train)
        self.developed = read(tokenizer, messages.develop)

    def settings(self) -> dict[str, Any]:
        return {
            "data": self.messages.data,
            "digest": self.messages.digest,
            "tokenizer": self.tokenizer.decode(),
            "shape": self.net.shape.to_dict(),
            "vectors": None if self.vectors is None else self.vectors.name,
            "lanes": self.lanes,
        }

    def described(self) -> dict[str, Any]:
        parts = (self.messages.train, self.messages.develop, self.messages.held_out)
        return {
            "source": self.messages.source,
            "licence": self.messages.licence,
            "messages": [len(part) for part in parts],
            "vectors": None if self.vectors is None else [self.vectors.source, self.vectors.licence],
        }

    def batches(self, epoch: int, seed: int) -> list[Batch]:
        """Every message once."""
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(self.train))
        pools = np.split(order, range(self.lanes * POOL, len(order), self.lanes * POOL))
        groups = [group for pool in pools for group in by_length(self.train, pool, self.lanes)]
        return [self._batch(groups[i]) for i in random.permutation(len(groups))]

    def loss(self, batch: Batch, states: tuple[Tensor, ...] | None) -> Loss:
        tokens, last, wanted = batch
        logits = self.net.at(tokens, last)
        nats = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.repeat(len(logits), 1))
        return Loss(nats, float(nats.detach()), len(last))

    def develop(self) -> Score:
        logits = answers(self.net, self.developed)
        truth = np.array([m.label for m in self.messages.develop])
        nats = nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(truth))
        confusion = Confusion.of(LABELS, truth, logits.argmax(1))
        return Score(float(nats), {"accuracy": confusion.accuracy, "macro F1": confusion.macro_f1})

    def _batch(self, group: NDArray[np.int64]) -> Batch:
        tokens, last = beside([self.train[i] for i in group])
        return tokens, last, self.wanted[torch.from_numpy(group)]


def read(tokenizer: bytes, messages: Sequence[Message]) -> list[NDArray[np.int64]]:
    """The tokens of each message, from the line end before it to its last word."""
    texts = [NEWLINE + m.record.decode().removesuffix(NEWLINE) for m in messages]
    return encode(tokenization(tokenizer), texts)


def shares(messages: Sequence[Message]) -> Tensor:
    """How much of each label is wanted, float32 ``[n, classes]``: the judges' agreement for theirs, the rest for the
    others alike."""
    labels = torch.tensor([m.label for m in messages])
    sure = SURE * torch.tensor([max(m.confidence, 0.45) for m in messages])
    others = (1 - sure) / (len(LABELS) - 1)
    own = nn.functional.one_hot(labels, len(LABELS)).float()
    return others[:, None] + own * (sure - others)[:, None]


def by_length(messages: Sequence[NDArray[np.int64]], index: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """``index`` in groups of ``size`` messages of about the same length."""
    order = index[np.argsort([len(messages[i]) for i in index], kind="stable")]
    return np.split(order, range(size, len(order), size))


def beside(messages: Sequence[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """Messages side by side -> int64 ``[T, B]``, padded behind, and where each has its last token, int64 ``[B]``."""
    last = torch.tensor([len(m) - 1 for m in messages])
    tokens = torch.zeros(int(last.max()) + 1, len(messages), dtype=torch.int64)
    for i, message in enumerate(messages):
        tokens[: len(message), i] = torch.from_numpy(message)
    return tokens, last


def answers(net: SentimentNet, messages: Sequence[NDArray[np.int64]], lanes: int = 256) -> NDArray[np.float32]:
    """The logits of each message, float32 ``[n, classes]``; the net is in eval mode."""
    logits = np.empty((len(messages), net.shape.classes), np.float32)
    with torch.inference_mode():
        for group in by_length(messages, np.arange(len(messages)), lanes):
            logits[group] = net.at(*beside([messages[i] for i in group])).mean(0).numpy()
    return logits


def begin_with(net: SentimentNet, vectors: Vectors) -> None:
    """Writes the vectors into the first numbers of the embeddings' rows; words without one keep what they had."""
    table, known = torch.from_numpy(vectors.table), torch.from_numpy(vectors.known)
    with torch.no_grad():
        for reader in net.readers():
            reader.embedding.weight[known, : table.shape[1]] = table[known]


def shape_of(tokenizer: bytes, **numbers: Any) -> SentimentNetShape:
    """The shape of a net over a tokenizer's words."""
    words = words_of(tokenizer)
    return SentimentNetShape(vocabulary=len(words), newline=words.index(NEWLINE), unknown=0, **numbers)


def net_of(run: Run) -> SentimentNet:
    """The net with the best weights of a run, in eval mode."""
    net = SentimentNet(SentimentNetShape(**run.settings["shape"]))
    net.load_state_dict(run.progress.best)
    return net.eval()
