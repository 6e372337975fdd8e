"""``eddy produce``: lines of text, the bytes of one stream, or arrays, to a topic, partitioned by Kafka's murmur2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.errors import ConfigError, UserError
from services.producing.files import existing
from services.producing.send import Bar, Record, send

CHUNK_BYTES = 65_536


def produce(args: argparse.Namespace) -> int:
    """Raises UserError for input that is not as the flags say, TopicError, Unreachable."""
    for flag in ("record_bytes", "steps_per_record"):
        if getattr(args, flag) < 1:
            raise ConfigError(f"--{flag.replace('_', '-')} is {getattr(args, flag)}: must be at least 1")
    if not args.key_separator:
        raise ConfigError("--key-separator is empty: give what stands between key and value")
    files = existing(args.files)
    total = sum(file.stat().st_size for file in files)
    typing = not files and sys.stdin.isatty()
    return send(args, lambda bar: read_records(args, files, bar), total or None, quiet=typing)


def read_records(args: argparse.Namespace, files: Sequence[Path], bar: Bar) -> Iterator[list[Record]]:
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


def _text_records(source: BinaryIO, name: str, args: argparse.Namespace, bar: Bar) -> Iterator[list[Record]]:
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


def _array_records(file: Path, key: bytes, steps: int, bar: Bar) -> Iterator[list[Record]]:
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
