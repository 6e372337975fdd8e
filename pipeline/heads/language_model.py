"""A language model of characters: n-grams with back-off, read from a file of a few megabytes into tables of states.

The probability of a character after a text is that of the longest end of the text which the model has seen before that
character; every step to a shorter one costs the back-off weight of what is left behind (Katz 1987, the form of ARPA
files). All of that is worked out once: a *state* is an end of a text that something follows in the model, and two dense
tables say, for every state and character, the logarithm of the probability and the next state (the automaton of Aho and
Corasick 1975). So a batch of texts is scored by indexing, and a text's state follows from its last few characters.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import U8, AnyArray
from pipeline.errors import ContractError

F32: TypeAlias = NDArray[np.float32]
I32: TypeAlias = NDArray[np.int32]
I8: TypeAlias = NDArray[np.int8]

FORMAT = 1
EDGE = 0
"""The character that stands for the beginning and the end of a text."""
ORDER_MAX = 12
ALPHABET_MAX = 254
LOG_STEP = 1 / 16
"""Of a stored -log p, nats; 0 to 255 steps."""
BACKOFF_STEP = 1 / 8
"""Of a stored logarithm of a back-off weight, nats; -128 to 127 steps."""


@dataclass(frozen=True)
class Level:
    """All n-grams of one length, sorted by the shorter one that they go on from, then by character."""

    children: U8
    """How many n-grams of this level each n-gram of the level before has; of level 1 there is one entry."""
    character: U8
    """The last one of each."""
    log: U8
    """-log of its probability after those before it, in ``LOG_STEP``."""
    backoff: I8
    """Logarithm of its weight as a context, in ``BACKOFF_STEP``; empty for the last level."""


@dataclass(frozen=True)
class Tables:
    """A model for decoding: ``S`` states, ``C`` labels."""

    log: F32
    """float32 ``[S, C]``: natural logarithm of the label's probability in that state."""
    after: I32
    """int32 ``[S, C]``: the state after it."""
    begin: int
    """The state at the beginning of a text."""
    memory: int
    """How many labels back a state can depend on."""

    def states(self, labels: AnyArray, lengths: AnyArray) -> I32:
        """int32 ``[n]``: the states after texts, given the last labels of each, ``[n, W]``, aligned to the end.

        ``lengths[i]`` is the whole text's; where it is less than W the text began here.
        """
        width = labels.shape[1]
        used = min(width, self.memory)
        state = np.where(lengths <= used, self.begin, 0).astype(np.int32)
        for back in range(used, 0, -1):
            moved = self.after[state, labels[:, width - back]]
            state = np.where(lengths >= back, moved, state)
        return state


@dataclass(frozen=True)
class LanguageModel:
    """See the module. Characters have numbers, from 1 in the alphabet's order; 0 is ``EDGE``."""

    alphabet: tuple[str, ...]
    levels: tuple[Level, ...]

    @property
    def order(self) -> int:
        """The longest n-gram."""
        return len(self.levels)

    # ---- the file

    def to_bytes(self) -> bytes:
        """The same model gives the same bytes (with the same zlib)."""
        sizes = [len(level.character) for level in self.levels]
        header = json.dumps({"format": FORMAT, "alphabet": self.alphabet, "sizes": sizes}, ensure_ascii=False)
        out = io.BytesIO()
        np.savez_compressed(
            out,
            header=np.frombuffer(header.encode(), np.uint8),
            children=np.concatenate([level.children for level in self.levels]),
            character=np.concatenate([level.character for level in self.levels]),
            log=np.concatenate([level.log for level in self.levels]),
            backoff=np.concatenate([level.backoff for level in self.levels]),
        )
        return out.getvalue()

    def save(self, path: Path) -> None:
        path.write_bytes(self.to_bytes())

    @staticmethod
    def from_bytes(content: bytes) -> LanguageModel:
        """Raises ContractError for what is no such file."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                header = json.loads(file["header"].tobytes())
                if header["format"] != FORMAT:
                    raise ContractError(f"its format is {header['format']}, this Eddy reads {FORMAT}; build it again")
                sizes = [int(size) for size in header["sizes"]]
                ends = np.cumsum(sizes)
                contexts = np.cumsum([1, *sizes])
                parts = zip(
                    np.split(file["children"], contexts[:-1]),
                    np.split(file["character"], ends[:-1]),
                    np.split(file["log"], ends[:-1]),
                    np.split(file["backoff"], ends[:-1]),
                )
                model = LanguageModel(tuple(header["alphabet"]), tuple(Level(*part) for part in parts))
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ContractError(f"no language model ({type(error).__name__}: {error}); build it again") from None
        model.check()
        return model

    def check(self) -> None:
        """Raises ContractError for tables that do not fit each other."""

        def need(condition: bool, what: str) -> None:
            if not condition:
                raise ContractError(f"no whole language model ({what}); build it again")

        need(0 < len(self.alphabet) <= ALPHABET_MAX and len(set(self.alphabet)) == len(self.alphabet), "its alphabet")
        need(1 <= self.order <= ORDER_MAX, f"n-grams of up to {self.order} characters")
        before = 1
        for n, level in enumerate(self.levels, 1):
            size = len(level.character)
            need(
                all(a.ndim == 1 for a in (level.children, level.character, level.log, level.backoff))
                and [str(a.dtype) for a in (level.children, level.character, level.log, level.backoff)]
                == ["uint8", "uint8", "uint8", "int8"]
                and len(level.children) == before
                and int(level.children.sum(dtype=np.int64)) == size == len(level.log)
                and len(level.backoff) == (size if n < self.order else 0)
                and bool((level.character <= len(self.alphabet)).all()),
                f"the n-grams of {n} characters",
            )
            before = size
        need(len(self.levels[0].character) == len(self.alphabet) + 1, "characters that have no probability")

    # ---- its use

    def tables(self, labels: Sequence[str]) -> Tables:
        """For labels that are single characters of the alphabet. The empty one is none: its ``log`` is 0, and the
        state after it is the same. Raises ContractError naming the labels that the model does not know."""
        numbers = {character: i for i, character in enumerate(self.alphabet, 1)}
        unknown = [label for label in labels if label and label not in numbers]
        if unknown:
            raise ContractError(
                f"the language model does not know the labels {', '.join(map(repr, unknown))}: build it from text that"
                " has them"
            )
        log, after, begin = self.automaton()
        columns = [numbers.get(label, EDGE) for label in labels]
        log, after = np.ascontiguousarray(log[:, columns]), np.ascontiguousarray(after[:, columns])
        for j, label in enumerate(labels):
            if not label:
                log[:, j], after[:, j] = 0, np.arange(len(after))
        return Tables(log, after, begin, self.order - 1)

    def automaton(self) -> tuple[F32, I32, int]:
        """``log [S, V]``, ``after [S, V]`` over the ``V`` characters by number, and the state after ``EDGE``. State 0
        is that of no text at all.

        Level by level: a state has what its shorter end has, less its back-off, but for the characters that it has seen
        itself. Of a text that nothing follows in the model only the shorter ends matter, so it is no state.
        """
        size = len(self.alphabet) + 1
        has_children = [level.children > 0 for level in self.levels[1:]]
        states = 1 + sum(int(h.sum()) for h in has_children)
        log = np.empty((states, size), np.float32)
        after = np.zeros((states, size), np.int32)
        first = self.levels[0]
        log[0, first.character] = first.log * np.float32(-LOG_STEP)
        # Of the n-grams of the level before: their numbers as states, and the states of their shorter ends.
        numbers, shorter = np.array([0]), np.array([0])
        used = 1
        for n, level in enumerate(self.levels, 1):
            parents = np.repeat(np.flatnonzero(level.children), level.children[level.children > 0])
            if n > 1:
                begins = np.flatnonzero(level.children)
                up = shorter[begins]
                own = numbers[begins]
                backoff = self.levels[n - 2].backoff[begins] * np.float32(BACKOFF_STEP)
                log[own] = log[up] + backoff[:, None]
                after[own] = after[up]
                log[numbers[parents], level.character] = level.log * np.float32(-LOG_STEP)
            if n == self.order:
                break
            is_state = has_children[n - 1]
            fresh = np.zeros(len(level.character), np.int64)
            fresh[is_state] = np.arange(used, used + int(is_state.sum()))
            used += int(is_state.sum())
            # Its shorter end: what its parent's shorter end leads to by the same character.
            ends = np.zeros(len(level.character), np.int64) if n == 1 else after[shorter[parents], level.character]
            after[numbers[parents][is_state], level.character[is_state]] = fresh[is_state]
            numbers, shorter = fresh, ends
        return log, after, int(after[0, EDGE])
