"""``eddy broker start | stop | status``: the embedded broker as a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.errors import UserError
from services.embedded import STOP_TIMEOUT_S, Broker
from services.jars import BrokerUnavailable, cache_folder

__all__ = ["Broker", "BrokerUnavailable", "ProgressBar", "add_broker_parser"]

EXAMPLES = """examples:
  eddy broker start                      data in a temporary folder, gone at 'eddy broker stop'
  eddy broker start --data ./kafka --port 9092
  eddy broker status --json
"""


@dataclass(frozen=True, slots=True)
class Running:
    """What ``start`` leaves for ``stop`` and ``status``, in the user's cache folder."""

    pid: int
    address: str
    data: str
    temporary: bool


class ProgressBar:
    """Shows a broker's progress on standard error: a bar for downloads, a line for the rest."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if total <= 1:
            if done == 0:
                print(f"{what} ...", file=sys.stderr, flush=True)
            return
        if self._bar is None:
            self._bar = tqdm(total=total, desc=what, unit="B", unit_scale=True, file=sys.stderr)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.close()
            self._bar = None


def state_file() -> Path:
    """Where the one detached broker of this user is remembered."""
    return cache_folder() / "broker.json"


def find_running() -> Running | None:
    """The detached broker, if it is alive; what a dead one left is removed."""
    path = state_file()
    try:
        running = Running(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not what 'eddy broker start' writes ({error}): delete it") from None
    if _is_ours(running):
        return running
    _forget(running)
    return None


def _is_ours(running: Running) -> bool:
    """Whether the pid still is that broker: pids are used again, so its command line must name our folder."""
    listing = subprocess.run(
        ["ps", "-o", "command=", "-ww", "-p", str(running.pid)], capture_output=True, text=True, check=False
    )
    return f"{running.data}/server.properties" in listing.stdout


def _forget(running: Running) -> None:
    if running.temporary:
        shutil.rmtree(running.data, ignore_errors=True)
    state_file().unlink(missing_ok=True)


def start(args: argparse.Namespace) -> int:
    """Starts the detached broker, or says where it already is."""
    data: Path | None = args.data.absolute() if args.data is not None else None
    running = find_running()
    if running is not None:
        other_data = data is not None and str(data) != running.data
        other_port = args.port is not None and not running.address.endswith(f":{args.port}")
        if other_data or other_port:
            raise UserError(
                f"a broker is already running at {running.address} (data in {running.data}): 'eddy broker stop' first"
            )
        _print(running, args.json, "already running")
        return 0
    broker = Broker(data, args.port, progress=ProgressBar(), detached=True)
    broker.start()
    pid = broker.pid
    if pid is None:
        raise UserError("the broker ended right after it had started")
    running = Running(pid, broker.address, str(broker.data), broker.temporary)
    state_file().write_text(json.dumps(asdict(running)))
    _print(running, args.json, "running")
    return 0


def stop(args: argparse.Namespace) -> int:
    """Ends the detached broker, and nothing else."""
    running = find_running()
    if running is not None:
        os.kill(running.pid, signal.SIGTERM)
        if not _gone(running, STOP_TIMEOUT_S):
            os.kill(running.pid, signal.SIGKILL)
            _gone(running, STOP_TIMEOUT_S)
        _forget(running)
    if args.json:
        print(json.dumps({"running": False, "stopped": running is not None}))
    else:
        print(f"stopped the broker at {running.address}" if running is not None else "no broker is running")
    return 0


def status(args: argparse.Namespace) -> int:
    """Address, pid and data folder; exit code 1 when none runs."""
    running = find_running()
    if running is None:
        print(json.dumps({"running": False}) if args.json else "no broker is running: 'eddy broker start'")
        return 1
    _print(running, args.json, "running")
    return 0


def _gone(running: Running, timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    # Not our child, so there is no event to wait for.
    while _is_ours(running):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _print(running: Running, as_json: bool, word: str) -> None:
    if as_json:
        print(json.dumps({"running": True, **asdict(running)}))
        return
    kept = "temporary, removed at 'eddy broker stop'" if running.temporary else "kept"
    print(f"Apache Kafka {word} at {running.address}, pid {running.pid}\ndata in {running.data} ({kept})")


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a number from 1 to 65535")
    return int(text)


def add_broker_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``broker`` to the command line; each command sets ``handler``: arguments -> exit code. Raises UserError."""
    raw = argparse.RawDescriptionHelpFormatter
    broker = subparsers.add_parser(
        "broker",
        help="a real single-node Apache Kafka for development",
        description="A real single-node Apache Kafka on 127.0.0.1, from pip alone.",
        epilog=EXAMPLES,
        formatter_class=raw,
    )
    commands = broker.add_subparsers(dest="broker_command", required=True, metavar="COMMAND")

    def command(name: str, func: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=text, description=text, epilog=EXAMPLES, formatter_class=raw)
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        parser.set_defaults(handler=func)
        return parser

    starting = command("start", start, "start the broker in the background and return when it answers")
    starting.add_argument("--data", type=Path, metavar="DIR", help="keep its data here (default: a temporary folder)")
    starting.add_argument("--port", type=_port, metavar="P", help="listen on 127.0.0.1:P (default: a free port)")
    command("stop", stop, "end the broker; a temporary data folder is removed")
    command("status", status, "say whether the broker runs, and where")
