"""Long texts are tokenized on threads before their poll, and nobody can tell: not by steps, rows or dead letters."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest

from pipeline.codecs.tokenizer import Tokenization, Words, _chopped
from pipeline.codecs.tokens import AHEAD_FROM, TokenCodec
from pipeline.transport.memory import MemoryBroker
from tests.models import rolling_hash_reference
from tests.tokenizations import CORPUS, tokens_contract
from tests.unit.test_token_codec import CUT, codec_of, whole
from tests.unit.test_worker import made, new_broker, outputs, partition_of, running, until
from tests.unit.test_worker_tokens import KIND, produce, served

ALONE = 7
"""Streams that the records of a random test are of."""


def counting(names: set[str], run: Callable[[], Any]) -> tuple[Any, Counter[str]]:
    """What it returns, and how often functions of these names in the pipeline were called meanwhile."""
    found: Counter[str] = Counter()

    def seen(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name in names and "pipeline" in frame.f_code.co_filename:
            found[frame.f_code.co_name] += 1

    sys.setprofile(seen)
    try:
        returned = run()
    finally:
        sys.setprofile(None)
    return returned, found


def records_of(rng: np.random.Generator) -> list[bytes]:
    """A text cut at random, inside characters too; now and then with bytes that are no UTF-8, or a surrogate's."""
    data = (CORPUS * 2).encode()
    places = np.sort(rng.integers(0, len(data), int(rng.integers(2, 40)))).tolist()
    records = [data[a:b] for a, b in zip([0, *places], [*places, len(data)])]
    for i in rng.integers(0, len(records), 3).tolist():
        at = int(rng.integers(0, len(records[i]) + 1))
        records[i] = records[i][:at] + (b"", b"\xff", b"\xed\xa0")[rng.integers(3)] + records[i][at:]
    return records


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((kind, {"flush": "boundary", "cut": cut}) for kind, cut in CUT.items()),
        ("byte-level", {"flush": "boundary", "cut": "whitespace", "hold_bytes": 4}),
        ("byte-level", {"flush": "boundary", "cut": "space", "hold_bytes": 11}),
        ("word-level without unknown", {"flush": "boundary", "cut": "space"}),
        *((kind, {"flush": "record", "cut": cut}) for kind, cut in CUT.items()),
        ("byte-fallback", {"flush": "record", "cut": None}),
        ("word-level without unknown", {"flush": "record", "cut": "whitespace"}),
        ("word-level without unknown", {"flush": "record", "cut": None}),
    ],
)
@pytest.mark.parametrize("stretch", [3, 16_384])
def test_what_is_done_ahead_changes_nothing(
    kind: str, settings: dict[str, Any], stretch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.codecs.tokenizer.STRETCH", stretch)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        here, ahead = codec_of(kind, **settings), codec_of(kind, **settings)
        rows = [np.zeros((ALONE, codec.memory_bytes), np.uint8) for codec in (here, ahead)]
        records = records_of(rng)
        while records:
            poll, records = records[:5], records[5:]
            slots = rng.integers(0, ALONE, len(poll)) // 3
            before = [ahead.attempt(value) if rng.random() < 0.7 else None for value in poll]
            one = here.decode(poll, slots, rows[0])
            other = ahead.decode_ahead(poll, slots, rows[1], before)
            assert one.values[0].tolist() == other.values[0].tolist(), seed
            assert one.counts.tolist() == other.counts.tolist()
            assert (rows[0] == rows[1]).all()
            assert one.failed.keys() == other.failed.keys()
            assert {e.reason for e in one.failed.values()} == {e.reason for e in other.failed.values()}


def test_most_of_a_long_record_is_done_ahead() -> None:
    for flush in ("boundary", "record"):
        codec = codec_of("byte-level", flush=flush, cut="whitespace")
        value = (CORPUS * 40).encode()
        done = codec.attempt(value)
        assert isinstance(done, np.ndarray)
        assert done[0] + done[1] < 20
        assert len(done) - 2 > len(value) / 10


def test_a_word_of_any_length_is_cut_in_one_go() -> None:
    """A part of a word is copied once, not with all that stands behind it."""
    word = "aé" * 50_000
    parts = Words("space", 4).of(word)
    assert "".join(parts) == word
    copied = 0

    class Counting(bytes):
        def __getitem__(self, at: Any) -> Any:
            nonlocal copied
            got = super().__getitem__(at)
            copied += len(got) if isinstance(got, bytes) else 0
            return Counting(got) if isinstance(got, bytes) else got

    class Word(str):
        __slots__ = ()

        def encode(self, *_: Any) -> Counting:  # type: ignore[override]
            return Counting(str.encode(self))

    assert list(_chopped(Word(word), 4)) == parts
    assert copied == len(word.encode())


def test_records_that_fail_because_those_before_them_failed_are_cut_a_bounded_number_of_times() -> None:
    """``t,the,on`` has no tokens, and none that is like it; it is a word only where the record before it has failed,
    and with it the `` ca`` that would have waited."""
    codec = TokenCodec(*tokens_contract("word-level without unknown", flush="boundary", cut="space"))
    memory = np.zeros((2, codec.memory_bytes), np.uint8)
    n = 256
    tails = [",".join("the" if i >> bit & 1 else "on" for bit in range(8)) for i in range(n)]
    values = [b"?! ca", *(f"t,{tail} ca".encode() for tail in tails)]
    for first, failing in ((b"the ca", 0), (b"?! ca", n + 1)):
        values[0] = first
        memory[:] = 0
        steps, called = counting({"_words"}, lambda: codec.decode(values, np.ones(n + 1, np.int64), memory))
        assert len(steps.failed) == failing
        assert called["_words"] <= 3 * n


async def test_long_records_are_tokenized_on_threads_and_short_ones_are_not(tmp_path, monkeypatch):
    broker: MemoryBroker = new_broker()
    threads: dict[bool, set[int]] = {True: set(), False: set()}
    real = Tokenization.encode

    def encode(self: Tokenization, words: list[str]) -> Any:
        threads[any("long" in word for word in words)].add(threading.get_ident())
        return real(self, words)

    monkeypatch.setattr(Tokenization, "encode", encode)
    rng = np.random.default_rng(3)
    texts: dict[bytes, str] = {b"stream-%d" % i: "" for i in range(8)}
    for n in range(60):
        key = b"stream-%d" % rng.integers(8)
        text = f" long{n}" * (AHEAD_FROM // 4) if n % 10 == 3 else f" short{n % 7}"
        texts[key] += text
        produce(broker, key, text.encode())
    for key in texts:
        produce(broker, key, None)
    worker, _ = made(broker, served(tmp_path / "1", flush="boundary"), max_steps=5000)
    expected = {key: rolling_hash_reference(np.array(whole(KIND, text))).tolist() for key, text in texts.items()}
    async with running(worker) as task:
        await until(broker, task, lambda: sum(map(len, outputs(broker).values())) == sum(map(len, expected.values())))
    assert outputs(broker) == expected
    here = threading.get_ident()
    assert threads[False] == {here}
    assert threads[True] - {here}
    assert len({partition_of(key) for key in texts}) > 1
