"""``eddy produce``: lines of text, the bytes of one stream, or arrays, to a topic, partitioned by Kafka's murmur2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.columns import AnyArray
from pipeline.contract import Contract
from pipeline.errors import ConfigError, UserError
from services.producing.files import existing
from services.producing.media import model_contract
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
    if (args.model is not None or args.dtype is not None) and not any(file.suffix == ".npy" for file in files):
        raise ConfigError("--model and --dtype are about .npy arrays, and there is none")
    total = sum(file.stat().st_size for file in files)
    typing = not files and sys.stdin.isatty()
    return send(args, lambda bar: read_records(args, files, bar), total or None, quiet=typing)


def read_records(args: argparse.Namespace, files: Sequence[Path], bar: Bar) -> Iterator[list[Record]]:
    """All records that the command line asks for, in order. Blocks on stdin. Raises UserError."""
    contract = model_contract(args.model, "tensor")
    for file in files:
        if file.suffix == ".npy":
            array = array_of(file, args.dtype, contract)
            for block in _blocks(array, file, args.steps_per_record, args.dtype):
                bar.update(block.nbytes)
                key, steps = (args.key or file.stem).encode(), args.steps_per_record
                yield [(key, block[i : i + steps].tobytes()) for i in range(0, len(block), steps)]
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


def array_of(file: Path, dtype: str | None, contract: Contract | None) -> AnyArray:
    """``[steps, ...]``, not turned into ``dtype`` yet. Raises UserError for what the model, or most, would misread."""
    try:
        array: AnyArray = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: not an array that can be read ({error})") from None
    if array.ndim < 1 or array.dtype.hasobject:
        raise UserError(f"{file}: expected an array [steps, ...] of numbers, found shape {array.shape}, {array.dtype}")
    if dtype is not None and not np.can_cast(array.dtype, dtype, "same_kind"):
        raise UserError(f"{file}: holds {array.dtype}, which --dtype {dtype} would not keep")
    found = np.dtype((dtype or array.dtype, array.shape[1:]))
    if contract is None:
        if found.base == np.float64 and dtype is None:
            # Nothing in a record says what its numbers are: they would be read as twice as many float32.
            raise UserError(
                f"{file}: holds float64, and most models read float32: --dtype float32 turns it into that,"
                " --dtype float64 writes it as it is, --model DIR holds it against a model"
            )
        return array
    wanted = _step_of(contract)
    if found.newbyteorder("<") != wanted.newbyteorder("<"):
        reads = ", ".join(f"{s.name} {s.dtype}{list(s.shape)}" for s in contract.steps)
        hint = ""
        if len(contract.steps) > 1:
            hint = "; save one array of a structured dtype with these fields"
        elif found.shape == wanted.shape and np.can_cast(array.dtype, wanted.base, "same_kind"):
            hint = f"; --dtype {wanted.base} turns it into that"
        raise UserError(f"{file}: has steps of {found.base}{list(found.shape)}, {contract.label} reads {reads}{hint}")
    return array


def _step_of(contract: Contract) -> np.dtype[Any]:
    """A step's bytes as numpy has them; fields where it has several inputs."""
    if len(contract.steps) == 1:
        return np.dtype((contract.steps[0].dtype, contract.steps[0].shape))
    return np.dtype([(s.name, s.dtype, s.shape) for s in contract.steps])


def _blocks(array: AnyArray, file: Path, steps: int, dtype: str | None) -> Iterator[AnyArray]:
    """Stretches of whole records, little-endian, of ``dtype``. Raises UserError for a number that does not fit it."""
    wire = (array.dtype if dtype is None else np.dtype(dtype)).newbyteorder("<")
    step_bytes = max(array.nbytes // max(len(array), 1), 1)
    rows = max(CHUNK_BYTES // step_bytes // steps, 1) * steps
    for start in range(0, len(array), rows):
        block = np.ascontiguousarray(array[start : start + rows])
        with np.errstate(over="ignore"):
            turned = block.astype(wire, copy=False)
        lost = np.isfinite(block) & ~np.isfinite(turned) if wire.kind == "f" else turned != block
        if dtype is not None and lost.any():
            raise UserError(f"{file}: has {block[lost][0]!r}, which {dtype} cannot hold")
        yield turned
