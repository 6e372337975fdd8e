"""Small tokenizers of every kind, and the contracts of text models that have them; made here, the same every time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pipeline.beside import Beside, entry
from pipeline.codecs.tokenizer import read_tokenizer
from pipeline.contract import CodecSpec, Contract
from tests.contracts import text_contract

CORPUS = (
    "the cat sat on the mat, and the dog didn't; it's what they'd said.\n\n    for cat in cats:\n        sat += 12345\n"
    "«Où est-ce que l'été?» Ça été où? naïve café €5 €50 日本語の文字 日本 文字 😀😀 😀 the end of the text\n"
) * 4
LLAMA3 = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ]
)


def _trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    return tokenizer


def byte_level(*, prefix: bool = False) -> Tokenizer:
    """As GPT-2 has it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    return _trained(
        made,
        trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, special_tokens=special, show_progress=False),
    )


def byte_level_by_regex() -> Tokenizer:
    """As Llama 3 has it: a pattern that joins punctuation and the line's end."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(made, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False))


def word_piece() -> Tokenizer:
    """As BERT has it, uncased."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##")
    return _trained(
        made, trainers.WordPieceTrainer(vocab_size=160, special_tokens=["[UNK]", "[CLS]"], show_progress=False)
    )


def unigram() -> Tokenizer:
    """As T5 has it."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return _trained(
        made,
        trainers.UnigramTrainer(vocab_size=140, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False),
    )


def byte_fallback() -> Tokenizer:
    """As Llama 2 has it: a word's mark before every text, no pre-tokenizer, bytes for what is not in the vocabulary."""
    words = _trained(
        _with(Tokenizer(models.BPE()), pre_tokenizers.Metaspace()),
        trainers.BpeTrainer(vocab_size=110, show_progress=False),
    )
    model = json.loads(words.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *model["vocab"]]
    merges = [tuple(m) for m in model["merges"]]
    made = Tokenizer(
        models.BPE({n: i for i, n in enumerate(names)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def word_level(*, unknown: bool = True) -> Tokenizer:
    vocabulary = ["[UNK]", "the", "cat", "sat", "on", "mat", ",", "."]
    given = {w: i for i, w in enumerate(vocabulary)} if unknown else {w: i for i, w in enumerate(vocabulary[1:])}
    made = Tokenizer(models.WordLevel(given, unk_token="[UNK]"))
    return _with(made, pre_tokenizers.Whitespace())


def with_mask() -> Tokenizer:
    """A token that swallows the white space after it."""
    made = byte_level()
    made.add_tokens([AddedToken("<mask>", rstrip=True, normalized=False)])
    return made


def _with(tokenizer: Tokenizer, pre_tokenizer: Any) -> Tokenizer:
    tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


KINDS = {
    "byte-level": byte_level,
    "byte-level with a prefix": lambda: byte_level(prefix=True),
    "byte-level by regex": byte_level_by_regex,
    "word-piece": word_piece,
    "unigram": unigram,
    "byte-fallback": byte_fallback,
    "word-level": word_level,
    "word-level without unknown": lambda: word_level(unknown=False),
    "with a mask": with_mask,
}
_FOLDER = tempfile.TemporaryDirectory(prefix="eddy-tokenizers-")


@cache
def tokenizer_file(kind: str) -> Path:
    """The ``tokenizer.json`` of one of ``KINDS``."""
    file = Path(_FOLDER.name) / kind / "tokenizer.json"
    file.parent.mkdir()
    KINDS[kind]().save(str(file))
    return file


def tokens_contract(
    kind: str, *, head: Mapping[str, Any] | None = None, dtype: str = "int64", logits: int | None = None, **codec: Any
) -> tuple[Contract, Beside]:
    """Codec ``text`` of unit ``tokens`` with more settings in ``codec``, head ``generate``."""
    content = tokenizer_file(kind).read_bytes()
    size = logits if logits is not None else read_tokenizer(content).get_vocab_size()
    contract = text_contract(head=head, logits=size, dtype=dtype)
    settings = {"unit": "tokens", "tokenizer": entry("tokenizer.json", content), **codec}
    return replace(contract, codec=CodecSpec("text", settings=settings)), Beside(tokenizer_file(kind).parent)
