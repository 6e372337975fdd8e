"""What the text codec makes of a tokenizer: the library's own tokens, whatever the cutting, and clear refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from pipeline.beside import Beside, entry
from pipeline.codecs import make_codec
from pipeline.codecs.tokenizer import KnownWords, Tokenization, Words
from pipeline.codecs.tokens import TokenCodec
from pipeline.contract import CodecSpec, StepInput
from pipeline.errors import ContractError
from tests.tokenizations import CORPUS, tokenizer_file, tokens_contract

CUT = {
    "byte-level": "whitespace",
    "byte-level with a prefix": "space",
    "byte-level by regex": "space",
    "word-piece": "whitespace",
    "unigram": "space",
}


def codec_of(kind: str, **settings: Any) -> TokenCodec:
    return TokenCodec(*tokens_contract(kind, **settings))


def whole(kind: str, text: str) -> list[int]:
    ids: list[int] = Tokenizer.from_file(str(tokenizer_file(kind))).encode(text, add_special_tokens=False).ids
    return ids


def streamed(codec: TokenCodec, records: list[bytes]) -> tuple[list[list[int]], list[int]]:
    """Each record's tokens, one record a poll, and those of the end."""
    memory = np.zeros((2, codec.memory_bytes), np.uint8)
    told = [codec.decode([record], np.array([1]), memory).values[0].tolist() for record in records]
    return told, codec.end(np.array([1]), memory).values[0].tolist()


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_has_the_tokens_of_its_whole_text(kind: str, size: int) -> None:
    data = CORPUS.encode()
    records = [data[i : i + size] for i in range(0, len(data), size)]
    told, last = streamed(codec_of(kind, flush="boundary", cut=CUT[kind]), records)
    assert [t for tokens in told for t in tokens] + last == whole(kind, CORPUS)


@pytest.mark.parametrize("kind", [*CUT, "byte-fallback", "word-level", "with a mask"])
def test_record_by_record_each_has_the_tokens_of_its_text(kind: str) -> None:
    texts = ["", "the cat", " sat", "on <mask> the\nmat's 12345 <|endoftext|>", "日本 😀"]
    told, last = streamed(codec_of(kind, flush="record", cut=CUT.get(kind)), [t.encode() for t in texts])
    assert told == [whole(kind, t) for t in texts]
    assert last == []


def test_the_last_word_waits_for_what_may_go_on_with_it() -> None:
    codec = codec_of("byte-level", flush="boundary", cut="whitespace")
    told, last = streamed(codec, [b"the c", b"at", b" s", b"at\n", b"\n"])
    assert told == [whole("byte-level", "the"), [], whole("byte-level", " cat"), whole("byte-level", " sat"), []]
    assert last == whole("byte-level", "\n\n")


def test_a_word_longer_than_the_row_is_cut_where_it_is_full() -> None:
    codec = codec_of("byte-level", flush="boundary", cut="whitespace", hold_bytes=10)
    assert codec.memory_bytes == 2 + 10 + 3
    told, last = streamed(codec, ["日本語の文字 ".encode()])
    assert told == [[*whole("byte-level", "日本語"), *whole("byte-level", "の文字")]]
    assert last == whole("byte-level", " ")
    assert Words("space", 10).of("abcdefghijk lm") == ["abcdefghij", "k", " lm"]


def test_half_a_character_waits_and_what_fails_leaves_the_word_before_it() -> None:
    codec = codec_of("byte-level", flush="boundary", cut="whitespace")
    memory = np.zeros((2, codec.memory_bytes), np.uint8)
    one = np.array([1])
    assert codec.decode(["ca€".encode()[:-1]], one, memory).counts.tolist() == [0]
    failed = codec.decode([b"(x y"], one, memory).failed
    assert str(failed[0]).endswith("dropped with it: bytes e2 82, held from an earlier record")
    assert codec.decode([b"t "], one, memory).values[0].tolist() == whole("byte-level", "cat")


def test_a_word_without_a_token_is_a_dead_letter_of_its_record_alone() -> None:
    codec = codec_of("word-level without unknown", flush="record", cut="space")
    memory = np.zeros((3, codec.memory_bytes), np.uint8)
    for _ in range(2):
        steps = codec.decode([b"the cat", b"the dog", b"the mat", b"on"], np.array([1, 2, 2, 1]), memory)
        assert steps.counts.tolist() == [2, 0, 2, 1]
        assert {i: (e.reason, str(e)) for i, e in steps.failed.items()} == {
            1: ("vocabulary", "the tokenizer has no token for ' dog', nor one for what it does not know")
        }


def test_what_is_known_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.codecs.tokenizer.KNOWN_MAX", 10)
    codec = codec_of("byte-level", flush="record", cut="whitespace")
    for i in range(200):
        text = f"the cat {i} sat {i * i}"
        told, _ = streamed(codec, [text.encode()])
        assert told == [whole("byte-level", text)]
    known: KnownWords = codec._known
    assert len(known._known) <= 15


def test_words_without_tokens_count_into_that_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.codecs.tokenizer.KNOWN_BYTES_MAX", 10_000)
    codec = codec_of("word-level without unknown", flush="record", cut=None)
    memory = np.zeros((1, codec.memory_bytes), np.uint8)
    for i in range(20):
        steps = codec.decode([b"%d" % i * 2_000], np.array([0]), memory)
        assert steps.failed[0].reason == "vocabulary"
    assert sum(map(len, codec._known._known)) <= 15_000


def test_truncation_and_padding_in_the_file_are_not_for_streams(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_file("byte-level")))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    ids = Tokenization(tokenizer.to_str().encode(), None, "record", 128).encode(["the cat sat", "on"])
    assert ids == [whole("byte-level", "the cat sat"), whole("byte-level", "on")]


def wrong(**settings: Any) -> str:
    contract, beside = tokens_contract("byte-level")
    with pytest.raises(ContractError) as caught:
        make_codec(
            replace(contract, codec=replace(contract.codec, settings=contract.codec.settings | settings)), beside
        )
    return str(caught.value).removeprefix("contract of talk/1: codec text: ")


def test_wrong_settings_are_named() -> None:
    assert wrong(flush="never") == "setting 'flush' is 'never': expected 'record' or 'boundary'"
    assert wrong(cut="word") == "setting 'cut' is 'word': expected 'whitespace', 'space' or null"
    assert wrong(hold_bytes=3) == "setting 'hold_bytes' is 3: expected a whole number from 4 to 4000"
    assert wrong(flush="boundary") == (
        "flush 'boundary' needs a cut: 'whitespace' or 'space', whichever is proven to hold"
    )
    assert wrong(tokenizer=None) == "setting 'tokenizer' is missing: expected the tokenizer.json beside the model"
    assert wrong(vocabulary=["a"]).startswith("unknown setting 'vocabulary' (there are: unit, tokenizer,")


def test_a_changed_or_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    contract, _ = tokens_contract("byte-level")
    right = tokenizer_file("byte-level").read_bytes()
    raw = json.loads(right)

    def refused(content: bytes, named: bytes) -> str:
        (tmp_path / "tokenizer.json").write_bytes(content)
        settings = contract.codec.settings | {"tokenizer": entry("tokenizer.json", named)}
        with pytest.raises(ContractError) as caught:
            make_codec(replace(contract, codec=CodecSpec("text", settings=settings)), Beside(tmp_path))
        return str(caught.value)

    assert "is not the file that the model was exported with" in refused(b"{}", right)
    assert "setting 'tokenizer': no tokenizer.json that tokenizers " in refused(b"{}", b"{}")
    raw["model"]["dropout"] = 0.1
    at_random = json.dumps(raw).encode()
    assert "drops merges at random (dropout)" in refused(at_random, at_random)


def test_the_model_must_take_tokens() -> None:
    contract, beside = tokens_contract("byte-level")
    with pytest.raises(ContractError, match=r"needs one step input of int64\[\] or int32\[\]"):
        TokenCodec(replace(contract, steps=(StepInput("x", "float32"),)), beside)
