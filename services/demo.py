"""``eddy demo``: a broker, a worker, a few prompts, and the text that each stream generates, as it arrives.

The worker is a process of its own, started as a user would start it. Where the broker's jars cannot be had, the whole
road runs inside this process over the transport ``memory``, and the closing line says so; under CI that is an error.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from pipeline.errors import ConfigError, ContractError, EddyError, ModelError
from pipeline.model_file import find_model, load_graph, read_contract
from services.broker import BrokerUnavailable
from services.roads import INPUT, OUTPUT, PARTITIONS, Piece, Prompt, Road, kafka_road, memory_road
from services.screen import Screen

SHIPPED = Path(__file__).parents[1] / "models" / "python-reference"
STREAMS = (
    ("for", "The for statement is used to "),
    ("class", "A class definition "),
    ("lambda", "Lambda expressions "),
    ("import", "The import system "),
    ("string", "String literals can "),
    ("try", "If an exception occurs in the try clause, "),
    ("list", "The items of a list are "),
    ("yield", "When a generator function is called, "),
)
TEMPERATURE = 0.5
SILENCE_MAX_S = 30.0


def demo(args: argparse.Namespace) -> int:
    """Raises BrokerUnavailable under CI, and whatever keeps the worker from serving."""
    if args.steps < 1:
        raise ConfigError(f"--steps is {args.steps}: must be at least 1")
    asyncio.run(_demo(args))
    return 0


async def _demo(args: argparse.Namespace) -> None:
    began = time.monotonic()
    screen = Screen(sys.stdout)
    ticking = asyncio.create_task(screen.tick())
    try:
        async with AsyncExitStack() as stack:
            model = await asyncio.to_thread(_open, Path(args.model) if args.model is not None else SHIPPED)
            road, instead = await _enter(stack, model, screen)
            screen.say(f"metrics   {road.url}/metrics")
            screen.say(f"topics    {INPUT} -> {OUTPUT}, {PARTITIONS} partitions each, {road.name}\n")
            screen.open([key for key, _ in STREAMS])
            seen = await _generate(road, screen, args.steps)
            screen.close()
            closing = await _closing_line(road, seen, instead)
        ticking.cancel()
        screen.say(f"\n{closing}; {time.monotonic() - began:.1f} s in all")
    finally:
        ticking.cancel()


def _open(path: Path) -> Path:
    """The model's file. Raises ModelError, and ContractError unless it generates."""
    if path == SHIPPED and not path.exists():
        raise ModelError(f"the shipped model is not at {path}: run the demo from a clone, or give --model")
    file = find_model(path)
    contract = read_contract(load_graph(file), str(file))
    if contract.head.kind != "generate":
        raise ContractError(f"{file}: its head is {contract.head.kind!r}; the demo shows models with the head generate")
    return file


async def _enter(stack: AsyncExitStack, model: Path, screen: Screen) -> tuple[Road, str]:
    """The road, and why it is not Kafka where it is not."""
    try:
        return await stack.enter_async_context(kafka_road(model, screen.progress)), ""
    except BrokerUnavailable as error:
        if os.environ.get("CI"):
            raise
        screen.say(f"no embedded Kafka: {error}")
        return await stack.enter_async_context(memory_road(model)), str(error)


@dataclass
class _Seen:
    """What the reader of the output topic saw."""

    waits_s: list[float] = field(default_factory=list)
    """Prompt to first piece, then piece to piece, of each stream."""


async def _generate(road: Road, screen: Screen, steps: int) -> _Seen:
    """Sends the prompts and shows what comes, until every stream has said its last word."""
    seen, last = _Seen(), {}
    for number, (key, prompt) in enumerate(STREAMS):
        headers = {"eddy-max-steps": str(steps), "eddy-temperature": str(TEMPERATURE), "eddy-seed": str(number)}
        last[key] = time.monotonic()
        await road.send(Prompt(key, prompt, headers))
    screen.grow(STREAMS)
    going = set(last)
    pieces = road.pieces()
    while going:
        arrived = await _next(road, pieces)
        now = time.monotonic()
        for key in {piece.key for piece in arrived}:
            seen.waits_s.append(now - last[key])
            last[key] = now
        screen.grow([(piece.key, piece.text) for piece in arrived])
        for piece in arrived:
            if piece.finish is not None:
                going.discard(piece.key)
                screen.end(piece.key)
    return seen


async def _next(road: Road, pieces: AsyncIterator[list[Piece]]) -> Sequence[Piece]:
    arriving = asyncio.ensure_future(anext(pieces))
    try:
        either: list[asyncio.Future[Any]] = [arriving, road.ended]
        await asyncio.wait(either, timeout=SILENCE_MAX_S, return_when=asyncio.FIRST_COMPLETED)
        if arriving.done():
            return arriving.result()
    finally:
        arriving.cancel()
    if road.ended.done():
        raise EddyError(f"the worker ended: {road.ended.result()}")
    raise EddyError(f"no generated text came for {SILENCE_MAX_S:g} s; see what `eddy doctor` says")


async def _closing_line(road: Road, seen: _Seen, instead: str) -> str:
    page = await asyncio.to_thread(read_page, f"{road.url}/metrics")
    steps = page["eddy_steps_total"] + page["eddy_generated_steps_total"]
    batch = page["eddy_batch_size_sum"] / page["eddy_batch_size_count"]
    p50, p99 = (1e3 * float(q) for q in np.percentile(seen.waits_s, (50, 99)))
    why = f" (no Kafka: {instead})" if instead else ""
    return (
        f"transport {road.name}{why}: {len(STREAMS)} streams, {steps:,.0f} steps, mean realised batch {batch:.1f},"
        f" latency p50 {p50:.1f} ms, p99 {p99:.1f} ms (prompt to first piece, then piece to piece)"
    )


def read_page(url: str) -> dict[str, float]:
    """Sum of each sample over its labels, by name."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals
