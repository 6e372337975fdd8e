"""The search in columns against the search as it is told in books, and both against the sum over all alignments."""

from __future__ import annotations

import numpy as np
import pytest

from export.language_model import build
from pipeline.heads.beam import log_softmax
from pipeline.heads.hypotheses import LENGTH, Beams, Search
from pipeline.heads.language_model import F32, Tables
from pipeline.heads.transcript import Labels
from tests.unit.prefix_search import Added, Text, every_alignment, prefix_search

LABELS = Labels(("a", "", "b", "c"), blank=1, space=-1)
MODEL = build(["abba", "cab", "ac", "bbbc a".replace(" ", "")], 4)


def tables(weight: float, bonus: float) -> Tables:
    found = MODEL.tables(LABELS.texts)
    return Tables(found.log * np.float32(weight) + np.float32(bonus), found.after, found.begin, found.memory)


def added_by(tables: Tables) -> Added:
    def added(text: Text, label: int) -> float:
        state = tables.begin
        for one in text:
            state = int(tables.after[state, one])
        return float(tables.log[state, label])

    return added


def searched(search: Search, y: F32, *, rows: bool) -> Beams:
    """``y``: ``[T, B, C]``. ``rows``: by way of the rows after every step."""
    raw = np.zeros((y.shape[1], search.memory_bytes), np.uint8)
    beams = search.load(raw)
    for step in y:
        search.step(beams, slice(0, y.shape[1]), step)
        if rows:
            beams = search.load(search.store(beams))
    return beams


def found_in(search: Search, beams: Beams, b: int) -> list[tuple[Text, float]]:
    out = []
    for k in np.flatnonzero(np.logaddexp(beams.blank[b], beams.label[b]) > -np.inf).tolist():
        settled = int(beams.settled[b])
        tail = beams.tails[b, k, : int(beams.fields[b, k, LENGTH]) - settled]
        out.append(
            (
                (*beams.text[b, :settled].tolist(), *tail.tolist()),
                float(np.logaddexp(beams.blank[b, k], beams.label[b, k])),
            )
        )
    return out


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("weight", "bonus"), [(0.0, 0.0), (0.8, 0.4)])
@pytest.mark.parametrize("rows", [False, True])
def test_it_finds_what_the_plain_search_finds(seed: int, weight: float, bonus: float, rows: bool) -> None:
    """Texts, their order and their logarithms, relative to the first; of streams beside each other."""
    chance = np.random.default_rng(seed)
    width = int(chance.integers(2, 9))
    search = Search(LABELS, tables(weight, bonus), width=width, tail=32, text=60)
    y = np.stack([log_softmax(chance.normal(0, 2, (14, 4)).astype(np.float32)) for _ in range(3)], axis=1)
    beams = searched(search, y, rows=rows)
    for b in range(3):
        plain = prefix_search(y[:, b].tolist(), LABELS.blank, width, added_by(tables(weight, bonus)))
        found = found_in(search, beams, b)
        assert [text for text, _ in found] == [text for text, _ in plain]
        assert [log for _, log in found] == pytest.approx([log - plain[0][1] for _, log in plain], abs=2e-4)
        assert search.best(beams, b) == "".join(LABELS.texts[c] for c in plain[0][0])


@pytest.mark.parametrize("seed", range(12))
def test_the_row_is_the_same_whether_it_was_asked_for_between_the_steps_or_not(seed: int) -> None:
    """With tails so short that texts are given up for want of room."""
    chance = np.random.default_rng(seed)
    search = Search(
        LABELS, tables(0.3, 1.0), width=int(chance.integers(2, 9)), tail=int(chance.integers(2, 7)), text=99
    )
    y = log_softmax(chance.normal(0, 1.5, (150, 4)).astype(np.float32)).reshape(50, 3, 4)
    rows = [search.store(searched(search, y, rows=rows)).tobytes() for rows in (False, True)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("weight", "bonus"), [(0.0, 0.0), (1.3, -0.2)])
def test_a_wide_beam_sums_all_alignments(seed: int, weight: float, bonus: float) -> None:
    search = Search(LABELS, tables(weight, bonus), width=200, tail=8, text=40)
    y = log_softmax(np.random.default_rng(seed).normal(0, 2, (4, 4)).astype(np.float32))
    every = every_alignment(y.tolist(), LABELS.blank, added_by(tables(weight, bonus)))
    beams = searched(search, y[:, None], rows=False)
    found = dict(found_in(search, beams, 0))
    best = max(every.values())
    assert found == pytest.approx({text: log - best for text, log in every.items()}, abs=2e-4)


def test_quiet_steps_are_the_same_one_by_one_and_all_at_once() -> None:
    search = Search(LABELS, tables(0.5, 0.1), width=4, tail=8, text=40)
    y = log_softmax(np.random.default_rng(3).normal(0, 2, (6, 2, 4)).astype(np.float32).reshape(-1, 4)).reshape(6, 2, 4)
    once, often = searched(search, y, rows=False), searched(search, y, rows=False)
    search.quieten(once, np.arange(2))
    for _ in range(5):
        search.quieten(often, np.arange(2))
    assert search.store(once).tobytes() == search.store(often).tobytes()


@pytest.mark.parametrize("agreed", range(7))
def test_what_is_too_far_back_is_settled_by_the_likeliest_text(agreed: int) -> None:
    """Two texts that differ in one label, however much of them is the same before, both stay until there are as many
    labels behind it as a tail has room for."""
    search = Search(LABELS, tables(0.0, 0.0), width=2, tail=6, text=40)
    certain = np.full((agreed + 12, 4), 1e-9)
    certain[range(len(certain)), [0 if t % 2 == agreed % 2 else 3 for t in range(len(certain))]] = 1
    certain[agreed, [0, 2]] = 0.6, 0.4
    y = np.log(certain).astype(np.float32)
    alive = []
    beams = search.load(np.zeros((1, search.memory_bytes), np.uint8))
    for step in y:
        search.step(beams, slice(0, 1), step[None])
        texts = [text for text, _ in found_in(search, beams, 0)]
        alive.append(len({text[agreed] for text in texts if len(text) > agreed}))
    assert alive[agreed:] == [2] * 5 + [1] * 7
    assert texts[0] == tuple(0 if t % 2 == agreed % 2 else 3 for t in range(agreed + 12))


@pytest.mark.parametrize("width", [1, 3, 4, 6])
def test_of_equally_likely_texts_the_first_labels_stay(width: int) -> None:
    labels = Labels((*"abcdefgh", ""), blank=8, space=-1)
    free = Tables(np.zeros((1, 9), np.float32), np.zeros((1, 9), np.int32), 0, 0)
    search = Search(labels, free, width=width, tail=8, text=20)
    beams = search.load(np.zeros((2, search.memory_bytes), np.uint8))
    search.step(beams, slice(0, 2), log_softmax(np.array([[3.0] * 8 + [0.0]] * 2, np.float32)))
    assert [[text for text, _ in found_in(search, beams, b)] for b in (0, 1)] == [[(c,) for c in range(width)]] * 2


def test_a_new_stream_has_one_text_the_empty_one() -> None:
    search = Search(LABELS, tables(0.0, 0.0), width=4, tail=8, text=20)
    beams = search.load(np.zeros((1, search.memory_bytes), np.uint8))
    assert (beams.blank[0, 0], beams.label[0, 0]) == (0, -np.inf)
    assert found_in(search, beams, 0) == [((), 0.0)]


def test_a_space_that_ended_a_text_is_no_part_of_the_next() -> None:
    labels = Labels(("a", "", " "), blank=1, space=2)
    free = Tables(np.zeros((1, 3), np.float32), np.zeros((1, 3), np.int32), 0, 0)
    search = Search(labels, free, width=3, tail=8, text=20)
    y = log_softmax(np.array([[6, 1, 2], [0, 1, 5], [0, 1, 4], [4, 2, 3], [1, 1, 1]], np.float32))
    fresh, cleared = (search.load(np.zeros((1, search.memory_bytes), np.uint8)) for _ in range(2))
    for step in y[:2]:
        search.step(cleared, slice(0, 1), step[None])
    assert search.best(cleared, 0) == "a "
    search.clear(cleared, 0)
    for step in y[2:]:
        search.step(cleared, slice(0, 1), step[None])
        search.step(fresh, slice(0, 1), step[None])
        assert found_in(search, cleared, 0) == found_in(search, fresh, 0)


def test_no_text_begins_with_a_space_and_what_sounds_on_is_not_said_again() -> None:
    labels = Labels(("a", "", " "), blank=1, space=2)
    free = Tables(np.zeros((1, 3), np.float32), np.zeros((1, 3), np.int32), 0, 0)
    search = Search(labels, free, width=3, tail=8, text=20)
    y = np.log(np.array([[0.1, 0.2, 0.7], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]], np.float32))
    beams = search.load(np.zeros((1, search.memory_bytes), np.uint8))
    for step in y:
        search.step(beams, slice(0, 1), step[None])
    assert search.best(beams, 0) == "a a"
    search.clear(beams, 0)
    assert search.best(beams, 0) == ""
    raw = search.store(beams)
    for again in (beams, search.load(raw)):
        search.step(again, slice(0, 1), y[-1:])
        assert search.best(again, 0) == ""
        search.step(again, slice(0, 1), np.log(np.array([[0.1, 0.8, 0.1]], np.float32)))
        search.step(again, slice(0, 1), y[-1:])
        assert search.best(again, 0) == "a"
