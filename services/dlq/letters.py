"""Dead letters, read back from ``<input>.dlq``: the original record, where it was, and why it could not be served."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiokafka.errors import KafkaError

from pipeline.columns import Headers, Segment
from pipeline.config import Config
from pipeline.errors import ConfigError, EddyError, TopicError
from pipeline.mark import Mark
from pipeline.transport.kafka.client import Client
from pipeline.transport.kafka.groups import stable_offsets
from pipeline.transport.kafka.logs import read_log
from pipeline.transport.kafka.topics import partitions_of
from services.cluster import connected
from services.keys import parse_key
from services.state.group import PATIENCE_S

SOURCE = "eddy-source"


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter. ``partition`` is that of both topics."""

    partition: int
    offset: int
    """In the topic of dead letters."""
    source: int
    """Offset of the record in the input."""
    key: bytes | None
    value: bytes | None
    headers: Headers
    """As the record had them."""
    timestamp_ms: int
    """The record's own."""
    reason: str
    message: str


def read_letters(segment: Segment) -> list[Letter]:
    """Without records that no worker has written there.

    What a worker adds stands around the record's own headers, which may have the same names: ``eddy-model`` if it is
    written at all and ``eddy-source`` before them, ``eddy-error`` and ``eddy-message`` behind.
    """
    letters = []
    for i, headers in enumerate(segment.headers or ()):
        first = 1 if headers and headers[0][0] == "eddy-model" else 0
        names = [name for name, _ in headers]
        if len(headers) < first + 3 or names[first] != SOURCE or names[-2:] != ["eddy-error", "eddy-message"]:
            continue
        source = headers[first][1]
        if len(source) != 12 or int.from_bytes(source[:4], "big") != segment.partition:
            continue
        letter = Letter(
            segment.partition,
            int(segment.offsets[i]),
            int.from_bytes(source[4:], "big"),
            segment.keys[i],
            segment.values[i],
            headers[first + 1 : -2],
            int(segment.timestamps[i]),
            headers[-2][1].decode("utf-8", "replace"),
            headers[-1][1].decode("utf-8", "replace"),
        )
        letters.append(letter)
    return letters


class Choice:
    """Which letters are meant: by key, by reason, by place in the input; without any of these, all."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Raises ConfigError."""
        self._key = parse_key(args.key, args.hex) if args.key is not None else None
        self._reason: str | None = args.reason
        self._places = {_place(text) for text in args.offset}

    def __call__(self, letter: Letter) -> bool:
        return (
            (self._key is None or letter.key == self._key)
            and (self._reason is None or letter.reason == self._reason)
            and (not self._places or (letter.partition, letter.source) in self._places)
        )

    def missing(self, found: Collection[tuple[int, int]]) -> list[str]:
        """Places asked for that are not among those of the letters chosen."""
        return [f"{p}:{o}" for p, o in sorted(self._places.difference(found))]


def _place(text: str) -> tuple[int, int]:
    partition, colon, offset = text.partition(":")
    if not (colon and partition.isdigit() and offset.isdigit()):
        raise ConfigError(f"--offset {text!r}: expected PARTITION:OFFSET of the input, as `eddy dlq list` shows them")
    return int(partition), int(offset)


class Box:
    """The dead letters of one input, and which of them were sent again; ``opened`` makes one."""

    def __init__(self, client: Client, topic: str, partitions: int) -> None:
        self.client, self.input, self.partitions = client, topic, partitions
        self.topic = Config(input=topic).dead_letters
        self.group = f"{self.topic}-replay"
        """Whose offsets say what was sent again: all below C, and D."""

    async def letters(self, partition: int, start: int = 0) -> AsyncIterator[list[Letter]]:
        """In their order, a fetch at a time, up to the present end. Raises CommitError, TakeoverError, EddyError."""
        try:
            async for segment in read_log(self.client, self.topic, partition, start, PATIENCE_S):
                yield read_letters(segment)
        except (TimeoutError, KafkaError) as error:
            raise EddyError(f"{self.topic}-{partition} cannot be read: {error!r}") from None

    async def replayed(self) -> list[Replayed]:
        """By partition, as the group has it now. Raises UserError, CommitError, EddyError."""
        offsets = await stable_offsets(self.client, self.group, self.topic, range(self.partitions), PATIENCE_S)
        found = []
        for partition in range(self.partitions):
            committed = offsets.get(partition)
            mark = Mark.decode(committed.metadata) if committed is not None else None
            below = committed.offset if committed is not None else 0
            found.append(Replayed(below, mark.done_above if mark is not None else ()))
        return found


@dataclass(frozen=True, slots=True)
class Replayed:
    """Which dead letters of a partition were sent again."""

    below: int
    """All before this offset."""
    above: tuple[tuple[int, int], ...] = ()
    """Runs beyond it, ``(first, end)``."""

    def __contains__(self, offset: int) -> bool:
        return offset < self.below or any(first <= offset < end for first, end in self.above)


@asynccontextmanager
async def opened(bootstrap_servers: str, topic: str) -> AsyncIterator[Box]:
    """Raises TopicError, Unreachable."""
    name = Config(input=topic).dead_letters
    async with connected(bootstrap_servers) as client:
        there = await partitions_of(client)
        if name not in there:
            inputs = ", ".join(sorted(t.removesuffix(".dlq") for t in there if t.endswith(".dlq")))
            raise TopicError(f"no topic {name!r} at {client.servers} (inputs with dead letters: {inputs or 'none'})")
        if there.get(topic) != there[name]:
            raise TopicError(
                f"{name!r} has {there[name]} partitions and {topic!r} has {there.get(topic, 0)}: these cannot be its"
                " dead letters"
            )
        yield Box(client, topic, there[name])
