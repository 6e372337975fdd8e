"""``eddy produce``: lines of text, the bytes of one stream, or arrays, to a topic, partitioned by Kafka's murmur2."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeAlias

import numpy as np
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from tqdm import tqdm

from pipeline.errors import ConfigError, EddyError, UserError
from pipeline.transport.kafka.client import unreachable
from services.cluster import need_topic

Record: TypeAlias = tuple[bytes, bytes | None]
"""Key and value; None ends the stream."""
CHUNK_BYTES = 65_536


def produce(args: argparse.Namespace) -> int:
    """Raises UserError for input that is not as the flags say, TopicError, Unreachable."""
    headers = [_header(text) for text in args.header]
    for flag in ("record_bytes", "steps_per_record"):
        if getattr(args, flag) < 1:
            raise ConfigError(f"--{flag.replace('_', '-')} is {getattr(args, flag)}: must be at least 1")
    if not args.key_separator:
        raise ConfigError("--key-separator is empty: give what stands between key and value")
    files = [Path(name) for name in args.files]
    for file in files:
        if not file.exists() or file.is_dir():
            raise UserError(f"no file {file}")
    written = asyncio.run(_produce(args, files, headers))
    if args.json:
        print(json.dumps({"topic": args.topic, "records": written.records, "value_bytes": written.value_bytes}))
    else:
        print(f"{written.records} records, {written.value_bytes} bytes, to {args.topic}", file=sys.stderr)
    return 0


def _header(text: str) -> tuple[str, bytes]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--header {text!r}: expected NAME=VALUE")
    return name, value.encode()


# ---- where records come from: iterators of lists, each list what was there at once


def read_records(args: argparse.Namespace, files: Sequence[Path], bar: tqdm[NoReturn]) -> Iterator[list[Record]]:
    """All records that the command line asks for, in order. Blocks on stdin. Raises UserError."""
    for file in files:
        if file.suffix == ".npy":
            yield from _array_records(file, (args.key or file.stem).encode(), args.steps_per_record, bar)
        else:
            with file.open("rb") as source:
                yield from _text_records(source, str(file), args, bar)
    if not files and not args.end:
        yield from _text_records(sys.stdin.buffer, "stdin", args, bar)
    if args.end:
        yield [(key.encode(), None) for key in args.end]


def _text_records(source: BinaryIO, name: str, args: argparse.Namespace, bar: tqdm[NoReturn]) -> Iterator[list[Record]]:
    if args.key is not None:
        key = args.key.encode()
        while piece := _read_some(source, args.record_bytes):
            bar.update(len(piece))
            yield [(key, piece)]
        return
    separator = args.key_separator.replace("\\t", "\t").encode()  # a shell has no easy way to give a tab
    number, rest = 0, b""
    while True:
        chunk = _read_some(source, CHUNK_BYTES)
        *lines, rest = (rest + chunk).split(b"\n")
        if not chunk:
            lines, rest = ([rest] if rest else []), b""
        records: list[Record] = []
        for line in lines:
            number += 1
            key, found, value = line.partition(separator)
            if found:
                records.append((key, value))
            elif line:
                raise UserError(
                    f"{name}, line {number}: no {args.key_separator!r} between key and value;"
                    " give --key-separator, or --key for the bytes of one stream"
                )
        if records:
            yield records
        if not chunk:
            return
        bar.update(len(chunk))


def _read_some(source: BinaryIO, limit: int) -> bytes:
    """What is there, up to ``limit`` bytes; waits only for the first. b"" at the end."""
    data: bytes = source.read1(limit)  # type: ignore[attr-defined]  # both stdin and open("rb") are buffered readers
    return data


def _array_records(file: Path, key: bytes, steps: int, bar: tqdm[NoReturn]) -> Iterator[list[Record]]:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: not an array that can be read ({error})") from None
    if array.ndim < 1 or array.dtype.hasobject:
        raise UserError(f"{file}: expected an array [steps, ...] of numbers, found shape {array.shape}, {array.dtype}")
    wire = array.dtype.newbyteorder("<")
    step_bytes = max(array.nbytes // max(len(array), 1), 1)
    rows = max(CHUNK_BYTES // step_bytes // steps, 1) * steps
    for start in range(0, len(array), rows):
        block = np.ascontiguousarray(array[start : start + rows]).astype(wire, copy=False)
        bar.update(block.nbytes)
        yield [(key, block[i : i + steps].tobytes()) for i in range(0, len(block), steps)]


# ---- and where they go


class _Written:
    """What the broker has acknowledged, and the first thing it refused."""

    def __init__(self) -> None:
        self.records = 0
        self.value_bytes = 0
        self.error: BaseException | None = None

    def watch(self, delivery: asyncio.Future[object], size: int) -> None:
        def done(future: asyncio.Future[object]) -> None:
            error = future.exception() if not future.cancelled() else None
            if error is None:
                self.records += 1
                self.value_bytes += size
            elif self.error is None:
                self.error = error

        delivery.add_done_callback(done)


async def _produce(args: argparse.Namespace, files: Sequence[Path], headers: list[tuple[str, bytes]]) -> _Written:
    await need_topic(args.bootstrap_servers, args.topic)
    producer = AIOKafkaProducer(
        bootstrap_servers=args.bootstrap_servers,
        enable_idempotence=True,  # a retry must not put a record in twice, or behind its successor
        compression_type=None if args.compression == "none" else args.compression,
        max_batch_size=262_144,
        max_request_size=16_777_216,
    )
    try:
        await producer.start()
    except KafkaError:
        raise unreachable(args.bootstrap_servers) from None
    written = _Written()
    total = sum(file.stat().st_size for file in files)
    # Silent where nobody watches, or where a person is typing.
    hide = not sys.stderr.isatty() or (not files and sys.stdin.isatty())
    try:
        with tqdm(total=total or None, unit="B", unit_scale=True, desc=args.topic, leave=False, disable=hide) as bar:
            async for records in _from_thread(read_records(args, files, bar)):
                for key, value in records:
                    delivery = await producer.send(args.topic, value, key, headers=headers)
                    written.watch(delivery, len(value or b""))
                if written.error is not None:
                    break
            await producer.flush()
    except KafkaError as error:
        raise EddyError(f"cannot write to {args.topic!r}: {error or type(error).__name__}") from None
    finally:
        await producer.stop()
    if written.error is not None:
        why = type(written.error).__name__
        raise EddyError(f"{args.topic!r} refused a record ({why}); {written.records} others were written")
    return written


async def _from_thread(source: Iterator[list[Record]]) -> AsyncIterator[list[Record]]:
    """What a blocking iterator yields, a few lists ahead.

    The thread is a daemon: one that waits for a terminal's next line must not keep the process from ending.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Queue[list[Record] | BaseException | None] = asyncio.Queue(maxsize=4)

    def pump() -> None:
        last: BaseException | None = None
        try:
            for records in source:
                asyncio.run_coroutine_threadsafe(ready.put(records), loop).result()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is raised again on the loop's side
            last = error
        asyncio.run_coroutine_threadsafe(ready.put(last), loop)

    threading.Thread(target=pump, name="eddy-input", daemon=True).start()
    while (item := await ready.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item
