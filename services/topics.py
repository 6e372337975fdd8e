"""``eddy topics create``: the topics that a model stands between."""

from __future__ import annotations

import argparse
import asyncio
import json

from pipeline.config import Config
from pipeline.errors import ConfigError
from services.cluster import connected, ensure_topics


def create(args: argparse.Namespace) -> int:
    """Makes what is missing, checks what is there. Raises TopicError, Unreachable."""
    if args.partitions < 1:
        raise ConfigError(f"--partitions is {args.partitions}: must be at least 1")
    names = [args.input, args.output, Config(input=args.input).dead_letters]
    made = asyncio.run(_create(args.bootstrap_servers, names, args.partitions, args.replication_factor))
    if args.json:
        topics = [{"name": name, "partitions": args.partitions, "made": name in made} for name in names]
        print(json.dumps({"topics": topics}))
    else:
        for name in names:
            print(f"{name}: {args.partitions} partitions{'' if name in made else ' (was there already)'}")
    return 0


async def _create(bootstrap_servers: str, names: list[str], partitions: int, replication_factor: int) -> set[str]:
    async with connected(bootstrap_servers) as client:
        return await ensure_topics(client, names, partitions, replication_factor)
