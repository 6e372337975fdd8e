"""Records to a topic, partitioned by Kafka's murmur2, from an iterator that may block."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import NoReturn, TypeAlias

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError
from tqdm import tqdm

from pipeline.errors import ConfigError, EddyError, NotAuthorized
from pipeline.transport.kafka.client import unreachable
from services.cluster import need_topic

Record: TypeAlias = tuple[bytes, bytes | None]
"""Key and value; None ends the stream."""
Bar: TypeAlias = "tqdm[NoReturn]"
Source: TypeAlias = Callable[[Bar], Iterator[list[Record]]]
"""All records in order, in lists of what was there at once; moves the bar by bytes."""


def send(args: argparse.Namespace, source: Source, total: int | None, *, quiet: bool = False) -> int:
    """Writes all records and says so; the exit code. ``total``: bytes that the bar goes to; ``quiet``: no bar.

    Raises what the source raises, ConfigError, TopicError, Unreachable, and EddyError when a record is refused.
    """
    headers = [_header(text) for text in args.header]
    written = asyncio.run(_send(args, source, total, headers, quiet or not sys.stderr.isatty()))
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


async def _send(
    args: argparse.Namespace, source: Source, total: int | None, headers: list[tuple[str, bytes]], hide: bool
) -> _Written:
    await need_topic(args.bootstrap_servers, args.topic)
    written = _Written()
    async with producing(args.bootstrap_servers, args.topic, args.compression) as producer:
        with tqdm(total=total, unit="B", unit_scale=True, desc=args.topic, leave=False, disable=hide) as bar:
            async for records in _from_thread(source(bar)):
                for key, value in records:
                    delivery = await producer.send(args.topic, value, key, headers=headers)
                    written.watch(delivery, len(value or b""))
                if written.error is not None:
                    break
            await producer.flush()
    if written.error is not None:
        if isinstance(written.error, TopicAuthorizationFailedError):
            raise NotAuthorized(f"not authorized: allow Write on the topic {args.topic!r}")
        why = type(written.error).__name__
        raise EddyError(f"{args.topic!r} refused a record ({why}); {written.records} others were written")
    return written


@asynccontextmanager
async def producing(bootstrap_servers: str, topic: str, compression: str = "none") -> AsyncIterator[AIOKafkaProducer]:
    """A producer that puts no record in twice and keeps their order. Raises Unreachable, NotAuthorized, EddyError."""
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap_servers,
        enable_idempotence=True,  # a retry must not put a record in twice, or behind its successor
        compression_type=None if compression == "none" else compression,
        max_batch_size=262_144,
        max_request_size=16_777_216,
    )
    try:
        await producer.start()
    except KafkaError:
        raise unreachable(bootstrap_servers) from None
    try:
        yield producer
    except TopicAuthorizationFailedError:
        raise NotAuthorized(f"not authorized: allow Write on the topic {topic!r}") from None
    except KafkaError as error:
        raise EddyError(f"cannot write to {topic!r}: {error or type(error).__name__}") from None
    finally:
        await producer.stop()


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
