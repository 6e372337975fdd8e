"""Builds a language model of characters from lines of text: n-grams, smoothed after Witten and Bell, pruned to a size.

``p(c | h) = (n(h, c) + t(h) p(c | h')) / (n(h) + t(h))``, where n counts, t(h) is how many different characters follow
h, and h' is h without its first character (Witten and Bell 1991, https://doi.org/10.1109/18.87000, in the interpolated
form of Chen and Goodman 1998). What interpolation gives is then written as n-grams with back-off, which is the same for
what was seen; the back-off weights are what makes the probabilities after each context sum to one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.columns import I64, AnyArray, Bools
from pipeline.errors import ConfigError
from pipeline.heads.language_model import ALPHABET_MAX, BACKOFF_STEP, EDGE, LOG_STEP, ORDER_MAX, LanguageModel, Level
from pipeline.heads.sampling import F64

PRUNING_ROUNDS = 40


@dataclass(frozen=True)
class _Counted:
    """All n-grams of one length, sorted by parent, then character."""

    parent: I64
    """Which n-gram of the level before it goes on from."""
    shorter: I64
    """Which n-gram of the level before it is without its first character."""
    character: I64
    count: I64
    p: F64
    """Of the character after those before it, interpolated."""


def build(
    lines: Iterable[str], order: int, *, alphabet: Sequence[str] | None = None, max_bytes: int | None = None
) -> LanguageModel:
    """A model of n-grams of up to ``order`` characters. The same lines give the same model.

    ``alphabet``: the characters it has probabilities for; None: those of the lines. ``max_bytes``: of its file; n-grams
    are left out, those first whose absence changes the likelihood of the lines least, until it fits.

    Raises ConfigError for lines or an order that make no model, and for a character that is not in the alphabet.
    """
    if not 1 <= order <= ORDER_MAX:
        raise ConfigError(f"a language model of order {order}: expected 1 to {ORDER_MAX}")
    texts = [line for line in lines if line]
    if not texts:
        raise ConfigError("a language model needs text: there is not one line that is not empty")
    characters = tuple(alphabet) if alphabet is not None else tuple(sorted(set().union(*texts)))
    if not 0 < len(characters) <= ALPHABET_MAX or any(len(c) != 1 for c in characters):
        raise ConfigError(f"an alphabet of {len(characters)}: expected 1 to {ALPHABET_MAX} single characters")
    levels = _count(_numbers(texts, characters), len(characters) + 1, order)
    whole = _write(levels, [np.ones(len(level.count), np.bool_) for level in levels], characters)
    if max_bytes is None or len(whole.to_bytes()) <= max_bytes:
        return whole
    return _pruned(levels, characters, max_bytes)


def bits_per_character(model: LanguageModel, lines: Iterable[str]) -> float:
    """Of lines that the model has not seen, their ends included. Raises ConfigError for a character it does not know,
    and where there are no lines."""
    log, after, begin = model.automaton()
    total, count = 0.0, 0
    for numbers in _numbers([line for line in lines if line], model.alphabet):
        state = begin
        for number in numbers[1:].tolist():
            total -= float(log[state, number])
            state = int(after[state, number])
        count += len(numbers) - 1
    if not count:
        raise ConfigError("no text to measure a language model on")
    return total / count / float(np.log(2))


def _numbers(lines: Sequence[str], alphabet: Sequence[str]) -> list[I64]:
    """Each line as numbers, between two edges."""
    table = {character: i for i, character in enumerate(alphabet, 1)}
    out = []
    for i, line in enumerate(lines):
        try:
            out.append(np.array([EDGE, *(table[c] for c in line), EDGE], np.int64))
        except KeyError as error:
            raise ConfigError(
                f"line {i + 1} has {error.args[0]!r}, which is not among the {len(alphabet)} of the alphabet: {line!r}"
            ) from None
    return out


def _count(lines: Sequence[I64], size: int, order: int) -> list[_Counted]:
    """The n-grams of each length. An edge begins contexts and is predicted at the end, never in between."""
    text = np.concatenate(lines)
    lengths = np.fromiter(map(len, lines), np.int64, len(lines))
    stops = np.repeat(np.cumsum(lengths), lengths)
    starts = np.zeros(len(text), np.bool_)
    starts[np.cumsum(lengths) - lengths] = True

    # Level 1 has every character, seen or not; a line's beginning is a context only.
    seen = np.bincount(text[~starts], minlength=size)
    kinds = np.count_nonzero(seen)
    p = (seen + kinds / size) / (seen.sum() + kinds)
    nobody = np.zeros(size, np.int64)
    levels = [_Counted(nobody, nobody, np.arange(size), seen, p)]
    # Where each n-gram of the level before begins, and which it is.
    node = text.copy()
    places = np.arange(len(text))
    for n in range(2, order + 1):
        on = places + n - 1 < stops[places]
        places, parents = places[on], node[places[on]]
        keys = parents * size + text[places + n - 1]
        found, at, inverse, count = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        if not len(found):
            break
        parent, character = np.divmod(found, size)
        shorter = node[places[at] + 1]
        before = levels[-1]
        total = np.bincount(parent, weights=count, minlength=len(before.count))
        kinds_after = np.bincount(parent, minlength=len(before.count))
        p = (count + kinds_after[parent] * before.p[shorter]) / (total + kinds_after)[parent]
        levels.append(_Counted(parent, shorter, character, count, p))
        node = np.full(len(text), -1, np.int64)
        node[places] = inverse
    return levels


def _pruned(levels: list[_Counted], alphabet: tuple[str, ...], max_bytes: int) -> LanguageModel:
    """The largest model that fits, by what each n-gram adds to the likelihood of the lines beyond the shorter one's."""
    gains = [level.count * (np.log(level.p) - np.log(_shorter_p(levels, n))) for n, level in enumerate(levels)]
    best = _write(levels, _kept(levels, gains, np.inf), alphabet)
    if len(best.to_bytes()) > max_bytes:
        raise ConfigError(f"no language model of {len(alphabet)} characters fits into {max_bytes} bytes")
    low, high = 0.0, float(max(gain.max(initial=0.0) for gain in gains[1:]))
    for _ in range(PRUNING_ROUNDS):
        least = (low * high) ** 0.5 if low > 0 else high / 64
        model = _write(levels, _kept(levels, gains, least), alphabet)
        if len(model.to_bytes()) <= max_bytes:
            best, high = model, least
        else:
            low = least
        if low > 0 and high / low < 1.01:
            break
    return best


def _shorter_p(levels: list[_Counted], n: int) -> F64:
    """What the model would give each n-gram of level ``n`` (from 0) without it, about."""
    level = levels[n]
    return level.p if n == 0 else levels[n - 1].p[level.shorter]


def _kept(levels: list[_Counted], gains: list[AnyArray], least: float) -> list[Bools]:
    """Which n-grams stay: those that gain so much, and whatever these go on from or are a longer form of."""
    kept = [gain >= least for gain in gains]
    kept[0][:] = True
    for n in range(len(levels) - 1, 0, -1):
        stay = np.flatnonzero(kept[n])
        kept[n - 1][levels[n].parent[stay]] = True
        kept[n - 1][levels[n].shorter[stay]] = True
    return kept


def _write(levels: list[_Counted], kept: list[Bools], alphabet: tuple[str, ...]) -> LanguageModel:
    """The n-grams that stay, with the back-off weights that they need."""
    stay = [np.flatnonzero(k) for k in kept]
    out = []
    for n, (level, mine) in enumerate(zip(levels, stay)):
        if not len(mine):
            break
        children = np.array([len(mine)])
        if n > 0:
            new = np.full(len(levels[n - 1].count), -1, np.int64)
            new[stay[n - 1]] = np.arange(len(stay[n - 1]))
            children = np.bincount(new[level.parent[mine]], minlength=len(stay[n - 1]))
        backoff = np.empty(0)
        if n + 1 < len(levels) and len(stay[n + 1]):
            longer, theirs = levels[n + 1], stay[n + 1]
            seen = np.bincount(longer.parent[theirs], weights=longer.p[theirs], minlength=len(level.count))[mine]
            instead = np.bincount(
                longer.parent[theirs], weights=level.p[longer.shorter[theirs]], minlength=len(level.count)
            )[mine]
            backoff = np.log(np.maximum(1 - seen, 1e-9)) - np.log(np.maximum(1 - instead, 1e-9))
        out.append(
            Level(
                children.astype(np.uint8),
                level.character[mine].astype(np.uint8),
                np.clip(np.rint(-np.log(level.p[mine]) / LOG_STEP), 0, 255).astype(np.uint8),
                np.clip(np.rint(backoff / BACKOFF_STEP), -128, 127).astype(np.int8),
            )
        )
    # The longest n-grams are no contexts.
    return LanguageModel(alphabet, (*out[:-1], replace(out[-1], backoff=np.empty(0, np.int8))))
