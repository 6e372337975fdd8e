"""``eddy state end``: a null record in the input ends a stream, in its order, as its producer would (X15)."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence

from pipeline.errors import ConfigError
from services.cluster import need_topic
from services.keys import parse_key, partition_of, show_key
from services.producing.send import producing


def end(args: argparse.Namespace) -> int:
    """Raises ConfigError, TopicError, Unreachable, EddyError when a record is refused."""
    keys = list(dict.fromkeys(parse_key(text, args.hex) for text in args.keys))
    for told in asyncio.run(_end(args.bootstrap_servers, args.input, args.partition, keys)):
        if args.json:
            print(json.dumps(told, ensure_ascii=False))
        else:
            print(f"{told['key']}: ended by {args.input}, partition {told['partition']}, offset {told['offset']}")
    return 0


async def _end(
    bootstrap_servers: str, topic: str, partition: int | None, keys: Sequence[bytes]
) -> list[dict[str, str | int]]:
    partitions = await need_topic(bootstrap_servers, topic)
    if partition is not None and not 0 <= partition < partitions:
        raise ConfigError(f"--partition is {partition}: {topic} has 0 to {partitions - 1}")
    told: list[dict[str, str | int]] = []
    async with producing(bootstrap_servers, topic) as producer:
        for key in keys:
            where = partition if partition is not None else partition_of(key, partitions)
            written = await producer.send_and_wait(topic, None, key, partition=where)
            told.append({"key": show_key(key), "partition": written.partition, "offset": written.offset})
    return told
