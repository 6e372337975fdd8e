"""``eddy topics create``: the topics that a model stands between."""

from __future__ import annotations

import argparse
import asyncio
import json

from pipeline.config import Config
from pipeline.errors import ConfigError, TopicError
from services.cluster import connected, find_topics, make_topic


def create(args: argparse.Namespace) -> int:
    """Makes what is missing, checks what is there. Raises TopicError, Unreachable."""
    if args.partitions < 1:
        raise ConfigError(f"--partitions is {args.partitions}: must be at least 1")
    names = [args.input, args.output, Config(input=args.input).dead_letters]
    made = asyncio.run(_create(args.bootstrap_servers, names, args.partitions, args.replication_factor))
    if args.json:
        print(json.dumps({"topics": [{"name": n, "partitions": args.partitions, "made": made[n]} for n in names]}))
    else:
        for name in names:
            print(f"{name}: {args.partitions} partitions{'' if made[name] else ' (was there already)'}")
    return 0


async def _create(bootstrap: str, names: list[str], partitions: int, replication_factor: int) -> dict[str, bool]:
    async with connected(bootstrap) as client:
        there = await find_topics(client)
        # All are checked before any is made: a half-made set would only have to be taken apart again.
        for name in names:
            if name in there and there[name].partitions != partitions:
                raise TopicError(
                    f"topic {name!r} has {there[name].partitions} partitions, not {partitions}: input, output and dead"
                    f" letters need as many each; give --partitions {there[name].partitions}, or another name"
                )
        return {
            name: name not in there and await make_topic(client, name, partitions, replication_factor) for name in names
        }
