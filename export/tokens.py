"""A tokenizer for a served model: whether a stream may be cut between words, proven on text, and what it cannot do."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline.beside import entry
from pipeline.codecs.tokenizer import CUTS, HOLD_BYTES, Words, read_tokenizer, token_texts
from pipeline.contract import CodecSpec
from pipeline.errors import ConfigError

TOKENIZER = "tokenizer.json"
"""Its name beside ``model.onnx``."""

SAMPLES = (
    "The quick brown fox didn't jump over it; they've said so, haven't they? (No: 'never', \"not yet\"...)\n\n",
    "def f(x, *args, **kwargs):\n    if x >= 10_000 and not args:\n\t\treturn {'a': [1, 2.5, -3e7]}  # why?\n\r\n",
    "Über die Straße gehen 12.345 Füße – «C'est l'été», ¿qué?, “¡Mañana!” Żółć, Příliš žluťoučký kůň.  \n",
    "Съешь же ещё этих мягких французских булок. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. שלום עולם مرحبا بالعالم ١٢٣",
    "日本語の 文字、全角　空白。中文字符 和 空格！한국어 문장 입니다. ประเทศไทย नमस्ते दुनिया",
    "e\u0301te\u0301 🙂 👍🏽 👩‍👩‍👧 🇪🇺",
    "https://example.org/a?b=c&d=%20 user@example.com #tag @name  two  spaces   three\u00a0nbsp\u2003em\u200bzero ▁m",
)
PARTS = (
    *"aZé1٣日ั'-_.,!?\"()@#\u0301\u200d🙂▁\ufeff\u00a0\u3000",
    *("the", "don't", "'ll", "'s", "12345", "...", "--", "##", "://", "»", "한국"),
    *(" ", " ", " ", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n", "\n "),
)
RANDOM_TEXTS, RANDOM_PARTS, SEED = 4000, 14, 7
UNUSUAL = "ꙮ"
"""A letter that hardly any vocabulary knows."""


@dataclass(frozen=True)
class Tokenized:
    """A codec, and the tokenizer that belongs to it where there is one."""

    codec: CodecSpec
    beside: Mapping[str, Path] = field(default_factory=dict)
    """For ``ExportOptions.beside``."""
    notes: tuple[str, ...] = ()


def tokens_codec(file: Path, *, head: str = "generate", settings: Mapping[str, Any] | None = None) -> Tokenized:
    """The codec ``text`` of unit ``tokens`` for a ``tokenizer.json``.

    ``settings`` may have ``flush`` and ``hold_bytes``. Without ``flush`` it is ``boundary`` where cutting a text is
    proven to change nothing and the head does not generate, else ``record``. Raises ConfigError saying what is wrong
    with the file, or why what was asked for cannot be.
    """
    given = dict(settings or {})
    for name in given:
        if name not in ("unit", "flush", "hold_bytes"):
            raise ConfigError(f"--codec-setting {name}: with --tokenizer there are flush and hold_bytes")
    content, tokenizer = _read(file)
    _check_unknown(file, tokenizer)
    cut, example = prove_cut(tokenizer)
    flush = given.get("flush") or ("record" if cut is None or head == "generate" else "boundary")
    if flush == "boundary" and cut is None:
        raise ConfigError(
            f"--tokenizer {file}: cutting a text changes its tokens ({example}), so the last word of a record cannot"
            " wait for the next: give --codec-setting flush=record, every record then being a text of its own"
        )
    if head == "generate":
        _check_texts(file, tokenizer)
    notes = []
    if flush == "boundary":
        notes.append(
            "a record's last word waits until more text shows that it is whole, or the stream ends; where every record"
            " is a text of its own, give --codec-setting flush=record"
        )
    elif cut is None:
        notes.append(f"every record is a text of its own, because cutting a text changes its tokens ({example})")
    chosen = {"unit": "tokens", "tokenizer": entry(TOKENIZER, content), "flush": flush, "cut": cut}
    if flush == "boundary" or "hold_bytes" in given:
        chosen["hold_bytes"] = given.get("hold_bytes", HOLD_BYTES)
    return Tokenized(CodecSpec("text", settings=chosen), {TOKENIZER: file}, tuple(notes))


def codec_of(kind: str, tokenizer: Path | None, head: str, settings: Mapping[str, Any]) -> Tokenized:
    """What --codec, --tokenizer and --codec-setting ask for. Raises ConfigError."""
    if tokenizer is None:
        return Tokenized(CodecSpec(kind, settings=settings))
    if kind != "text":
        raise ConfigError(f"--tokenizer {tokenizer} is for the codec text: give --codec text")
    return tokens_codec(tokenizer, head=head, settings=settings)


def prove_cut(tokenizer: Tokenizer, texts: Sequence[str] = SAMPLES) -> tuple[str | None, str]:
    """The finest cut that changes no token of these texts, nor of thousands made of what pre-tokenizers look at; None
    where each does. And a text that shows it of the last cut tried."""
    chance = random.Random(SEED)
    added = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
    parts = [*PARTS, *added]
    made = ["".join(chance.choices(parts, k=chance.randint(1, RANDOM_PARTS))) for _ in range(RANDOM_TEXTS)]
    for content in added:
        made += [f"{before}{content}{after}" for before in ("", "a", "a ", " ") for after in ("", "b", " b", "  b")]
    every = [*texts, "".join(texts), *made]
    whole = _encode(tokenizer, every)
    example = ""
    for cut in CUTS:
        words = [Words(cut).of(text) for text in every]
        apart = iter(_encode(tokenizer, [word for some in words for word in some]))
        joined = [[token for _ in some for token in next(apart)] for some in words]
        wrong = next((text for text, a, b in zip(every, whole, joined) if a != b), None)
        if wrong is None:
            return cut, ""
        example = f"as in {_shown(wrong)}"
    return None, example


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [e.ids for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def _read(file: Path) -> tuple[bytes, Tokenizer]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"--tokenizer {file}: cannot be read ({error.strerror})") from None
    try:
        return content, read_tokenizer(content)
    except ValueError as error:
        raise ConfigError(f"--tokenizer {file}: {error}") from None


def _check_unknown(file: Path, tokenizer: Tokenizer) -> None:
    """Every text must have tokens. Raises ConfigError."""
    try:
        found = _encode(tokenizer, [UNUSUAL, f"a{UNUSUAL}b", *SAMPLES])
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise ConfigError(
            f"--tokenizer {file}: fails on text that is not in its vocabulary ({error}); give it an unknown token"
            " (unk_token, unk_id), or bytes to fall back on"
        ) from None
    if not found[0]:
        raise ConfigError(
            f"--tokenizer {file}: text that is not in its vocabulary vanishes ({UNUSUAL!r} has no token); give it an"
            " unknown token (unk_token), or bytes to fall back on"
        )


def _check_texts(file: Path, tokenizer: Tokenizer) -> None:
    """What is written token by token must be what the library decodes. Raises ConfigError."""
    try:
        texts = token_texts(tokenizer)
    except ValueError as error:
        raise ConfigError(f"--tokenizer {file}: cannot be used to write: {error}") from None
    anchor, *sampled = _encode(tokenizer, ["a", *SAMPLES])
    begun = tokenizer.decode(anchor)
    for sample, tokens in zip(SAMPLES, sampled):
        decoded = tokenizer.decode(anchor + tokens)
        written = begun + b"".join(texts[t] for t in tokens).decode(errors="replace")
        if written != decoded:
            at = next((i for i, (a, b) in enumerate(zip(written, decoded)) if a != b), min(len(written), len(decoded)))
            raise ConfigError(
                f"--tokenizer {file}: cannot be used to write, because its decoder needs the whole text"
                f" (of {_shown(sample)} it makes {decoded[at : at + 20]!r}, token by token"
                f" {written[at : at + 20]!r})"
            )
