"""What every codec must pass; a codec's tests inherit ``CodecSuite`` and say what its bytes look like.

The measure is one stream alone, record by record, in a memory of its own. However else the same records come (cut
elsewhere, several a poll, beside others, continued from a snapshot in another place) the steps must be the same, byte
for byte, and so must the row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.codecs.base import Codec, Steps
from pipeline.columns import U8
from pipeline.contract import Contract

inherited = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow]
)
SLOTS = 9


@dataclass(frozen=True)
class Decoded:
    """What one record gave."""

    steps: tuple[bytes, ...]
    """The bytes of each step input."""
    count: int
    reason: str | None
    row: bytes | None
    """The stream's row after it; None where it cannot be seen (another record of the stream in the same poll)."""


def memory_among_neighbours(width: int, seed: int) -> tuple[U8, U8]:
    """A memory ``[SLOTS, width]``, full of others' bytes, that is a stretch of wider rows; and the whole."""
    whole = np.random.default_rng(seed).integers(0, 256, (SLOTS, width + 5)).astype(np.uint8)
    return whole[:, 2 : 2 + width], whole


def apart(steps: Steps, contract: Contract) -> list[tuple[bytes, ...]]:
    """The bytes of each record's steps; checks dtypes and shapes against the contract."""
    ends = np.cumsum(steps.counts)
    assert steps.counts.dtype == np.int64
    for array, spec in zip(steps.values, contract.steps, strict=True):
        assert array.dtype == np.dtype(spec.dtype)
        assert array.shape == (int(steps.counts.sum()), *spec.shape)
    for i in steps.failed:
        assert steps.counts[i] == 0
    return [tuple(a[end - n : end].tobytes() for a in steps.values) for end, n in zip(ends, steps.counts)]


class CodecSuite:
    """Inherit and set ``contract`` and the strategies."""

    contract: Contract
    bad: tuple[tuple[str, bytes], ...]
    """Records that fail on a new stream, with their reasons."""
    idle: tuple[bytes, ...] = (b"",)
    """Records that make no step and are none the worse for it."""

    def make(self) -> Codec:
        raise NotImplementedError

    def streams(self) -> st.SearchStrategy[bytes]:
        """The bytes of a whole stream, none of which fail; they may end anywhere."""
        raise NotImplementedError

    def cuttings(self, stream: bytes) -> st.SearchStrategy[list[bytes]]:
        """The stream as records: cut anywhere, some of them empty."""
        places = st.lists(st.integers(0, len(stream)), max_size=8).map(sorted)
        return places.map(lambda at: [stream[a:b] for a, b in zip([0, *at], [*at, len(stream)])])

    def pieces(self, stream: bytes) -> list[bytes]:
        """The stream as its smallest records."""
        return [stream[i : i + 1] for i in range(len(stream))]

    def records(self) -> st.SearchStrategy[list[bytes]]:
        """Records of one stream, some of them bad."""
        good = self.streams().flatmap(self.cuttings)
        wrong = st.sampled_from([value for _, value in self.bad])
        return st.lists(st.one_of(good, wrong.map(lambda v: [v])), max_size=4).map(
            lambda runs: [r for run in runs for r in run]
        )

    def alone(self, records: list[bytes], row: bytes | None = None) -> list[Decoded]:
        """The measure: one record a call."""
        codec = self.make()
        memory = np.zeros((2, codec.memory_bytes), np.uint8)
        if row is not None:
            memory[1] = np.frombuffer(row, np.uint8)
        out = []
        for record in records:
            steps = codec.decode([record], np.array([1]), memory)
            (parts,) = apart(steps, self.contract)
            reason = steps.failed[0].reason if steps.failed else None
            out.append(Decoded(parts, int(steps.counts[0]), reason, memory[1].tobytes()))
        assert not memory[0].any()
        return out

    def joined(self, decoded: list[Decoded]) -> tuple[bytes, ...]:
        return tuple(b"".join(d.steps[j] for d in decoded) for j in range(len(self.contract.steps)))

    # ---- the tests

    def test_declares_a_fixed_size_and_starts_from_zeros(self) -> None:
        codec = self.make()
        assert 0 <= codec.memory_bytes < 4096
        assert codec.step_bytes >= 1
        for record in self.idle:
            steps = codec.decode([record], np.array([1]), np.zeros((2, codec.memory_bytes), np.uint8))
            assert steps.counts.tolist() == [0]
            assert not steps.failed

    def test_a_poll_without_records_has_no_steps(self) -> None:
        codec = self.make()
        steps = codec.decode([], np.empty(0, np.int64), np.zeros((2, codec.memory_bytes), np.uint8))
        assert apart(steps, self.contract) == []

    @inherited
    @given(data=st.data())
    def test_cutting_elsewhere_gives_the_same_steps_and_row(self, data: st.DataObject) -> None:
        stream = data.draw(self.streams())
        one = self.alone(data.draw(self.cuttings(stream)))
        other = self.alone(data.draw(self.cuttings(stream)))
        assert [d.reason for d in one + other] == [None] * len(one + other)
        assert self.joined(one) == self.joined(other)
        assert one[-1].row == other[-1].row

    @inherited
    @given(data=st.data())
    def test_the_row_after_every_step_is_the_same_however_the_bytes_were_cut(self, data: st.DataObject) -> None:
        """Steps and row are a function of the bytes so far: at each place where any cutting has a record's end."""
        stream = data.draw(self.streams())
        smallest = self.pieces(stream)
        ends = np.cumsum([0, *map(len, smallest)]).tolist()
        decoded = self.alone(smallest)
        new = bytes(self.make().memory_bytes)
        at = {end: (self.joined(decoded[:k]), decoded[k - 1].row if k else new) for k, end in enumerate(ends)}
        records = data.draw(self.cuttings(stream))
        for k, (end, one) in enumerate(zip(np.cumsum(list(map(len, records))).tolist(), whole := self.alone(records))):
            assert (self.joined(whole[: k + 1]), one.row) == at[end]

    @inherited
    @given(data=st.data())
    def test_neighbours_and_polls_change_nothing(self, data: st.DataObject) -> None:
        """Several streams in shared polls, several records of a stream in one poll, rows inside wider rows."""
        streams = data.draw(st.lists(self.records(), min_size=1, max_size=4))
        order = data.draw(st.permutations([i for i, records in enumerate(streams) for _ in records]))
        slots = data.draw(st.permutations(range(SLOTS)))
        codec = self.make()
        memory, whole = memory_among_neighbours(codec.memory_bytes, seed=1)
        memory[slots[: len(streams)]] = 0
        others = np.ones(whole.shape, np.bool_)
        others[slots[: len(streams)], 2 : 2 + codec.memory_bytes] = False
        before = whole[others].tobytes()

        expected = [self.alone(records) for records in streams]
        at = [0] * len(streams)
        while order:
            size = data.draw(st.integers(1, len(order)))
            poll, order = order[:size], order[size:]
            names, values = [], []
            for i in poll:
                names.append((i, at[i]))
                values.append(streams[i][at[i]])
                at[i] += 1
            steps = codec.decode(values, np.array([slots[i] for i in poll]), memory)
            for j, ((i, k), parts) in enumerate(zip(names, apart(steps, self.contract), strict=True)):
                reason = steps.failed[j].reason if j in steps.failed else None
                want = expected[i][k]
                assert (parts, reason) == (want.steps, want.reason)
            for i in set(poll):
                assert memory[slots[i]].tobytes() == expected[i][at[i] - 1].row
        assert whole[others].tobytes() == before, "another stream's row was touched"

    @inherited
    @given(data=st.data())
    def test_a_snapshot_goes_on_elsewhere(self, data: st.DataObject) -> None:
        """Its row after any record, in another slot of another memory, gives what the replay of all gives."""
        records = data.draw(self.records())
        expected = self.alone(records)
        k = data.draw(st.integers(0, len(records)))
        codec = self.make()
        memory, _ = memory_among_neighbours(codec.memory_bytes, seed=2)
        slot = data.draw(st.integers(0, SLOTS - 1))
        row = expected[k - 1].row if k else bytes(codec.memory_bytes)
        assert row is not None
        memory[slot] = np.frombuffer(row, np.uint8)
        for record, want in zip(records[k:], expected[k:], strict=True):
            steps = codec.decode([record], np.array([slot]), memory)
            (parts,) = apart(steps, self.contract)
            reason = steps.failed[0].reason if steps.failed else None
            assert Decoded(parts, int(steps.counts[0]), reason, memory[slot].tobytes()) == want
        assert self.alone(records) == expected

    @inherited
    @given(data=st.data())
    def test_streams_end_as_each_would_alone(self, data: st.DataObject) -> None:
        """Their last steps come from their own rows, and no other row is touched."""
        streams = data.draw(st.lists(self.streams().flatmap(self.cuttings), min_size=1, max_size=3))
        rows = [self.alone(records)[-1].row for records in streams if records]
        codec = self.make()
        slots = data.draw(st.permutations(range(SLOTS)))[: len(rows)]
        memory, whole = memory_among_neighbours(codec.memory_bytes, seed=4)
        single = np.zeros((1, codec.memory_bytes), np.uint8)
        alone = []
        for slot, row in zip(slots, rows, strict=True):
            memory[slot] = single[0] = np.frombuffer(row or b"", np.uint8)
            last = codec.end(np.array([0]), single.copy())
            alone += [] if last is None else apart(last, self.contract)
        before = np.delete(whole, slots, axis=0).tobytes()
        together = codec.end(np.array(slots, np.int64), memory)
        assert np.delete(whole, slots, axis=0).tobytes() == before
        if together is not None:
            assert not together.failed
            assert apart(together, self.contract) == alone

    @inherited
    @given(data=st.data())
    def test_a_bad_record_has_no_effect_and_the_stream_goes_on(self, data: st.DataObject) -> None:
        """It leaves no steps, and what comes next is decoded as on a new stream."""
        reason, value = data.draw(st.sampled_from(self.bad))
        stream = data.draw(self.streams())
        after = data.draw(self.cuttings(stream))
        decoded = self.alone([value, *after])
        assert (decoded[0].reason, decoded[0].count) == (reason, 0)
        assert decoded[0].row == bytes(self.make().memory_bytes)
        assert decoded[1:] == self.alone(after)

    @inherited
    @given(data=st.data())
    def test_any_bytes_at_all(self, data: st.DataObject) -> None:
        """Nothing raises; a failure has a reason and a message; only the rows of the poll's streams change."""
        values = data.draw(st.lists(st.binary(max_size=24), max_size=12))
        slots = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values))), np.int64)
        codec = self.make()
        memory, whole = memory_among_neighbours(codec.memory_bytes, seed=3)
        memory[:4] = 0
        before = whole.copy()
        steps = codec.decode(values, slots, memory)
        apart(steps, self.contract)
        assert len(steps.counts) == len(values)
        for i, error in steps.failed.items():
            assert 0 <= i < len(values)
            assert error.reason in {reason for reason, _ in self.bad}
            assert str(error)
        memory[:4] = before[:4, 2 : 2 + codec.memory_bytes]
        assert (whole == before).all()
