"""``eddy tail``: the records of a topic as they become visible."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError

from pipeline.errors import EddyError
from pipeline.model_file import find_model, load_graph, read_contract
from pipeline.transport.kafka.client import unreachable
from services.cluster import need_topic
from services.values import Decoder, escape, headers_as_json

WAIT_MS = 250


def tail(args: argparse.Namespace) -> int:
    """Raises TopicError, Unreachable, and what a wrong --model raises."""
    contract = None
    if args.model is not None:
        file = find_model(Path(args.model))
        contract = read_contract(load_graph(file), str(file))
    asyncio.run(_tail(args, Decoder(contract)))
    return 0


async def _tail(args: argparse.Namespace, decoder: Decoder) -> None:
    left = args.count
    doubts: set[str] = set()
    """Each is said once."""
    async with following(args.bootstrap_servers, args.topic, args.from_beginning) as consumer:
        async for batch in batches(consumer, args.idle_timeout):
            for record in batch[:left]:
                doubt = decoder.doubt(record.headers, record.value)
                if doubt is not None and doubt not in doubts:
                    doubts.add(doubt)
                    print(f"note: {doubt}", file=sys.stderr)
                print(_as_json(record, decoder) if args.json else _as_line(record, decoder))
            sys.stdout.flush()
            if left is not None:
                left -= len(batch)
                if left <= 0:
                    return


def _as_json(record: ConsumerRecord[bytes, bytes], decoder: Decoder) -> str:
    key = record.key.decode("utf-8", "backslashreplace") if record.key is not None else None
    line = {
        "key": key,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "headers": headers_as_json(record.headers),
        **decoder.fields(record.value),
    }
    return json.dumps(line, ensure_ascii=False)


def _as_line(record: ConsumerRecord[bytes, bytes], decoder: Decoder) -> str:
    key = escape(record.key.decode("utf-8", "backslashreplace")) if record.key is not None else "(no key)"
    return f"{key}\t{decoder.line(record.value)}"


@asynccontextmanager
async def following(bootstrap_servers: str, topic: str, from_beginning: bool) -> AsyncIterator[AIOKafkaConsumer]:
    """A reader of all partitions, read committed, whose place is fixed when the context is entered.

    Raises TopicError, Unreachable, EddyError with what else a broker refuses.
    """
    partitions = await need_topic(bootstrap_servers, topic)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap_servers, isolation_level="read_committed", enable_auto_commit=False
    )
    try:
        await consumer.start()
        all_of_it = [TopicPartition(topic, p) for p in range(partitions)]
        consumer.assign(all_of_it)
        if from_beginning:
            await consumer.seek_to_beginning(*all_of_it)
        else:
            await consumer.seek_to_end(*all_of_it)
        yield consumer
    except KafkaConnectionError:
        raise unreachable(bootstrap_servers) from None
    except KafkaError as error:
        raise EddyError(f"cannot read {topic!r}: {error or type(error).__name__}") from None
    finally:
        await consumer.stop()


async def batches(
    consumer: AIOKafkaConsumer, idle_timeout_s: float | None = None
) -> AsyncIterator[list[ConsumerRecord[bytes, bytes]]]:
    """Records in lists as they arrive, of one partition in order. Ends after so long without any (None: never)."""
    last = time.monotonic()
    while idle_timeout_s is None or time.monotonic() - last < idle_timeout_s:
        fetched = await consumer.getmany(timeout_ms=WAIT_MS)
        if fetched:
            yield [record for records in fetched.values() for record in records]
            last = time.monotonic()
