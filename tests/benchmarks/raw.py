"""Raw onnxruntime: the plain graph, one thread, input ready in memory. What nobody can beat with one engine thread."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from tests.benchmarks.load import FEATURES

BATCH = 256
TIMES = (1, 16)


def open_plain(model: Path) -> ort.InferenceSession:
    """One thread, as the worker's engine has by default."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def steps_per_s(session: ort.InferenceSession, steps: int, seconds: float) -> float:
    """Calls of ``[steps, BATCH, FEATURES]``, each from the states that the last one gave."""
    names = [i.name for i in session.get_inputs()]
    x = np.random.default_rng(0).standard_normal((steps, BATCH, FEATURES), np.float32)
    h = c = np.zeros((2, BATCH, 128), np.float32)
    for _ in range(3):
        _, h, c = session.run(None, dict(zip(names, (x, h, c))))
    calls, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        _, h, c = session.run(None, dict(zip(names, (x, h, c))))
        calls += 1
    return calls * steps * BATCH / spent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=2.0)
    a = parser.parse_args()
    session = open_plain(a.model)
    found: dict[str, Any] = {f"T{t}": steps_per_s(session, t, a.seconds) for t in TIMES}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
