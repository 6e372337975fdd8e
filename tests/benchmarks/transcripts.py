"""What the head ``transcribe`` costs: ``python -m tests.benchmarks.transcripts``. CPU microseconds a step and stream.

Steps are random: a quarter sound, each for one of 28 characters and none too clearly, the others are silent. The
language model has read Python's reference topics.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-untyped]
from typing import Any

import numpy as np

from export.language_model import build
from pipeline.beside import Beside, entry
from pipeline.contract import Output
from pipeline.heads.base import Finished
from pipeline.heads.transcribe import TranscribeHead
from tests.contracts import tensor_contract

LABELS = ("", *"abcdefghijklmnopqrstuvwxyz", " ", "'")
STEP_S = 0.03
LOADS = ((1, 1), (1, 10), (1, 1000), (64, 10), (1000, 1), (1000, 10))
"""Streams of a poll, and steps of each one's record."""


def head(folder: Path, **settings: Any) -> TranscribeHead:
    outputs = (Output("logits", "float32", (len(LABELS),)),)
    settings = {"step_s": STEP_S, **settings}
    return TranscribeHead(
        tensor_contract(outputs=outputs, head="transcribe", labels=LABELS, settings=settings), Beside(folder)
    )


def heard(steps: int, chance: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits, float32 ``[steps, C]``."""
    logits = chance.normal(0, 1, (steps, len(LABELS))).astype(np.float32)
    logits[:, 0] += 12
    sounding = np.flatnonzero(chance.random(steps) < 0.25)
    logits[sounding, 0] -= 10
    logits[sounding, chance.integers(1, len(LABELS), len(sounding))] += 4
    return logits


def microseconds(of: TranscribeHead, streams: int, steps: int, seconds: float) -> float:
    """Per step of a stream, the mean of some polls."""
    chance = np.random.default_rng(0)
    memory = np.zeros((streams, of.memory_bytes), np.uint8)
    slots, counts = np.arange(streams), np.full(streams, steps)
    nobody = np.zeros(streams, np.bool_)
    spent, polls = 0.0, 0
    while spent < seconds:
        outputs = (heard(streams * steps, chance),)
        began = time.process_time()
        of.answer(Finished(slots, counts, [b""] * streams, slots, slots, None, outputs, nobody), memory)
        spent += time.process_time() - began
        polls += 1
    return spent / (polls * streams * steps) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.transcripts", description=__doc__)
    parser.add_argument("--beam", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1.0, help="of CPU for each figure [%(default)s]")
    a = parser.parse_args()
    lines = [re.sub("[^a-z']+", " ", line).strip() for text in topics.values() for line in text.lower().splitlines()]
    with tempfile.TemporaryDirectory(prefix="eddy-bench-") as folder:
        language_model = build(lines, 10, alphabet=LABELS[1:], max_bytes=400_000)
        language_model.save(Path(folder) / "lm.bin")
        file = entry("lm.bin", (Path(folder) / "lm.bin").read_bytes())
        heads = {
            "greedy": head(Path(folder)),
            f"beam {a.beam}": head(Path(folder), beam=a.beam, language_model=file),
        }
        print(f"{'':12s}{'streams':>8s}{'steps':>8s}{'us a step':>12s}{'real-time factor':>18s}")
        for name, one in heads.items():
            for streams, steps in LOADS:
                cost = microseconds(one, streams, steps, a.seconds)
                print(f"{name:12s}{streams:8d}{steps:8d}{cost:12.2f}{cost / STEP_S / 1e6:18.6f}", flush=True)


if __name__ == "__main__":
    main()
