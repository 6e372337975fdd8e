"""What every transport promises: one class of tests, inherited for each.

A transport's test gives a ``world``: the cluster it connects to, with ways to look at it from outside.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from pipeline.columns import Changelog, Committed, Part, as_list, source_column
from pipeline.errors import GroupRefused, IdentityTaken, OutcomeUnknown, PartRefused, TakeoverError, TopicError
from pipeline.transport.base import LogRange, Written
from tests.contract.transport_world import PARTITIONS, TIME_MS, WAIT_S, CopyingWorker, Member, World, part, records


def rows_of(stretch: Changelog) -> list[tuple[int, bytes, bytes | None]]:
    """Offset, key and value of each record."""
    return list(zip(stretch.offsets.tolist(), stretch.keys, as_list(stretch.values), strict=True))


class TransportSuite:
    """Inherit and give a ``world`` fixture."""

    @asynccontextmanager
    async def member(self, world: World, worker_id: str = "w0", **settings: object) -> AsyncIterator[Member]:
        """A started member with its first assignment."""
        member = Member(world.connect(world.config(worker_id, **settings)))
        await member.transport.start(member)
        try:
            await member.until_assigned()
            yield member
        finally:
            await member.transport.leave()
            await member.transport.stop()

    # What must exist

    async def test_a_missing_input_is_named(self, world: World) -> None:
        transport = world.connect(world.config(input="nowhere"))
        with pytest.raises(TopicError, match=r"'nowhere'.*eddy topics create"):
            await transport.start(Member(transport))
        await transport.stop()

    async def test_an_output_with_other_partitions_is_refused(self, world: World) -> None:
        other = world.output + "-other"
        await world.create(other, PARTITIONS + 1)
        transport = world.connect(world.config(output=other))
        with pytest.raises(TopicError, match=rf"(?s)({PARTITIONS}.*{PARTITIONS + 1}|{PARTITIONS + 1}.*{PARTITIONS})"):
            await transport.start(Member(transport))
        await transport.stop()

    async def test_partitions_are_known_after_start(self, world: World) -> None:
        async with self.member(world) as member:
            assert member.transport.partitions == PARTITIONS
            assert member.partitions == tuple(range(PARTITIONS))
            assert member.lost == []

    # Reading

    async def test_records_come_in_order_as_they_were_written(self, world: World) -> None:
        sent: dict[int, list[tuple[bytes | None, bytes | None, int]]] = {}
        for i in range(200):
            row = (
                None if i == 7 else b"k%d" % (i % 9),
                None if i % 50 == 49 else b"v%d" % i,
                1_600_000_000_000 + i * 7 - i % 3,
            )
            sent.setdefault(i % PARTITIONS, []).append(row)
            await world.produce(i % PARTITIONS, row[0], row[1], timestamp=row[2])
        async with self.member(world) as member:
            member.begin()
            got = await member.fetch(200)
        for partition, segments in got.items():
            rows = [
                (key, value, int(time))
                for s in segments
                for key, value, time in zip(s.keys, s.values, s.timestamps, strict=True)
            ]
            assert rows == sent[partition]
            offsets = np.concatenate([s.offsets for s in segments])
            assert offsets.dtype == np.int64
            assert offsets.tolist() == list(range(50))
            assert segments[-1].next_offset == 50
            assert all(s.headers is None for s in segments)
            assert sum(s.value_bytes for s in segments) == sum(len(v) for _, v, _ in rows if v is not None)

    async def test_headers_come_with_the_records_that_have_some(self, world: World) -> None:
        await world.produce(0, b"k", b"plain")
        await world.produce(
            0, b"k", b"rich", [("traceparent", b"00-1"), ("eddy-seed", b"7"), ("twice", b"1"), ("twice", b"2")]
        )
        async with self.member(world) as member:
            member.begin()
            segments = (await member.fetch(2))[0]
        headers = [h for s in segments for h in (s.headers if s.headers is not None else [()] * len(s))]
        assert [list(h) for h in headers] == [
            [],
            [("traceparent", b"00-1"), ("eddy-seed", b"7"), ("twice", b"1"), ("twice", b"2")],
        ]

    async def test_an_assignment_is_paused_until_it_is_resumed(self, world: World) -> None:
        await world.produce(1, b"k", b"v")
        async with self.member(world) as member:
            assert await member.transport.fetch(0.3) == []
            member.begin()
            assert list(await member.fetch(1)) == [1]

    async def test_a_fetch_without_data_returns_in_time(self, world: World) -> None:
        async with self.member(world) as member:
            member.begin()
            loop = asyncio.get_running_loop()
            began = loop.time()
            assert await member.transport.fetch(0.3) == []
            assert 0.25 < loop.time() - began < 2

    async def test_a_waiting_fetch_is_woken_by_a_record(self, world: World) -> None:
        async with self.member(world) as member:
            member.begin()
            fetching = asyncio.create_task(member.transport.fetch(WAIT_S))
            await asyncio.sleep(0.05)
            await world.produce(2, b"k", b"v")
            segments = await asyncio.wait_for(fetching, WAIT_S / 2)
            assert [(s.partition, s.values) for s in segments if len(s)] == [(2, [b"v"])]

    async def test_a_paused_partition_gives_nothing_and_loses_nothing(self, world: World) -> None:
        async with self.member(world) as member:
            member.begin()
            for turn in range(3):
                await world.produce(0, b"k", b"a%d" % turn)
                await world.produce(1, b"k", b"b%d" % turn)
                member.transport.pause([0])
                got = await member.fetch(1)
                assert [v for s in got[1] for v in s.values] == [b"b%d" % turn]
                assert 0 not in got
                member.transport.resume([0])
                got = await member.fetch(1)
                assert [v for s in got[0] for v in s.values] == [b"a%d" % turn]

    async def test_all_paused_waits_for_a_resume(self, world: World) -> None:
        await world.produce(3, b"k", b"v")
        async with self.member(world) as member:
            member.begin()
            member.transport.pause(range(PARTITIONS))
            fetching = asyncio.create_task(member.transport.fetch(WAIT_S))
            await asyncio.sleep(0.2)
            assert not fetching.done()
            member.transport.resume([3])
            segments = await asyncio.wait_for(fetching, WAIT_S / 2)
            assert [s.values for s in segments if len(s)] == [[b"v"]]

    async def test_seek_goes_back_and_forth(self, world: World) -> None:
        for i in range(30):
            await world.produce(0, b"k", b"%d" % i)
        async with self.member(world) as member:
            member.transport.seek(0, 25)
            member.transport.resume([0])
            assert [v for s in (await member.fetch(5))[0] for v in s.values] == [b"%d" % i for i in range(25, 30)]
            member.transport.seek(0, 3)
            got = (await member.fetch(27))[0]
            assert [v for s in got for v in s.values] == [b"%d" % i for i in range(3, 30)]
            assert got[0].offsets[0] == 3

    async def test_seek_between_fetches_wins_over_what_was_fetched_ahead(self, world: World) -> None:
        for i in range(10):
            await world.produce(0, b"k", b"%d" % i)
        async with self.member(world) as member:
            member.transport.resume([0])
            await asyncio.sleep(0.3)  # time to fetch ahead
            member.transport.seek(0, 8)
            assert [v for s in (await member.fetch(2))[0] for v in s.values] == [b"8", b"9"]

    async def test_lag_is_what_is_left_to_fetch(self, world: World) -> None:
        for i in range(10):
            await world.produce(0, b"k", b"%d" % i)
        async with self.member(world) as member:
            member.transport.seek(0, 0)
            member.transport.resume([0])
            await member.fetch(10)
            assert member.transport.lag([0]) == {0: 0}
            assert member.transport.lag([PARTITIONS + 7]) == {PARTITIONS + 7: -1}

    # Committing

    async def test_a_commit_shows_all_at_once(self, world: World) -> None:
        n = 50
        keys: list[bytes | None] = [b"key-%d" % i for i in range(n)]
        matrix = np.arange(n * 6, dtype=np.uint8).reshape(n, 6)
        source = source_column(2, np.arange(n))
        constant = (("eddy-model", b"m/1"),)
        async with self.member(world) as member:
            config, membership = world.config(), await member.until_assigned()
            written = await member.transport.commit(
                membership,
                [
                    part(
                        2,
                        n,
                        "the metadata",
                        outputs=records(keys, matrix, constant=constant, columns=(("eddy-source", source),)),
                        dead_letters=records([None, b"k"], [b"bad", None], extra=[[("why", b"x")], []]),
                        snapshots=records(keys[:3], [b"row", b"longer row", b""]),
                    ),
                    part(3, 7, "other"),
                ],
            )
            assert written == {2: Written(0, 3)}
            assert await member.transport.stable_offsets(membership, range(4)) == {
                0: None,
                1: None,
                2: Committed(n, "the metadata"),
                3: Committed(7, "other"),
            }
            outputs = await world.read(config.output)
            assert [s.partition for s in outputs] == [2] * n
            assert [s.key for s in outputs] == keys
            assert [s.value for s in outputs] == [bytes(row) for row in matrix]
            assert [s.timestamp for s in outputs] == [TIME_MS + i for i in range(n)]
            assert [list(s.headers) for s in outputs] == [
                [("eddy-model", b"m/1"), ("eddy-source", bytes(row))] for row in source
            ]
            dead = await world.read(config.dead_letters)
            assert [(s.key, s.value, list(s.headers)) for s in dead] == [
                (None, b"bad", [("why", b"x")]),
                (b"k", None, []),
            ]
            stretches = [s async for s in member.transport.changelog(2)]
            assert [k for s in stretches for k in s.keys] == keys[:3]
            assert [v for s in stretches for v in as_list(s.values)] == [b"row", b"longer row", b""]

    async def test_an_empty_part_moves_the_offset(self, world: World) -> None:
        async with self.member(world) as member:
            membership = await member.until_assigned()
            for committed in (3, 4):
                await member.transport.commit(membership, [part(0, committed, f"at {committed}")])
                found = await member.transport.stable_offsets(membership, [0])
                assert found == {0: Committed(committed, f"at {committed}")}
            assert await world.read(world.config().output) == []

    async def test_commits_follow_each_other(self, world: World) -> None:
        async with self.member(world) as member:
            membership = await member.until_assigned()
            for i in range(25):
                await member.transport.commit(
                    membership, [part(p, i, outputs=records([b"k"], [b"%d" % i])) for p in range(PARTITIONS)]
                )
            seen = await world.read(world.config().output)
        for p in range(PARTITIONS):
            assert [s.value for s in seen if s.partition == p] == [b"%d" % i for i in range(25)]

    async def test_a_transaction_may_be_opened_before_its_parts_are_known(self, world: World) -> None:
        async with self.member(world) as member:
            membership, transport = await member.until_assigned(), member.transport

            def parts(turn: int) -> list[Part]:
                out = records([b"k"], [b"%d" % turn])
                return [part(1, turn, outputs=out), part(2, turn, outputs=out), part(0, turn, snapshots=out)]

            await transport.open([0, 1], [0])
            await transport.open([1], [3])
            await transport.commit(membership, parts(1))
            await transport.open([0, 1, 2, 3], [])
            await transport.settle()  # nothing of it is left
            await transport.commit(membership, parts(2))
            await transport.open([3], [3])
            await transport.commit(membership, [part(0, 3, "no records")])
            await transport.open([1], [])
            another = replace(membership, generation=membership.generation + 1)
            with pytest.raises(GroupRefused):
                await transport.commit(another, parts(4))
            await transport.commit(membership, parts(5))
            seen = await world.read(world.config().output)
            for p, values in ((0, []), (1, [b"1", b"2", b"5"]), (2, [b"1", b"2", b"5"]), (3, [])):
                assert [s.value for s in seen if s.partition == p] == values
            assert await transport.stable_offsets(membership, [0, 1]) == {0: Committed(5, "m"), 1: Committed(5, "m")}

    async def test_an_old_membership_is_refused_and_the_writer_stays_good(self, world: World) -> None:
        async with self.member(world) as member:
            old = await member.until_assigned(4)
            async with self.member(world, "w1"):
                new = await member.until_assigned(2)
                assert new != old
                with pytest.raises(GroupRefused):
                    await member.transport.commit(old, [part(0, 1, outputs=records([b"k"], [b"zombie"]))])
                mine = member.partitions[0]
                await member.transport.commit(new, [part(mine, 1, outputs=records([b"k"], [b"alive"]))])
            assert [s.value for s in await world.read(world.config().output)] == [b"alive"]

    async def test_who_has_left_is_refused(self, world: World) -> None:
        async with self.member(world) as member:
            membership = await member.until_assigned()
            await member.transport.leave()
            with pytest.raises(GroupRefused):
                await member.transport.commit(membership, [part(0, 1, outputs=records([b"k"], [b"late"]))])
        assert await world.read(world.config().output) == []

    async def test_a_part_that_can_never_be_written_is_named(self, world: World) -> None:
        async with self.member(world) as member:
            membership = await member.until_assigned()
            parts = [
                part(1, 5, outputs=records([b"k"], [b"fine"])),
                part(3, 5, outputs=records([b"k"], [bytes(range(256)) * 8192])),
            ]
            with pytest.raises(PartRefused) as refused:
                await member.transport.commit(membership, parts)
            assert refused.value.partition == 3
            with pytest.raises(OutcomeUnknown, match="settled"):
                await member.transport.commit(membership, parts[:1])
            await member.transport.settle()
            assert await member.transport.stable_offsets(membership, [1, 3]) == {1: None, 3: None}
            await member.transport.commit(membership, parts[:1])
            assert [s.value for s in await world.read(world.config().output)] == [b"fine"]

    async def test_a_cancelled_commit_leaves_the_writer_to_be_settled(self, world: World) -> None:
        async with self.member(world) as member:
            membership = await member.until_assigned()
            for i in range(8):
                one = [part(0, i, f"{i}", outputs=records([b"k"], [b"%d" % i]))]
                committing = asyncio.create_task(member.transport.commit(membership, one))
                for _ in range(i):
                    await asyncio.sleep(0.001)
                committing.cancel()
                (outcome,) = await asyncio.gather(committing, return_exceptions=True)
                await member.transport.settle()
                found = (await member.transport.stable_offsets(membership, [0]))[0]
                visible = [s.value for s in await world.read(world.config().output)]
                # Decided one way or the other, offset and records together.
                happened = found is not None and found.metadata == f"{i}"
                assert happened or outcome is not None
                assert (b"%d" % i in visible) == happened

    async def test_several_batches_of_one_partition_stay_in_order(self, world: World) -> None:
        n = 3_000
        rng = np.random.default_rng(5)
        rows = rng.integers(0, 256, (n, 1024), dtype=np.uint8)
        keys: list[bytes | None] = [b"%05d" % i for i in range(n)]
        async with self.member(world) as member:
            membership = await member.until_assigned()
            written = await member.transport.commit(membership, [part(0, n, snapshots=records(keys, rows))])
            assert written == {0: Written(0, n)}
            stretches = [s async for s in member.transport.changelog(0)]
        assert [k for s in stretches for k in s.keys] == keys
        assert [v for s in stretches for v in as_list(s.values)] == [bytes(row) for row in rows]
        assert np.concatenate([s.offsets for s in stretches]).tolist() == list(range(n))
        for one, after in pairwise(stretches):
            assert one.next_offset <= (int(after.offsets[0]) if len(after.keys) else after.next_offset)

    async def test_outputs_are_published_without_a_transaction(self, world: World) -> None:
        n = 3_000
        keys: list[bytes | None] = [b"%05d" % i for i in range(n)]
        rows = np.random.default_rng(6).integers(0, 256, (n, 1024), dtype=np.uint8)
        async with self.member(world) as member:
            membership = await member.until_assigned()
            parts = [
                part(0, 9, "no offset", outputs=records(keys, rows), snapshots=records([b"k"], [b"not this"])),
                part(3, 9, dead_letters=records([b"k"], [b"nor that"])),
            ]
            await member.transport.publish(parts)
            # Acknowledged is visible, to whoever reads committed too.
            outputs = await world.read(world.config().output)
            assert [(s.partition, s.key, s.value) for s in outputs] == [(0, keys[i], bytes(rows[i])) for i in range(n)]
            assert await member.transport.stable_offsets(membership, [0, 3]) == {0: None, 3: None}
            assert [s async for s in member.transport.changelog(0)] == []
            assert await world.read(world.config().dead_letters) == []
            with pytest.raises(PartRefused) as refused:
                await member.transport.publish([part(1, 1, outputs=records([b"k"], [bytes(range(256)) * 8192]))])
            assert refused.value.partition == 1
            for i in range(3):
                await member.transport.publish([part(2, 1, outputs=records([b"k"], [b"%d" % i]))])
            await member.transport.commit(membership, [part(2, 1, outputs=records([b"k"], [b"in one"]))])
            await member.transport.publish([part(2, 1, outputs=records([b"k"], [b"after"]))])
            outputs = await world.read(world.config().output)
        assert [s.value for s in outputs if s.partition == 2] == [b"0", b"1", b"2", b"in one", b"after"]

    # Takeover

    async def test_a_changelog_is_read_from_an_offset_on(self, world: World) -> None:
        n = 12
        sent: list[tuple[int, bytes | None, bytes | None]] = []
        async with self.member(world) as member:
            membership, transport = await member.until_assigned(), member.transport
            for turn in range(4):
                keys: list[bytes | None] = [b"%d-%d" % (turn, i) for i in range(n)]
                values: list[bytes | None] = [b"v" * i if i % 5 else None for i in range(n)]
                written = await transport.commit(membership, [part(1, turn, snapshots=records(keys, values))])
                where = written[1]
                assert where.next - where.first == n
                sent += zip(range(where.first, where.next), keys, values)
            for start in (0, 1, n - 1, n, n + 1, 2 * n + 5, sent[-1][0]):
                stretches = [s async for s in transport.changelog(1, start)]
                rows = [row for s in stretches for row in rows_of(s)]
                assert rows == [row for row in sent if row[0] >= start]
                assert all(s.offsets.dtype == np.int64 for s in stretches)
            end = stretches[-1].next_offset
            assert end > sent[-1][0]
            assert [s async for s in transport.changelog(1, end)] == []
            with pytest.raises(TakeoverError, match=rf"ends at {end}, before {end + 1}") as trouble:
                _ = [s async for s in transport.changelog(1, end + 1)]
            assert trouble.value.partition == 1
            # Where it went on meanwhile, there is more.
            await transport.commit(membership, [part(1, 9, snapshots=records([b"new"], [b"er"]))])
            assert [k async for s in transport.changelog(1, end) for k in s.keys] == [b"new"]

    async def test_many_changelogs_are_read_at_once(self, world: World) -> None:
        n, width = 600, 3_000
        rng = np.random.default_rng(7)
        async with self.member(world) as member:
            membership, transport = await member.until_assigned(), member.transport
            sent: dict[int, list[tuple[bytes | None, bytes]]] = {p: [] for p in range(PARTITIONS)}
            for turn in range(3):
                parts = []
                for p in range(PARTITIONS):
                    rows = rng.integers(0, 256, (n, width), dtype=np.uint8)
                    keys: list[bytes | None] = [b"%d-%d" % (turn, i) for i in rng.permutation(n).tolist()]
                    parts.append(part(p, turn, snapshots=records(keys, rows)))
                    sent[p] += [(key, bytes(row)) for key, row in zip(keys, rows)]
                await transport.commit(membership, parts)

            async def read(partition: int, start: int) -> list[tuple[bytes, bytes | None]]:
                return [row[1:] async for s in transport.changelog(partition, start) for row in rows_of(s)]

            # Two of the same partition too: a takeover that was given up may not have ended yet.
            tasks = [read(p, 0) for p in range(PARTITIONS)] + [read(2, n // 2)]
            found = await asyncio.gather(*tasks)
            assert found[:PARTITIONS] == [sent[p] for p in range(PARTITIONS)]
            assert found[PARTITIONS] == sent[2][n // 2 :]
            # Whoever stops in the middle leaves the others alone.
            giving_up = transport.changelog(0)
            await anext(aiter(giving_up))
            assert await read(1, 0) == sent[1]

    async def test_changelogs_are_followed_as_they_go_on(self, world: World) -> None:
        async with self.member(world) as member:
            membership, transport = await member.until_assigned(), member.transport

            async def commit(*partitions: int, value: bytes | None) -> None:
                row = records([b"k", b"l"], [value, b"row"])
                await transport.commit(membership, [part(p, 1, snapshots=row) for p in partitions])

            await commit(0, 1, 2, value=b"before")
            at = {0: 0, 1: 1, 3: 0}
            seen: list[tuple[int, int, bytes, bytes | None]] = []
            heard_ms: dict[int, int] = {}
            grown = asyncio.Condition()

            async def follow() -> None:
                async for partition, stretch in transport.follow(at):
                    at[partition] = stretch.next_offset
                    async with grown:
                        heard_ms[partition] = max(heard_ms.get(partition, 0), stretch.whole_ms)
                        seen.extend((partition, *row) for row in rows_of(stretch))
                        grown.notify_all()

            async def until(n: int) -> None:
                async with asyncio.timeout(WAIT_S), grown:
                    await grown.wait_for(lambda: len(seen) >= n)

            began_ms = int(time.time() * 1000)
            following = asyncio.create_task(follow())
            await until(3)
            assert sorted(seen) == [(0, 0, b"k", b"before"), (0, 1, b"l", b"row"), (1, 1, b"l", b"row")]
            # Of each it is told when there was nothing more, where nothing was ever written too.
            async with asyncio.timeout(WAIT_S), grown:
                await grown.wait_for(lambda: heard_ms.keys() == at.keys() and min(heard_ms.values()) >= began_ms)
            assert max(heard_ms.values()) <= int(time.time() * 1000)
            seen.clear()
            await commit(1, 2, 3, value=None)
            await until(4)
            assert [row[2:] for row in seen if row[0] == 1] == [(b"k", None), (b"l", b"row")]
            assert [row[2:] for row in seen if row[0] == 3] == [(b"k", None), (b"l", b"row")]
            assert {row[0] for row in seen} == {1, 3}
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            seen.clear()
            # Anew, from where it had come, and with another one beside.
            await commit(0, value=b"after")
            at |= {2: 0}
            following = asyncio.create_task(follow())
            await until(6)
            assert [row[2:] for row in seen if row[0] == 0] == [(b"k", b"after"), (b"l", b"row")]
            assert [row[3] for row in seen if row[0] == 2] == [b"before", b"row", None, b"row"]
            assert len(seen) == 6
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            at = {0: at[0], 3: 1_000}
            with pytest.raises(TakeoverError, match=r"ends.* before 1000: it was made anew") as trouble:
                await asyncio.wait_for(follow(), WAIT_S)
            assert len(seen) == 6
            assert trouble.value.partition == 3

    async def test_an_empty_changelog_ends_at_once(self, world: World) -> None:
        async with self.member(world) as member:
            assert [s async for s in member.transport.changelog(0)] == []

    async def test_ranges_and_starting_offsets(self, world: World) -> None:
        for i in range(6):
            await world.produce(1, b"k", b"%d" % i)
        async with self.member(world) as member:
            assert await member.transport.log_ranges([0, 1]) == {0: LogRange(0, 0), 1: LogRange(0, 6)}
            assert await member.transport.starting_offset(1) == 0
        async with self.member(world, auto_offset_reset="latest") as member:
            assert await member.transport.starting_offset(1) == 6

    # The group

    async def test_members_are_known_by_name(self, world: World) -> None:
        async with self.member(world, "w1") as first:
            await first.until_assigned(4)
            (alone,) = await first.transport.members()
            assert (alone.name, alone.partitions) == ("w1", (0, 1, 2, 3))
            async with self.member(world, "w0") as second:
                await second.until_assigned(2)
                await first.until_assigned(2)
                both = await first.transport.members()
                assert [m.name for m in both] == ["w0", "w1"]
                assert [m.partitions for m in both] == [second.partitions, first.partitions]
            await first.until_assigned(4)
            assert [m.name for m in await first.transport.members()] == ["w1"]

    async def test_two_members_share_and_a_leaver_hands_over(self, world: World) -> None:
        async with self.member(world, "w0") as first:
            before = await first.until_assigned(4)
            async with self.member(world, "w1") as second:
                await first.until_assigned(2)
                await second.until_assigned(2)
                assert sorted(first.partitions + second.partitions) == [0, 1, 2, 3]
                assert [sorted(partitions) for partitions in first.revoked] == [[0, 1, 2, 3]]
                assert second.revoked == []
            loop = asyncio.get_running_loop()
            left = loop.time()
            after = await first.until_assigned(4)
            # At once, and not after a session's end.
            assert loop.time() - left < 4
            assert after.generation > before.generation
            assert first.lost == []

    async def test_a_second_process_with_one_worker_id_ends_one_of_them(self, world: World) -> None:
        first = Member(world.connect(world.config("same")))
        second = Member(world.connect(world.config("same")))
        await first.transport.start(first)
        await first.until_assigned(4)
        reasons: list[Exception] = []
        try:
            await second.transport.start(second)
        except IdentityTaken as reason:
            reasons.append(reason)
        else:
            reasons.append(await first.until_lost())
            await second.until_assigned(4)
            await asyncio.sleep(2.5)  # two heartbeats: nobody is thrown out again
        assert len(reasons) + len(second.lost) == 1
        assert isinstance(reasons[0], IdentityTaken)
        assert "same" in str(reasons[0])
        for member in (second, first):
            await member.transport.stop()

    async def test_rebalances_lose_repeat_and_mix_nothing(self, world: World) -> None:
        """A copying worker on a group that grows and shrinks while records come: each shows once, in order."""
        total = 400
        workers = {name: CopyingWorker(world, name) for name in ("w0", "w1", "w2")}
        await workers["w0"].start()
        for i in range(total):
            await world.produce(i % PARTITIONS, b"k%d" % (i % 7), b"%d" % i)
            if i == 100:
                await workers["w1"].start()
            if i == 200:
                await workers["w2"].start()
            if i == 300:
                await workers["w1"].stop()
        output = world.config().output
        async with asyncio.timeout(WAIT_S * 2):
            while len(await world.read(output)) < total:
                await asyncio.sleep(0.1)
        for name in ("w0", "w2"):
            await workers[name].stop()
        seen = await world.read(output)
        for p in range(PARTITIONS):
            assert [s.value for s in seen if s.partition == p] == [b"%d" % i for i in range(p, total, PARTITIONS)]
        assert [w.member.lost for w in workers.values()] == [[], [], []]
