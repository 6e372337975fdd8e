"""``eddy dlq list``: what could not be served, and why."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from heapq import heappush, heappushpop
from typing import Any

from pipeline.errors import ConfigError
from services.dlq.letters import Choice, Letter, opened
from services.inspect import size
from services.keys import show_key
from services.values import escape


def list_letters(args: argparse.Namespace) -> int:
    """Raises ConfigError, TopicError, Unreachable, EddyError."""
    if args.limit < 1:
        raise ConfigError(f"--limit is {args.limit}: must be at least 1")
    told = asyncio.run(_list(args, Choice(args)))
    print(json.dumps(told, ensure_ascii=False) if args.json else "\n".join(_table(told)))
    return 0


async def _list(args: argparse.Namespace, chosen: Choice) -> dict[str, Any]:
    reasons: Counter[str] = Counter()
    newest: list[tuple[int, int, int, dict[str, Any]]] = []
    async with opened(args.bootstrap_servers, args.input) as box:
        replayed = await box.replayed()
        for partition in range(box.partitions):
            async for letters in box.letters(partition):
                for letter in filter(chosen, letters):
                    reasons[letter.reason] += 1
                    line = _fields(letter, letter.offset in replayed[partition])
                    push = heappush if len(newest) < args.limit else heappushpop
                    push(newest, (letter.timestamp_ms, partition, letter.offset, line))
    return {
        "topic": box.topic,
        "letters": reasons.total(),
        "by_reason": dict(reasons.most_common()),
        "shown": [line for *_, line in sorted(newest, key=lambda entry: entry[:3])],
    }


def _fields(letter: Letter, replayed: bool) -> dict[str, Any]:
    return {
        "partition": letter.partition,
        "offset": letter.source,
        "key": show_key(letter.key) if letter.key is not None else None,
        "reason": letter.reason,
        "message": letter.message,
        "timestamp": letter.timestamp_ms,
        "bytes": len(letter.value) if letter.value is not None else None,
        "letter_offset": letter.offset,
        "replayed": replayed,
    }


def _table(told: dict[str, Any]) -> Iterator[str]:
    for line in told["shown"]:
        at = datetime.fromtimestamp(line["timestamp"] / 1000, UTC).isoformat(timespec="seconds")
        key = escape(line["key"]) if line["key"] is not None else "(no key)"
        how = "null" if line["bytes"] is None else size(line["bytes"])
        again = "   replayed" if line["replayed"] else ""
        place = f"{line['partition']}:{line['offset']}"
        yield f"{at}  {place:<12} {key:<16} {how:<8} {line['reason']}: {escape(line['message'])}{again}"
    reasons = ", ".join(f"{reason} {count}" for reason, count in told["by_reason"].items())
    yield f"{told['letters']} dead letters in {told['topic']}{f': {reasons}' if reasons else ''}"
    if told["letters"] > len(told["shown"]):
        yield f"the newest {len(told['shown'])} are shown (--limit)"
