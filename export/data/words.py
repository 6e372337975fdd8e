"""Messages as words: a tokenizer that is made of a training text, in the format of Hugging Face's library.

A word is a run of the letters a to z with its apostrophe part (``can't``), a run of digits, or any other character that
is not white space; addresses on the web are all one word. The line end is a word too: it is where a message begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from pipeline.codecs.tokenizer import Tokenization

FILE = "tokenizer.json"
UNKNOWN, NEWLINE = "[UNK]", "\n"
ADDRESS = "httpurl"
CUT, HOLD_BYTES = "whitespace", 128


def word_tokenizer(texts: Iterable[str], least: int = 2) -> bytes:
    """The ``tokenizer.json`` of the words that occur at least ``least`` times, the most frequent first."""
    tokenizer = Tokenizer(models.WordLevel({UNKNOWN: 0, NEWLINE: 1}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"),
            normalizers.Replace(Regex(r"https?://\S+"), ADDRESS),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"[a-z]+(?:'[a-z]+)?|\d+|\n|[^\sa-z\d]"), behavior="removed", invert=True
    )
    counts: Counter[str] = Counter()
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text)
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    words = [w for w, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if n >= least and w != NEWLINE]
    tokenizer.model = models.WordLevel({w: i for i, w in enumerate((UNKNOWN, NEWLINE, *words))}, unk_token=UNKNOWN)
    return tokenizer.to_str(pretty=False).encode()


def tokenization(content: bytes) -> Tokenization:
    """As the contract will have it: a word waits until something follows that cannot go on with it."""
    return Tokenization(content, CUT, "boundary", HOLD_BYTES)


def words_of(content: bytes) -> tuple[str, ...]:
    """The vocabulary, in the tokens' order."""
    vocabulary = tokenization(content).tokenizer.get_vocab(with_added_tokens=True)
    return tuple(sorted(vocabulary, key=vocabulary.__getitem__))


def encode(given: Tokenization, texts: Sequence[str]) -> list[NDArray[np.int64]]:
    """The tokens of each text, cut into words as the codec cuts a stream."""
    cut = [given.words.of(text) for text in texts]
    different = sorted({word for words in cut for word in words})
    known = {word: tokens or [] for word, tokens in zip(different, given.encode(different))}
    return [np.array([t for word in words for t in known[word]], np.int64) for words in cut]
