"""Tokens that are parts of words: byte-level byte-pair encoding, learned from the text that is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BYTES = 256
"""Every byte is a token, so that every text has some."""


@dataclass(frozen=True)
class Subwords:
    """Which tokens a text is; ``content`` is their ``tokenizer.json``."""

    content: str

    @staticmethod
    def of(text: str, size: int) -> Subwords:
        """Learns ``size`` tokens at most, the same from the same text: the commonest pair becomes one, again and
        again (Sennrich, Haddow and Birch 2016), inside the words of GPT-2's pattern."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator([text], trainer)
        return Subwords(tokenizer.to_str())

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_str(self.content)

    @property
    def size(self) -> int:
        size: int = self._tokenizer.get_vocab_size()
        return size

    @property
    def saved(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"tokenizer": self.content}

    def encode(self, text: str) -> NDArray[np.int64]:
        """Tokens, int64 ``[n]``."""
        return np.array(self._tokenizer.encode(text).ids, np.int64)

    def hidden_bits(self, text: str) -> float:
        """None: every byte has a token."""
        return 0.0
