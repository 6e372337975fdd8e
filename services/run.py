"""``eddy run``: one worker as a process, with its pages, its name and its end by signal."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import logging
import signal
import sys
from pathlib import Path

import onnx
from prometheus_client import ProcessCollector, disable_created_metrics

from pipeline.beside import Beside
from pipeline.config import Config
from pipeline.contract import Contract
from pipeline.errors import ConfigError
from pipeline.metrics import Metrics
from pipeline.model_file import find_model, load_graph, read_contract
from pipeline.transport import connect
from pipeline.worker import Worker
from services import logs
from services.http import Pages
from services.identity import take_identity
from services.settings import RunConfig, load_settings

log = logging.getLogger("eddy")

BEAT_S = 1.0
GARBAGE_OBJECTS = 20_000
"""Python looks for cycles after so many new objects. Fetched records are objects for a moment, none of them in a cycle:
at its default of 700 the search takes a fifth of the event loop's time."""
PULSE_MAX_S = 30.0
"""An event loop that has not turned for so long is stuck: nothing on it may take a fraction of that."""


def run(args: argparse.Namespace) -> int:
    """Until SIGTERM or SIGINT, then drains. Raises what keeps a worker from starting, or ends it."""
    config = load_settings(args)
    config.require("model", "input", "output", "bootstrap_servers")
    if config.bootstrap_servers == "memory":
        raise ConfigError("bootstrap_servers is 'memory': that lives inside one process; `eddy run` needs host:port")
    logs.set_up(config.log_format, config.log_level)
    model, contract = open_model(config)
    config = dataclasses.replace(config, group=config.group or f"eddy-{contract.name}")
    with take_identity(config.worker_id, config.group, config.bootstrap_servers) as identity:
        asyncio.run(_serve(dataclasses.replace(config, worker_id=identity.worker_id), model, contract))
    return 0


def open_model(config: Config) -> tuple[onnx.ModelProto, Contract]:
    """Raises ModelError, ContractError."""
    file = find_model(Path(config.model))
    model = load_graph(file)
    return model, read_contract(model, str(file))


class Pulse:
    """Whether the event loop turns."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._last = loop.time()
        self._timer = loop.call_later(BEAT_S, self._beat)

    def _beat(self) -> None:
        self._last = self._loop.time()
        self._timer = self._loop.call_later(BEAT_S, self._beat)

    def beats(self) -> bool:
        """May be asked from any thread."""
        return self._loop.time() - self._last < PULSE_MAX_S


async def _serve(config: RunConfig, model: onnx.ModelProto, contract: Contract) -> None:
    disable_created_metrics()  # a second series for each counter, which nobody reads
    metrics = Metrics(contract.name, contract.model_version)
    ProcessCollector(registry=metrics.registry)
    worker = Worker(config, connect(config), model, contract, metrics, Beside(find_model(Path(config.model)).parent))
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS)
    loop = asyncio.get_running_loop()

    def drain(number: signal.Signals) -> None:
        log.info("%s: draining, at most %g s", number.name, config.drain_timeout_s)
        if number is signal.SIGINT:
            loop.remove_signal_handler(number)  # a second Ctrl-C ends the process at once
        worker.stop()

    pulse = Pulse(loop)

    def live() -> bool:
        return pulse.beats() and worker.live

    with Pages(config.http_host, config.http_port, metrics.registry, live, lambda: worker.ready) as pages:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, drain, number)
        log.info(
            "worker %s of group %s serves %s on %s: %s -> %s, pages at %s",
            *(config.worker_id, config.group, contract.label, ",".join(worker.providers)),
            *(config.input, config.output, pages.url),
            extra={"url": pages.url, "worker_id": config.worker_id, "group": config.group, "model": contract.label},
        )
        sys.stderr.flush()
        await worker.run()
    log.info("ended")
