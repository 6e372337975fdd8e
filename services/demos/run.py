"""Drives a demo: a broker, a worker, records that come at their time, and what becomes visible of them.

The worker is a process of its own, started as a user would start it. Where the broker's jars cannot be had, the whole
road runs inside this process over the transport ``memory``, and the closing line says so; under CI that is an error.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from pipeline.contract import Contract
from pipeline.errors import ContractError, EddyError, ModelError
from pipeline.model_file import find_model, load_graph, read_contract
from services.broker import BrokerUnavailable
from services.demos.base import Demo, shipped_model
from services.demos.roads import PARTITIONS, Road, kafka_road, memory_road
from services.screen import Screen

SILENCE_MAX_S = 30.0
LOOK_S = 0.05
"""Between two looks at the worker's page: it tells nobody when its counters change."""


def run_demo(demo: Demo, model: Path | None) -> None:
    """``model`` None: the shipped one. Raises BrokerUnavailable under CI, and what keeps the worker from serving."""
    asyncio.run(_run(demo, model))


async def _run(demo: Demo, path: Path | None) -> None:
    began = time.monotonic()
    screen = Screen(sys.stdout)
    ticking = asyncio.create_task(screen.tick())
    try:
        async with AsyncExitStack() as stack:
            model, contract = await asyncio.to_thread(_open, demo, path)
            road, instead = await _enter(stack, demo, model, screen)
            screen.say(f"metrics   {road.url}/metrics")
            screen.say(f"topics    {' -> '.join(demo.topics)}, {PARTITIONS} partitions each, {road.name}\n")
            screen.open(demo.streams())
            waits_s = await _drive(demo, contract, road, screen)
            screen.close()
            closing = await _closing_line(demo, road, waits_s, instead)
        ticking.cancel()
        if demo.summary():
            screen.say(f"\n{demo.summary()}")
        screen.say(f"\n{closing}; {time.monotonic() - began:.1f} s in all")
    finally:
        ticking.cancel()


def _open(demo: Demo, path: Path | None) -> tuple[Path, Contract]:
    """The model's file and contract. Raises ModelError, and ContractError unless its head is the demo's."""
    folder = path or shipped_model(demo.model)
    if folder is None:
        raise ModelError(
            f"the shipped model {demo.model!r} is not here: run the demo in a clone's folder, or give --model"
        )
    file = find_model(folder)
    contract = read_contract(load_graph(file), str(file))
    if contract.head.kind != demo.head:
        raise ContractError(
            f"{file}: its head is {contract.head.kind!r}; this demo shows models with the head {demo.head}"
        )
    return file, contract


async def _enter(stack: AsyncExitStack, demo: Demo, model: Path, screen: Screen) -> tuple[Road, str]:
    """The road, and why it is not Kafka where it is not."""
    try:
        return await stack.enter_async_context(kafka_road(model, *demo.topics, screen.progress)), ""
    except BrokerUnavailable as error:
        if os.environ.get("CI"):
            raise
        screen.say(f"no embedded Kafka: {error}")
        return await stack.enter_async_context(memory_road(model, *demo.topics)), str(error)


class _Seen:
    """What the reader of the output topic saw."""

    def __init__(self, streams: int) -> None:
        self.records = 0
        self.waits_s: list[float] = []
        self.going = streams
        self.fresh = asyncio.Event()


async def _drive(demo: Demo, contract: Contract, road: Road, screen: Screen) -> list[float]:
    """Sends and shows until all is said -> latencies, seconds. Raises EddyError if the worker ends or falls mute."""
    records = demo.records(contract)
    seen = _Seen(len(demo.streams()))

    async def send() -> None:
        began = time.monotonic()
        for record in records:
            if (rest := began + record.at_s - time.monotonic()) > 0:
                await asyncio.sleep(rest)
            demo.sent(record, screen)
            await road.send(record)

    async def read() -> None:
        async for arrived in road.outputs():
            now_s = time.time()
            for came in arrived:
                seen.waits_s.append(demo.latency_s(came, now_s))
                seen.going -= demo.show(came, screen)
            seen.records += len(arrived)
            seen.fresh.set()

    async def over() -> None:
        await sending
        while seen.going if demo.generates else not await all_done(road.url, len(records), seen.records):
            seen.fresh.clear()
            if demo.generates:
                await seen.fresh.wait()
            else:
                await asyncio.sleep(LOOK_S)

    async def mute() -> None:
        last = -1
        while last != seen.records or not sending.done():
            last = seen.records
            await asyncio.sleep(SILENCE_MAX_S)

    sending = asyncio.create_task(send())
    tasks = [asyncio.create_task(job) for job in (over(), read(), mute())]
    try:
        either: list[asyncio.Future[Any]] = [*tasks, road.ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks[:2]:
            if task.done():
                task.result()  # raises what it ended with
                return seen.waits_s
    finally:
        for task in (sending, *tasks):
            task.cancel()
    if road.ended.done():
        raise EddyError(f"the worker ended: {road.ended.result()}")
    raise EddyError(f"nothing came for {SILENCE_MAX_S:g} s; see what `eddy doctor` says")


async def all_done(url: str, sent: int, seen: int) -> bool:
    """Whether the worker with these pages has committed all records, and the reader has seen all that it answered.

    Raises EddyError when some became dead letters.
    """
    page = await asyncio.to_thread(read_page, f"{url}/metrics")
    dead = page.get("eddy_dead_letters_total", 0.0)
    if dead:
        raise EddyError(f"{dead:.0f} records became dead letters; see the worker's log")
    return page["eddy_record_seconds_count"] >= sent and page["eddy_output_records_total"] <= seen


async def _closing_line(demo: Demo, road: Road, waits_s: list[float], instead: str) -> str:
    page = await asyncio.to_thread(read_page, f"{road.url}/metrics")
    steps = page["eddy_steps_total"] + page["eddy_generated_steps_total"]
    batch = page["eddy_batch_size_sum"] / page["eddy_batch_size_count"]
    p50, p99 = (1e3 * float(q) for q in np.percentile(waits_s or [0.0], (50, 99)))
    why = f" (no Kafka: {instead})" if instead else ""
    media = page["eddy_media_seconds_total"]
    real_time = f", real-time factor {page['eddy_engine_seconds_sum'] / media:.3f}" if media else ""
    return (
        f"transport {road.name}{why}: {len(demo.streams())} streams, {steps:,.0f} steps, mean realised batch"
        f" {batch:.1f}{real_time}, latency p50 {p50:.1f} ms, p99 {p99:.1f} ms ({demo.waits})"
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
