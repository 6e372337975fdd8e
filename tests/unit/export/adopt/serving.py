"""Running an adopted model as a worker runs it, and the file that it was adopted from by hand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.adopt import AdoptOptions, adopt
from export.adopt.report import as_json
from pipeline.transport.memory import Entry, MemoryBroker
from tests.unit.test_worker import counted, made, new_broker, partition_of, running, until

Array = NDArray[Any]
Record = tuple[bytes, bytes, list[tuple[str, bytes]]]
"""Key, value, headers."""


def session(file: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def by_hand(
    file: Path,
    steps: Sequence[Mapping[str, Array]],
    states: Mapping[str, tuple[str, Array]],
    output: str,
    constants: Mapping[str, Array] | None = None,
) -> list[Array]:
    """The file itself, one stream, step by step. ``states``: input -> (output, first value)."""
    run = session(file)
    carried = {name: first for name, (_, first) in states.items()}
    names = [o.name for o in run.get_outputs()]
    shown = []
    for step in steps:
        out = dict(zip(names, run.run(names, {**step, **carried, **(constants or {})})))
        carried = {name: out[back] for name, (back, _) in states.items()}
        shown.append(out[output])
    return shown


async def served(
    file: Path, records: Sequence[Record], broker: MemoryBroker | None = None
) -> tuple[dict[bytes, bytes], list[Entry], MemoryBroker]:
    """What a worker makes of these records: each stream's values joined, the dead letters, and the broker."""
    broker = broker or new_broker()
    before = counted(broker) + counted(broker, "in.dlq")
    for key, value, headers in records:
        broker.produce("in", partition_of(key), key, value, headers)
    worker, _ = made(broker, file)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) + counted(broker, "in.dlq") == before + len(records))
    got: dict[bytes, list[bytes]] = defaultdict(list)
    for _, _, entry in broker.records("out"):
        got[entry.key or b""].append(entry.value or b"")
    return {k: b"".join(v) for k, v in got.items()}, [e for _, _, e in broker.records("in.dlq")], broker


def mixed(streams: Mapping[bytes, Sequence[Array]], sizes: Sequence[int] = (1, 3, 2)) -> list[Record]:
    """Records of one, three, two ... steps, the streams taking turns."""
    waiting = {key: list(steps) for key, steps in streams.items()}
    records: list[Record] = []
    turn = 0
    while any(waiting.values()):
        for key, steps in waiting.items():
            size = sizes[turn % len(sizes)]
            turn += 1
            if steps:
                records.append((key, b"".join(s.tobytes() for s in steps[:size]), []))
                del steps[:size]
    return records


def floats(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def found(file: Path, tmp_path: Path, **options: object) -> dict:
    return as_json(adopt(file, tmp_path / "out" / "1", AdoptOptions(**options)))  # type: ignore[arg-type]


async def check(
    file: Path, tmp_path: Path, give, states, output: str, streams, dtype: str = "<f4", hand=None, **options
):
    """A worker over the adopted model gives what the file gives by hand, for streams at different places."""
    adopted = adopt(file, tmp_path / "out" / "1", AdoptOptions(**options))
    got, dead, _ = await served(adopted.file, mixed(streams))
    assert not dead
    for key, steps in streams.items():
        wanted = np.concatenate(
            [w.reshape(-1) for w in by_hand(file, [give(s) for s in steps], states, output, hand)]
        ).astype(np.float64)
        values = np.frombuffer(got[key], dtype).astype(np.float64)
        assert values.shape == wanted.shape
        assert np.abs(values - wanted).max() <= (5e-3 if dtype == "<f2" else 1e-4)
    return as_json(adopted)


def steps(count: int, *shape: int, streams: int = 4, scale: float = 1.0, dtype: str = "float32") -> dict[bytes, list]:
    rng = np.random.default_rng(count)
    return {b"s%d" % k: [(floats(rng, *shape) * scale).astype(dtype) for _ in range(count + k)] for k in range(streams)}
