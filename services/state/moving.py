"""``eddy state import`` and ``eddy state repartition``: states into another group, or another number of partitions."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from pipeline.config import Config
from pipeline.contract import Contract
from pipeline.errors import ConfigError, ContractError, UserError
from pipeline.streams.snapshots import OTHER_ROWS, digest_of
from services.inspect import size
from services.state.export import as_rows, read_settled, settled, unmoved, width_of
from services.state.file import Head, Rows, read_head, read_rows
from services.state.group import Held, View, name_members, opened
from services.state.inspect import contract_of, group_of, row_bytes_of
from services.state.install import WORKER_ID, Installed, install


def import_states(args: argparse.Namespace) -> int:
    """Raises UserError for a file, model or group that does not fit, EddyError, CommitError, Unreachable."""
    path = Path(args.file)
    head = read_head(path)
    contract = contract_of(args.model)
    group = group_of(args.group, contract)
    if contract is not None:
        _fits(head, contract, path)
    installed = asyncio.run(_import(args, group, path, head))
    _say(args, installed, group, args.input)
    return 0


def _fits(head: Head, contract: Contract, path: Path) -> None:
    digest = digest_of(contract).hex()
    if (head.digest, head.row_bytes) != (digest, row_bytes_of(contract)) and head.row_bytes:
        written = f", written by {head.model}" if head.model else ""
        raise ContractError(
            f"{path} has states of a model with {OTHER_ROWS} ({head.digest}{written}; {contract.label} is {digest}):"
            " give the model that they are of"
        )


async def _import(args: argparse.Namespace, group: str, path: Path, head: Head) -> Installed:
    async def streams() -> AsyncIterator[Rows]:
        for rows in read_rows(path, head):
            yield rows

    config = _member(args, group, args.input)
    async with opened(args.bootstrap_servers, group, args.input, snapshots=False) as view:
        return await install(view, config, streams(), bytes.fromhex(head.digest))


def _member(args: argparse.Namespace, group: str, topic: str) -> Config:
    return Config(
        bootstrap_servers=args.bootstrap_servers,
        group=group,
        input=topic,
        worker_id=WORKER_ID,
        auto_offset_reset=args.auto_offset_reset,
        replication_factor=args.replication_factor,
    )


def repartition(args: argparse.Namespace) -> int:
    """Raises UserError for an input that is not all done or a group in use; EddyError, CommitError, Unreachable."""
    if args.to == args.input:
        raise ConfigError(f"--to is the input {args.input!r} itself: make a topic of the new number of partitions")
    group = group_of(args.group, contract_of(args.model))
    new_group = args.new_group or group
    installed = asyncio.run(_repartition(args, group, new_group))
    _say(args, installed, new_group, args.to)
    return 0


async def _repartition(args: argparse.Namespace, group: str, new_group: str) -> Installed:
    servers = args.bootstrap_servers
    async with (
        opened(servers, group, args.input) as source,
        opened(servers, new_group, args.to, snapshots=False) as target,
    ):
        # 1. Nobody works on the old input, and all of it is done and saved.
        members = await source.members()
        if members:
            raise UserError(
                f"group {group!r} has members: {name_members(members)}; stop its workers (SIGTERM) and run this again"
            )
        held = await source.held()
        finished(args.input, held)
        digest = settled(group, args.input, held)
        row_bytes = await width_of(source, digest)
        # 2. Every stream goes where the new topic's partitioner puts it. Just before the last transaction the old group
        # must be where it was: the states are then of all records that there ever were.
        return await install(
            target, _member(args, new_group, args.to), _streams(source, held, digest, row_bytes), digest
        )


def finished(topic: str, held: Sequence[Held]) -> None:
    """Raises UserError if the input holds a record that is not done."""
    for of in held:
        if of.lag > 0:
            at = of.committed.offset if of.committed is not None else of.log.start
            raise UserError(
                f"partition {of.partition} of {topic} is done up to {at} of {of.log.end}: stop its producers, let"
                " the worker finish, and drain it (SIGTERM)"
            )


async def _streams(source: View, held: Sequence[Held], digest: bytes, row_bytes: int) -> AsyncIterator[Rows]:
    for of in held:
        for rows in as_rows(of.partition, await read_settled(source, of, digest, row_bytes)):
            yield rows
    await unmoved(source, held)
    finished(source.topic, await source.held())


def _say(args: argparse.Namespace, installed: Installed, group: str, topic: str) -> None:
    if args.json:
        told = {
            "group": group,
            "input": topic,
            "streams": installed.streams,
            "bytes": installed.nbytes,
            "committed": installed.committed,
        }
        print(json.dumps(told))
        return
    at = ", ".join(map(str, installed.committed[:16])) + (", ..." if len(installed.committed) > 16 else "")
    print(
        f"{installed.streams} streams, {size(installed.nbytes)}, for group {group} of {topic}, which begins at offsets"
        f" {at}; start its workers",
        file=sys.stderr,
    )
