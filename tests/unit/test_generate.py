"""What a generation shows, piece by piece, when it ends, and what may be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.columns import U8, Headers
from pipeline.contract import CodecSpec, Contract, HeadSpec, Output
from pipeline.errors import Broken, ContractError, RecordError
from pipeline.heads import make_head
from pipeline.heads.base import Finished
from pipeline.heads.generate import GenerateHead
from pipeline.heads.visible import flush, show
from tests.contracts import text_contract

LETTERS = "abcdeé😀."
END = LETTERS.index(".")
BYTES = 256


def logits_for(head: GenerateHead, tokens: Sequence[int], size: int) -> np.ndarray[Any, Any]:
    return np.eye(size, dtype=np.float32)[list(tokens)]


class Telling:
    """One stream whose model says what it is told to; greedy, so that it is drawn."""

    def __init__(self, contract: Contract, headers: Headers = (), head: GenerateHead | None = None) -> None:
        self.head = head or GenerateHead(contract)
        self.size = contract.outputs[0].shape[0]
        self.memory = np.zeros((3, self.head.memory_bytes), np.uint8)
        self.headers = headers
        self.slots = np.array([1])

    def say(self, tokens: Sequence[int]) -> list[tuple[bytes, dict[str, bytes]]]:
        """Every piece with its headers; tokens beyond the end of the generation are not asked for."""
        pieces = []
        for step, token in enumerate(tokens):
            outputs = (logits_for(self.head, [token], self.size),)
            if step == 0:
                answered = self.head.answer(self.prompt(outputs), self.memory)
            else:
                assert self.head.feed(self.slots, self.memory)[0].tolist() == [tokens[step - 1]]
                answered = self.head.fed(self.slots, [b"k"], outputs, self.memory)
            for value, headers in zip(answered.values, answered.extra or (), strict=True):
                assert isinstance(value, bytes)
                value.decode()
                pieces.append((value, dict(headers)))
            if not self.head.active(self.slots, self.memory)[0]:
                break
        return pieces

    def prompt(self, outputs: tuple[Any, ...]) -> Finished:
        return Finished(
            self.slots,
            np.array([4]),
            [b"k"],
            np.array([17]),
            np.array([1_700_000_000_000]),
            [self.headers],
            outputs,
            np.zeros(1, np.bool_),
        )


def letters(text: str) -> list[int]:
    return [LETTERS.index(c) for c in text]


def contract(**settings: Any) -> Contract:
    return text_contract(vocabulary=LETTERS, head={"temperature": 0, "max_steps": 8, **settings})


def pieces(*rows: tuple[str, int] | tuple[str, int, str]) -> list[tuple[bytes, dict[str, bytes]]]:
    return [
        (
            text.encode(),
            {"eddy-step": b"%d" % step, **({"eddy-finish": finish[0].encode()} if finish else {})},
        )
        for text, step, *finish in rows
    ]


# ---- what is shown, and when


@pytest.mark.parametrize(
    ("settings", "says", "shown"),
    [
        ({"max_steps": 3}, "abcd", [("a", 0), ("b", 1), ("c", 2, "length")]),
        ({"max_steps": 1}, "ab", [("a", 0, "length")]),
        ({"end_token": END}, "é😀.", [("é", 0), ("😀", 1), ("", 2, "end")]),
        ({"end_token": END}, ".", [("", 0, "end")]),
        ({"stop": ["cd"]}, "abcd", [("a", 0), ("b", 1), ("", 2, "stop")]),
        ({"stop": ["a"]}, "a", [("", 0, "stop")]),
        # What may become a stop text is held, and shown when it does not.
        ({"stop": ["cde"]}, "acdab.", [("a", 0), ("cda", 1), ("b", 4), (".", 5)]),
        # Held text begins anew inside itself: "cc" + "c" shows one and holds two.
        ({"stop": ["ccd"]}, "cccd", [("c", 0), ("", 1, "stop")]),
        ({"stop": ["ccd"], "max_steps": 4}, "cccc", [("c", 0), ("ccc", 1, "length")]),
        # Held text comes out when the generation ends for another reason.
        ({"stop": ["ab"], "end_token": END}, "ca.", [("c", 0), ("a", 1, "end")]),
        ({"stop": ["é😀"], "max_steps": 2}, "aé", [("a", 0), ("é", 1, "length")]),
        # A stop text wins over the length reached at the same step.
        ({"stop": ["ab"], "max_steps": 2}, "ab", [("", 0, "stop")]),
        # The end token ends; as a part of a stop text it never comes to be.
        ({"stop": ["a."], "end_token": END}, "a.", [("a", 0, "end")]),
        ({"stop": ["bc", "abcd"]}, "abc", [("a", 0, "stop")]),
        # Of two that are complete at once the one that begins earlier counts.
        ({"stop": ["bc", "abc"]}, "abc", [("", 0, "stop")]),
        # Steps are counted in tokens, whatever bytes their texts have.
        ({"stop": ["é😀a"]}, "aé😀é😀b", [("a", 0), ("é😀", 1), ("é😀b", 3)]),
    ],
)
def test_pieces(settings: dict[str, Any], says: str, shown: list[tuple[str, int]]) -> None:
    telling = Telling(contract(**settings))
    assert telling.say(letters(says)) == pieces(*shown)
    over = len(shown[-1]) == 3
    assert telling.head.active(telling.slots, telling.memory)[0] != over
    assert telling.memory[1].any() != over, "the row of a generation that is over is all zero"


@pytest.mark.parametrize(
    ("says", "shown"),
    [
        (b"a\xc3\xa9", [("a", 0), ("é", 1)]),
        (b"\xf0\x9f\x98\x80a", [("😀", 0), ("a", 4)]),
        # What can never become a character is shown as U+FFFD as soon as that is certain.
        (b"\xffa", [("\ufffd", 0), ("a", 1)]),
        (b"\xe2\x82a", [("\ufffda", 0)]),
        (b"\xc3\xc3\xa9", [("\ufffd", 0), ("é", 1)]),
    ],
)
def test_bytes_are_shown_by_whole_characters(says: bytes, shown: list[tuple[str, int]]) -> None:
    assert Telling(text_contract(unit="bytes", head={"temperature": 0})).say(list(says)) == pieces(*shown)


def test_half_a_character_at_the_end_is_shown_as_a_replacement() -> None:
    half = text_contract(unit="bytes", logits=257, head={"temperature": 0, "max_steps": 3, "end_token": 256})
    assert Telling(half).say(list(b"a\xe2\x82")) == pieces(("a", 0), ("\ufffd", 1, "length"))
    assert Telling(half).say([0xE2, 256]) == pieces(("\ufffd", 0, "end"))


def test_tokens_without_text_are_shown_as_a_replacement() -> None:
    unknown = text_contract(vocabulary="ab", unknown=2, logits=3, head={"temperature": 0})
    assert Telling(unknown).say([0, 2, 1]) == pieces(("a", 0), ("\ufffd", 1), ("b", 2))


@given(data=st.data(), characters=st.booleans())
def test_pieces_together_are_the_text_up_to_the_first_stop(data: st.DataObject, characters: bool) -> None:
    """Against the whole text at once: decoded, cut where the first stop text became complete."""
    alphabet = ["a", "b", "é", "€"] if characters else list(b"ab\xc3\xa9\xe2\x82\xac\xff\xf0")
    tokens = data.draw(st.lists(st.integers(0, len(alphabet) - 1), min_size=1, max_size=30))
    texts = [c.encode() if isinstance(c, str) else bytes([c]) for c in alphabet]
    stops = data.draw(st.lists(st.text("abé€", min_size=1, max_size=4), max_size=3))
    encoded = [s.encode() for s in stops]

    held = carry = b""
    shown: list[bytes] = []
    stopped = False
    for token in tokens:
        text, held, carry, stopped = show(held, carry, texts[token], encoded)
        shown.append(text)
        assert len(held) < max(map(len, encoded), default=1)
        assert len(carry) <= 3
        if stopped:
            break
    else:
        shown.append(flush(held, carry))

    raw = b"".join(texts[t] for t in tokens)
    expected = raw.decode("utf-8", "replace")
    for n in range(1, len(tokens) + 1):
        so_far = b"".join(texts[t] for t in tokens[:n]).decode("utf-8", "replace")
        places = [so_far.find(s) for s in stops if s in so_far]
        if places:
            expected = so_far[: min(places)]
            break
    assert b"".join(shown).decode() == expected
    assert stopped == any(s in raw.decode("utf-8", "replace") for s in stops)


# ---- prompts


def test_every_fed_piece_knows_its_prompts_offset_and_timestamp() -> None:
    telling = Telling(contract())
    telling.say(letters("a"))
    answered = telling.head.fed(telling.slots, [b"k"], (logits_for(telling.head, letters("b"), 8),), telling.memory)
    assert answered.offsets is not None
    assert answered.timestamps is not None
    assert (answered.offsets.tolist(), answered.timestamps.tolist()) == ([17], [1_700_000_000_000])


def test_max_steps_zero_feeds_the_stream_and_says_nothing() -> None:
    telling = Telling(contract(), [("eddy-max-steps", b"0")])
    assert telling.say(letters("a")) == []
    assert not telling.memory.any()


def test_a_prompt_must_wait_for_the_generation_before_it() -> None:
    telling = Telling(contract())
    telling.say(letters("a"))
    with pytest.raises(Broken, match="still generating"):
        telling.say(letters("a"))
    two = Telling(contract())
    prompt = two.prompt((logits_for(two.head, [0, 0], 8),))
    both = replace(prompt, slots=np.array([1, 1]), counts=np.array([1, 1]), keys=[b"k", b"k"])
    both.offsets, both.timestamps, both.headers = np.array([1, 2]), np.array([1, 2]), None
    with pytest.raises(Broken, match="at once"):
        two.head.answer(both, two.memory)


def test_a_stream_that_is_quiet_is_not_fed() -> None:
    telling = Telling(contract())
    with pytest.raises(Broken, match="not generating"):
        telling.head.fed(telling.slots, [b"k"], (logits_for(telling.head, [0], 8),), telling.memory)


def sampled(key: bytes, offset: int, seed: bytes) -> bytes:
    """Twenty letters drawn from equal logits."""
    head = GenerateHead(text_contract(vocabulary=LETTERS, head={"max_steps": 20}))
    memory: U8 = np.zeros((1, head.memory_bytes), np.uint8)
    slots, flat = np.array([0]), (np.zeros((1, 8), np.float32),)
    headers: list[Headers] = [[("eddy-seed", seed)]]
    finished = Finished(
        slots, np.array([1]), [key], np.array([offset]), np.array([0]), headers, flat, np.zeros(1, np.bool_)
    )
    values = list(head.answer(finished, memory).values)
    while head.active(slots, memory)[0]:
        values += list(head.fed(slots, [key], flat, memory).values)
    return b"".join(values)


def test_draws_depend_on_seed_key_and_offset_only() -> None:
    one = sampled(b"k", 4, b"1")
    assert sampled(b"k", 4, b"1") == one
    assert len({one, sampled(b"k", 4, b"2"), sampled(b"l", 4, b"1"), sampled(b"k", 5, b"1")}) == 4


# ---- what may be asked for


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (("eddy-max-steps", b"-1"), "header eddy-max-steps is b'-1': expected a whole number from 0 to 2147483647"),
        (("eddy-max-steps", b"1.5"), "a whole number"),
        (("eddy-max-steps", b" 1"), "a whole number"),
        (("eddy-max-steps", b"1_0"), "a whole number"),
        (("eddy-max-steps", "١".encode()), "a whole number"),
        (("eddy-max-steps", b""), "a whole number"),
        (("eddy-max-steps", b"2147483648"), "header eddy-max-steps is b'2147483648'"),
        (("eddy-temperature", b"-0.1"), "header eddy-temperature is b'-0.1': expected a number from 0 to 100"),
        (("eddy-temperature", b"nan"), "a number from 0 to 100"),
        (("eddy-temperature", b"inf"), "a number from 0 to 100"),
        (("eddy-temperature", b"100.1"), "a number from 0 to 100"),
        (("eddy-temperature", b"1e1"), "a number from 0 to 100"),
        (("eddy-top-k", b"x"), "header eddy-top-k is b'x': expected a whole number from 0 to 2147483647"),
        (("eddy-top-p", b"0"), "header eddy-top-p is b'0': expected a number above 0, at most 1"),
        (("eddy-top-p", b"1.01"), "a number above 0, at most 1"),
        (
            ("eddy-seed", b"18446744073709551616"),
            "header eddy-seed is b'18446744073709551616': expected a whole number",
        ),
        (("eddy-stop", b""), "header eddy-stop is b'': expected at most 4 texts of 1 to 32 bytes"),
        (("eddy-stop", b"x" * 33), "expected at most 4 texts of 1 to 32 bytes"),
        (("eddy-stop", b"\xff"), r"header eddy-stop is b'\xff': expected UTF-8"),
        (("eddy-stop", "\ufffd".encode()), "without U+FFFD"),
        (("eddy-stop", b"x" * 1000), "(1000 bytes): expected"),
    ],
)
def test_headers_that_cannot_be_granted(header: tuple[str, bytes], message: str) -> None:
    refused = GenerateHead(contract()).refuse([[], [header], [("else", b"\xff")]])
    assert list(refused) == [1]
    assert isinstance(refused[1], RecordError)
    assert refused[1].reason == "header"
    assert message in str(refused[1])


def test_a_header_given_twice_and_too_many_stops() -> None:
    head = GenerateHead(contract())
    twice, five, four = (
        [("eddy-seed", b"1"), ("eddy-seed", b"1")],
        [("eddy-stop", b"x")] * 5,
        [("eddy-stop", b"x")] * 4,
    )
    refused = head.refuse([twice, five, four])
    assert sorted(refused) == [0, 1]
    assert str(refused[0]) == "header eddy-seed is given twice"


def test_a_header_without_value_is_refused_and_not_tripped_over() -> None:
    none: Any = None  # as Kafka allows
    refused = GenerateHead(contract()).refuse([[("eddy-top-k", none)], [("eddy-stop", none)]])
    assert "eddy-top-k is None" in str(refused[0])
    assert sorted(refused) == [0, 1]


def test_headers_go_over_the_contracts_settings() -> None:
    over = Telling(contract(stop=["b"]), [("eddy-max-steps", b"3"), ("eddy-stop", b"c"), ("eddy-model", b"x")])
    assert over.say(letters("abab")) == pieces(("a", 0), ("b", 1), ("a", 2, "length"))
    for lowest, highest in ((b"0", b"2147483647"), (b"00012", b"7")):
        headers = [("eddy-max-steps", highest), ("eddy-temperature", lowest), ("eddy-top-k", lowest)]
        assert GenerateHead(contract()).refuse([headers]) == {}
    assert GenerateHead(contract()).refuse([[("eddy-temperature", b"100."), ("eddy-top-p", b"0.00001")]]) == {}


# ---- the contract


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": -1}, "setting 'max_steps' is -1: expected a whole number from 0 to 2147483647"),
        ({"max_steps": True}, "setting 'max_steps' is True"),
        ({"temperature": "hot"}, "setting 'temperature' is 'hot': expected a number from 0 to 100"),
        ({"temperature": float("nan")}, "setting 'temperature' is nan"),
        ({"top_k": 1.0}, "setting 'top_k' is 1.0"),
        ({"top_p": 0}, "setting 'top_p' is 0: expected a number above 0, at most 1"),
        ({"seed": 2**64}, "setting 'seed' is 18446744073709551616"),
        ({"stop": "ab"}, "setting 'stop' is 'ab': expected at most 4 texts"),
        ({"stop": ["a"] * 5}, "setting 'stop' is"),
        ({"stop": [""]}, "setting 'stop' is ['']"),
        ({"stop": ["\ufffd"]}, "without U+FFFD"),
        ({"stop": ["\ud800"]}, "setting 'stop' is"),
        ({"end_token": 8}, "setting 'end_token' is 8: expected a token below 8 or null"),
        ({"end": 1}, "unknown setting 'end'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError) as caught:
        GenerateHead(contract(**settings))
    assert str(caught.value).startswith("contract of talk/1: head generate: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (replace(contract(), codec=CodecSpec("tensor")), "needs the codec text, which says what tokens are"),
        (text_contract(vocabulary="abc", logits=2), "output 'logits' has 2 logits for 3 tokens of the vocabulary"),
        (text_contract(vocabulary="abc", logits=4), "output 'logits' has 4 logits for 3 tokens of the vocabulary"),
        (text_contract(unit="bytes", logits=255), "output 'logits' has 255 logits for 256 tokens"),
        (replace(contract(), outputs=(Output("y", "int64", (8,)),)), r"output 'y' is int64[8]: expected floats"),
        (replace(contract(), outputs=(Output("y", "float32", (8, 2)),)), r"output 'y' is float32[8, 2]"),
        (
            replace(contract(), outputs=(Output("y", "float32", (8,)), Output("z", "float32", (8,)))),
            "the model has 2 outputs (y, z): head.output must name one",
        ),
        (replace(contract(), head=HeadSpec("generate", output="z")), "no output named 'z' (there are: logits)"),
    ],
)
def test_a_model_that_cannot_generate_is_refused(wrong: Contract, message: str) -> None:
    with pytest.raises(ContractError) as caught:
        GenerateHead(wrong)
    assert message in str(caught.value)


def test_the_row_is_as_large_as_documented_and_checked() -> None:
    assert GenerateHead(contract()).memory_bytes == 226
    with pytest.raises(ContractError, match="head generate keeps 226 bytes of a stream, the contract says 0"):
        make_head(contract())
    assert make_head(replace(contract(), head=HeadSpec("generate", memory_bytes=226))).generates
