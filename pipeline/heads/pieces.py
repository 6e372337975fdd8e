"""Joining the pieces of a generated text that go out together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.columns import Headers, Records, as_list

STEP = "eddy-step"
"""Header: index of the first generated step in the piece, ASCII."""
FINISH = "eddy-finish"
"""Header of the last piece: ``length``, ``stop``, ``end`` or ``interrupt``."""
_SOURCE = "eddy-source"


@dataclass(slots=True)
class _Run:
    """Pieces of one generation so far."""

    source: Any
    texts: list[bytes]
    over: bool


def merge_pieces(pieces: Records) -> Records:
    """Records of one partition, in order -> consecutive pieces of the same generation joined, where the first was.

    Of the same generation are pieces with the same key and ``eddy-source``; where that header is turned off, with the
    same timestamp. A piece of step 0 begins a generation, one with ``eddy-finish`` ends it. The joined record has the
    first one's headers and the finish of the last.
    """
    keys = pieces.keys
    if pieces.extra is None or len(set(keys)) == len(keys):
        return pieces
    columns = dict(pieces.columns)
    sources: list[Any] = pieces.timestamps.tolist()
    if _SOURCE in columns:
        blob, width = columns[_SOURCE].tobytes(), columns[_SOURCE].shape[1]
        sources = [blob[i : i + width] for i in range(0, len(blob), width)]

    values = as_list(pieces.values)
    firsts: list[int] = []
    runs: list[_Run] = []
    extra: list[Headers] = []
    latest: dict[bytes | None, int] = {}
    for i, (key, value, source, headers) in enumerate(zip(keys, values, sources, pieces.extra)):
        at = latest.get(key)
        finish = next((h for h in headers if h[0] == FINISH), None)
        begins = (STEP, b"0") in headers
        if at is not None and not begins and not runs[at].over and runs[at].source == source:
            runs[at].texts.append(value or b"")
            if finish is not None:
                runs[at].over = True
                extra[at] = (*extra[at], finish)
            continue
        latest[key] = len(runs)
        firsts.append(i)
        runs.append(_Run(source, [value or b""], finish is not None))
        extra.append(headers)
    if len(firsts) == len(keys):
        return pieces
    index = np.array(firsts)
    return Records(
        [keys[i] for i in firsts],
        [b"".join(run.texts) for run in runs],
        pieces.timestamps[index],
        pieces.constant,
        tuple((name, column[index]) for name, column in pieces.columns),
        extra,
    )
