"""The tables of a language model against the plain reading of its n-grams, and what its file refuses."""

from __future__ import annotations

import math
import random
from itertools import product

import numpy as np
import pytest

from export.language_model import bits_per_character, build
from pipeline.errors import ConfigError, ContractError
from pipeline.heads.language_model import BACKOFF_STEP, EDGE, LOG_STEP, LanguageModel

LINES = ["banana", "bandana", "an ant and a ban", "a nab", "aaaa", "b"]


def plain(model: LanguageModel) -> tuple[dict[tuple[int, ...], float], dict[tuple[int, ...], float]]:
    """The n-grams as an ARPA file has them: logarithms of probabilities and of back-off weights, by characters."""
    log: dict[tuple[int, ...], float] = {}
    backoff: dict[tuple[int, ...], float] = {}
    before: list[tuple[int, ...]] = [()]
    for n, level in enumerate(model.levels, 1):
        names = [p for p, k in zip(before, level.children.tolist(), strict=True) for _ in range(k)]
        before = [(*name, c) for name, c in zip(names, level.character.tolist(), strict=True)]
        log |= dict(zip(before, (level.log * -LOG_STEP).tolist()))
        if n < model.order:
            backoff |= dict(zip(before, (level.backoff * BACKOFF_STEP).tolist()))
    return log, backoff


def katz(model: LanguageModel, text: tuple[int, ...], character: int) -> float:
    """log p, the definition."""
    log, backoff = plain(model)
    context = text[-(model.order - 1) :] if model.order > 1 else ()
    total = 0.0
    while (*context, character) not in log:
        total += backoff.get(context, 0.0)
        context = context[1:]
    return total + log[(*context, character)]


@pytest.mark.parametrize(("order", "max_bytes"), [(1, None), (2, None), (4, None), (6, 1500)])
def test_every_text_has_the_probability_that_back_off_gives_it(order: int, max_bytes: int | None) -> None:
    model = build(LINES, order, max_bytes=max_bytes)
    log, after, begin = model.automaton()
    draw = random.Random(5)
    for _ in range(60):
        text: tuple[int, ...] = (EDGE,)
        state = begin
        for _ in range(draw.randrange(9)):
            character = draw.randrange(1, len(model.alphabet) + 1)
            assert log[state, character] == pytest.approx(katz(model, text, character), abs=1e-4)
            state, text = int(after[state, character]), (*text, character)
        assert log[state, EDGE] == pytest.approx(katz(model, text, EDGE), abs=1e-4)


def test_after_every_context_the_probabilities_sum_to_one() -> None:
    model = build(LINES, 4)
    sums = np.exp(model.automaton()[0]).sum(axis=1)
    # A stored logarithm is off by half a step at most.
    assert np.abs(np.log(sums)).max() <= (LOG_STEP + BACKOFF_STEP) / 2


def test_the_smoothing_is_that_of_witten_and_bell() -> None:
    """ "ab", "ac": four characters and two ends. After "a": b and c once each, two kinds."""
    model = build(["ab", "ac"], 2)
    log, _ = plain(model)
    a, b, _ = (1, 2, 3)
    p_b = (1 + 4 / 4) / (6 + 4)
    assert log[(b,)] == pytest.approx(math.log(p_b), abs=LOG_STEP / 2)
    assert log[(a, b)] == pytest.approx(math.log((1 + 2 * p_b) / (2 + 2)), abs=LOG_STEP / 2)
    assert log[(EDGE, a)] == pytest.approx(math.log((2 + 1 * (2 + 1) / 10) / (2 + 1)), abs=LOG_STEP / 2)


def test_a_state_follows_from_the_last_labels_of_a_text() -> None:
    model = build(LINES, 4)
    labels = ["n", "", "a", "b", " ", "d", "t"]
    tables = model.tables(labels)
    for length in range(7):
        texts = list(product([0, 2, 3], repeat=length))
        known: list[int] = []
        for text in texts:
            state = tables.begin
            for label in text:
                state = int(tables.after[state, label])
            known.append(state)
        for width in (5, 7) if length > 2 else (2, 5, 7):
            last = np.ones((len(texts), width), np.int64)
            if length:
                last[:, -min(length, width) :] = np.array(texts)[:, -width:]
            found = tables.states(last, np.full(len(texts), length))
            assert found.tolist() == known


def test_tables_are_in_the_order_of_the_labels() -> None:
    model = build(LINES, 3)
    log, _, begin = model.automaton()
    tables = model.tables(["b", "", "a"])
    assert tables.log[tables.begin].tolist() == [log[begin, 1 + model.alphabet.index("b")], 0, log[begin, 2]]
    assert model.alphabet.index("a") == 1
    assert tables.after[:, 1].tolist() == list(range(len(tables.after)))
    with pytest.raises(ContractError, match="does not know the labels 'x', 'yz'"):
        model.tables(["a", "x", "", "yz"])


def test_a_longer_memory_and_more_room_tell_more_of_unseen_lines() -> None:
    draw = random.Random(1)
    words = ["".join(draw.choices("abdeint", k=draw.randrange(2, 8))) for _ in range(60)]
    lines = [" ".join(draw.choices(words, k=5)) for _ in range(400)]
    seen, unseen = lines[:300], lines[300:]
    one, three, six = (build(seen, order) for order in (1, 3, 6))
    bits = [bits_per_character(m, unseen) for m in (one, three, six)]
    assert bits == sorted(bits, reverse=True)
    assert bits[2] < bits[0] / 2
    size = len(six.to_bytes())
    small, smaller = build(seen, 6, max_bytes=size // 2), build(seen, 6, max_bytes=size // 4)
    assert len(smaller.to_bytes()) <= size // 4 < len(small.to_bytes()) <= size // 2
    assert bits_per_character(small, unseen) < bits_per_character(smaller, unseen) < bits[0]


def test_the_file_gives_the_model_back_and_the_same_lines_the_same_file() -> None:
    model = build(LINES, 5)
    content = model.to_bytes()
    assert build(list(LINES), 5).to_bytes() == content
    assert LanguageModel.from_bytes(content).to_bytes() == content


def test_other_files_are_refused() -> None:
    model = build(LINES, 3)
    content = model.to_bytes()
    for wrong in (b"", b"PK\x03\x04", content[:-40], b"\x80\x04N.", np.arange(3).tobytes()):
        with pytest.raises(ContractError, match="no language model"):
            LanguageModel.from_bytes(wrong)
    odd = LanguageModel(model.alphabet[:-1], model.levels)
    with pytest.raises(ContractError, match="no whole language model"):
        LanguageModel.from_bytes(odd.to_bytes())
    less = LanguageModel(model.alphabet, model.levels[1:])
    with pytest.raises(ContractError, match="no whole language model"):
        LanguageModel.from_bytes(less.to_bytes())


def test_what_makes_no_model_is_said() -> None:
    with pytest.raises(ConfigError, match="order 0: expected 1 to 12"):
        build(LINES, 0)
    with pytest.raises(ConfigError, match="not one line that is not empty"):
        build(["", ""], 3)
    with pytest.raises(ConfigError, match="line 2 has 'c', which is not among the 2 of the alphabet: 'abc'"):
        build(["ab", "abc"], 3, alphabet="ab")
    with pytest.raises(ConfigError, match="fits into 10 bytes"):
        build(LINES, 3, max_bytes=10)
