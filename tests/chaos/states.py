"""What a group has kept of its streams: the newest snapshots of its changelog, as the product itself reads them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import Changelog
from pipeline.contract import Contract
from pipeline.model_file import load_graph, read_contract
from pipeline.streams.snapshots import Newest, digest_of, restore
from tests.kafka.reading import Record, read_all
from tests.kafka.verdict import Stream


class Kept(NamedTuple):
    """One stream's newest snapshot."""

    applied: int
    row: NDArray[np.uint8]


def newest_snapshots(address: str, changelog: str, model: Path) -> dict[Stream, Kept]:
    """Of a model whose codec and head keep nothing: rows are its states side by side."""
    contract = read_contract(load_graph(model), str(model))
    row_bytes = _row_bytes(contract)
    by_partition: defaultdict[int, list[Record]] = defaultdict(list)
    for record in read_all(address, changelog):
        by_partition[record.partition].append(record)
    kept = {}
    for partition, records in by_partition.items():
        newest = Newest(row_bytes)
        offsets = np.array([r.offset for r in records], np.int64)
        keys = [r.key or b"" for r in records]
        newest.add(Changelog(keys, [r.value for r in records], offsets, int(offsets[-1]) + 1))
        restored = restore(newest, digest_of(contract))
        assert not restored.problems, restored.problems
        for key, applied, row in zip(restored.keys, restored.applied.tolist(), restored.rows):
            kept[partition, key] = Kept(applied, row)
    return kept


def _row_bytes(contract: Contract) -> int:
    return sum(
        sum(s.size for s in states) * np.dtype(dtype).itemsize for dtype, states in contract.states_by_dtype().items()
    )
