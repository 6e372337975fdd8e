"""What a generation shows when its tokens are a tokenizer's: parts of characters, words, and several of these."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipeline.columns import Headers
from pipeline.contract import Contract, HeadSpec, Output
from pipeline.errors import ContractError
from pipeline.heads.generate import GenerateHead
from tests.tokenizations import tokenizer_file, tokens_contract
from tests.unit.test_generate import Telling

KINDS = ("byte-level", "byte-level with a prefix", "byte-level by regex", "word-piece", "unigram", "byte-fallback")


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_file(kind)))


@cache
def head_of(kind: str, end_token: str | int | None) -> tuple[Contract, GenerateHead]:
    contract, beside = tokens_contract(kind, head={"temperature": 0, "end_token": end_token})
    return contract, GenerateHead(contract, beside)


def told(
    kind: str, tokens: list[int], *headers: tuple[str, bytes], end_token: str | int | None = None
) -> list[tuple[str, dict[str, str]]]:
    contract, head = head_of(kind, end_token)
    asked: Headers = (*headers, ("eddy-max-steps", b"%d" % len(tokens)))
    pieces = Telling(contract, asked, head).say(tokens)
    return [(text.decode(), {name: value.decode() for name, value in h.items()}) for text, h in pieces]


def ids(kind: str, text: str) -> list[int]:
    found: list[int] = tokenizer_of(kind).encode(text, add_special_tokens=False).ids
    return found


def said(kind: str, tokens: list[int]) -> str:
    """What the library's own decoder makes of them, after a text that has begun."""
    tokenizer = tokenizer_of(kind)
    anchor = ids(kind, "cat")
    begun = tokenizer.decode(anchor)
    return tokenizer.decode(anchor + tokens).removeprefix(begun)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_pieces_join_to_what_the_library_decodes(kind: str, data: st.DataObject) -> None:
    size = tokenizer_of(kind).get_vocab_size()
    some = st.sampled_from(ids(kind, "the cat's 日本 😀 naïve, 5.")) | st.integers(0, size - 1)
    tokens = data.draw(st.lists(some, min_size=1, max_size=12))
    pieces = told(kind, tokens)
    # Of bytes that are no character, the library makes a U+FFFD of every byte around them: it sees them all at once.
    if kind != "byte-fallback" or "\ufffd" not in said(kind, tokens):
        assert "".join(text for text, _ in pieces) == said(kind, tokens)
    assert all(text for text, _ in pieces[:-1])
    steps = [int(h["eddy-step"]) for _, h in pieces]
    assert steps == sorted(steps)


@pytest.mark.parametrize(("kind", "text"), [("byte-level", " cat"), ("unigram", " cat"), ("word-piece", " cat")])
def test_a_word_goes_on_with_its_space(kind: str, text: str) -> None:
    assert "".join(t for t, _ in told(kind, ids(kind, "cat" if kind == "word-piece" else " cat"))) == text


def test_a_character_is_shown_when_it_is_whole() -> None:
    tokens = ids("byte-level", "a😃b")
    parts = tokens[1:-1]
    assert len(parts) > 1, "the tokenizer knows it by its parts only"
    pieces = told("byte-level", tokens)
    assert [(t, h["eddy-step"]) for t, h in pieces] == [("a", "0"), ("😃", "1"), ("b", str(1 + len(parts)))]


def test_a_stop_text_that_begins_and_ends_inside_tokens() -> None:
    tokens = ids("byte-level", " the cat sat on the mat")
    texts = [said("byte-level", [t]) for t in tokens]
    assert " cat" in texts
    stop = ("eddy-stop", b"t s")
    pieces = told("byte-level", tokens, stop)
    assert "".join(t for t, _ in pieces) == " the ca"
    assert pieces[-1][1]["eddy-finish"] == "stop"
    almost = ids("byte-level", " the cat, the cat")
    assert "".join(t for t, _ in told("byte-level", almost, stop)) == " the cat, the cat"


def test_the_step_of_a_piece_is_that_of_its_first_byte() -> None:
    tokens = ids("byte-level", " cat cat")
    at = [said("byte-level", [t]) for t in tokens]
    assert at == [" cat", " cat"]
    pieces = told("byte-level", [*tokens, *tokens], ("eddy-stop", b"t cat,"))
    # "t cat" is held until the second " cat" has shown that no comma follows; of that, "t" and " cat" again.
    assert [(t, h["eddy-step"]) for t, h in pieces] == [(" ca", "0"), ("t ca", "0"), ("t cat cat", "1")]


def test_special_tokens_say_nothing_and_may_end_a_text() -> None:
    the, end = ids("byte-level", " the")[0], ids("byte-level", "<|endoftext|>")[0]
    assert told("byte-level", [the, end, the]) == [
        (" the", {"eddy-step": "0"}),
        (" the", {"eddy-step": "2", "eddy-finish": "length"}),
    ]
    for name in ("<|endoftext|>", end):
        assert told("byte-level", [the, end, the], end_token=name)[1:] == [
            ("", {"eddy-step": "1", "eddy-finish": "end"})
        ]


def refused(kind: str, *, logits: int | None = None, flush: str = "record", cut: str | None = None, **head: Any) -> str:
    contract, beside = tokens_contract(kind, flush=flush, cut=cut, logits=logits)
    contract = replace(contract, head=HeadSpec("generate", settings=head))
    with pytest.raises(ContractError) as caught:
        GenerateHead(contract, beside)
    return str(caught.value).removeprefix("contract of talk/1: head generate: ")


def test_what_cannot_write_is_refused() -> None:
    assert refused("byte-level", flush="boundary", cut="space") == (
        "needs the codec's flush 'record': with 'boundary' a prompt's last word would wait for the next prompt"
    )
    assert refused("byte-level", logits=339) == (
        "output 'logits' has 339 logits, the tokenizer 340 tokens: it is not this model's"
    )
    assert refused("byte-level", end_token="</s>").startswith(
        "setting 'end_token' is '</s>': expected a token below 340,"
    )


def test_logits_beyond_the_tokens_are_padding_that_says_nothing_of_its_own() -> None:
    contract, beside = tokens_contract("byte-level", logits=352)
    padded = replace(contract, outputs=(Output("logits", "float32", (352,)),))
    assert GenerateHead(padded, beside).memory_bytes == 362
