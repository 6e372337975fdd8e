"""What every head must pass; a head's tests inherit ``HeadSuite`` and say what its records look like.

The measure is one stream alone, record by record and generated step by generated step, in a memory of its own. However
else it runs (beside others, several records a poll, continued from a snapshot in another place) its answers must be the
same, byte for byte, and so must its row. The outputs come from a stand-in for the model: a hash of all that the stream
was fed, so that a step too many, too few or in another order changes everything after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.columns import U8, AnyArray, Headers, Records, source_column
from pipeline.contract import Contract
from pipeline.heads.base import Answered, Finished, Head
from tests.contract.codec_suite import SLOTS, inherited, memory_among_neighbours

PARTITION = 3


@dataclass(frozen=True)
class Event:
    """One record of a stream: its steps, or the null value that ends it."""

    steps: tuple[int, ...] = ()
    headers: Headers = ()
    null: bool = False


@dataclass(frozen=True)
class Answer:
    value: bytes
    headers: Headers
    offset: int
    timestamp: int


@dataclass(frozen=True)
class Moment:
    """A stream after one record or generated step; ``events`` are behind it."""

    answers: tuple[Answer, ...]
    row: bytes
    model: int
    events: int


@dataclass
class Player:
    """A stream with its script, and where it is."""

    script: list[Event]
    key: bytes
    slot: int
    model: int = 0
    at: int = 0

    @property
    def offset(self) -> int:
        return 100 + 7 * self.at

    @property
    def timestamp(self) -> int:
        return 1_000_000 + self.at // 2


class StandIn:
    """Outputs by a hash of what was fed, one number a stream."""

    def __init__(self, contract: Contract, reads: Sequence[str], bias: AnyArray | float) -> None:
        self._outputs = [contract.output(name) for name in reads]
        self._bias = bias

    @staticmethod
    def step(model: int, token: int) -> int:
        return ((model ^ (token + 1)) * 0x9E3779B97F4A7C15 + 0x1234567) % 2**64

    def outputs(self, models: Sequence[int]) -> tuple[AnyArray, ...]:
        """``[len(models), *shape]`` each."""
        out: list[AnyArray] = []
        for o in self._outputs:
            rows = [np.random.default_rng(m).normal(0, 3, o.shape) + self._bias for m in models]
            out.append(np.array(rows).reshape(len(models), *o.shape).astype(o.dtype))
        return tuple(out)


class Road:
    """Calls a head as the worker does."""

    def __init__(self, head: Head, contract: Contract, memory: U8, bias: AnyArray | float) -> None:
        self.head, self.memory = head, memory
        self.model = StandIn(contract, head.reads, bias)

    def poll(self, players: Sequence[Player]) -> list[tuple[Answer, ...]]:
        """The next record of each (a player may be named several times) -> its answers."""
        models: list[int] = []
        kept: list[int] = []
        events: list[Event] = []
        offsets, timestamps = [], []
        for p in players:
            event = p.script[p.at]
            events.append(event)
            offsets.append(p.offset)
            timestamps.append(p.timestamp)
            for token in event.steps:
                p.model = self.model.step(p.model, token)
                models.append(p.model)
            kept.append(p.model if event.steps else 0xBAD)
            if event.null:
                p.model = 0
            p.at += 1
        headers = [e.headers for e in events]
        answered = self.head.answer(
            Finished(
                np.array([p.slot for p in players]),
                np.array([len(e.steps) for e in events]),
                [p.key for p in players],
                np.array(offsets),
                np.array(timestamps),
                headers if any(headers) else None,
                self.model.outputs(models if self.head.keeps == "all" else kept),
                np.array([e.null for e in events]),
            ),
            self.memory,
        )
        assert answered.offsets is None
        for p, event in zip(players, events):
            if event.null:
                self.memory[p.slot] = 0
        return self._answers(answered, offsets, timestamps)

    def feed(self, players: Sequence[Player]) -> list[tuple[Answer, ...]]:
        """One generated step of each -> its answers."""
        slots = np.array([p.slot for p in players])
        assert self.head.active(slots, self.memory).all()
        before = self.memory.copy()
        (tokens,) = self.head.feed(slots, self.memory)
        assert (self.memory == before).all(), "feed changed a row"
        for p, token in zip(players, tokens.tolist(), strict=True):
            p.model = self.model.step(p.model, token)
        outputs = self.model.outputs([p.model for p in players])
        answered = self.head.fed(slots, [p.key for p in players], outputs, self.memory)
        if not len(answered.index):
            return [()] * len(players)
        assert answered.offsets is not None
        assert answered.timestamps is not None
        offsets, timestamps = [0] * len(players), [0] * len(players)
        for i, offset, timestamp in zip(answered.index, answered.offsets, answered.timestamps, strict=True):
            offsets[i], timestamps[i] = int(offset), int(timestamp)
        return self._answers(answered, offsets, timestamps)

    def active(self, player: Player) -> bool:
        return self.head.generates and bool(self.head.active(np.array([player.slot]), self.memory)[0])

    @staticmethod
    def _answers(answered: Answered, offsets: list[int], timestamps: list[int]) -> list[tuple[Answer, ...]]:
        values = answered.values
        if isinstance(values, np.ndarray):
            assert values.dtype == np.uint8
            assert values.ndim == 2
            values = [row.tobytes() for row in values]
        extra = answered.extra if answered.extra is not None else [()] * len(values)
        assert len(values) == len(extra) == len(answered.index)
        assert (np.diff(answered.index) >= 0).all()
        out: list[tuple[Answer, ...]] = [()] * len(offsets)
        for i, value, headers in zip(answered.index.tolist(), values, extra):
            assert value is not None
            out[i] = (*out[i], Answer(value, tuple(headers), offsets[i], timestamps[i]))
        return out


class HeadSuite:
    """Inherit and set ``contract`` and the strategies."""

    contract: Contract
    bias: Any = 0.0
    """Added to every output of the stand-in, to make some tokens likelier."""

    def make(self) -> Head:
        raise NotImplementedError

    def headers(self) -> st.SearchStrategy[Headers]:
        """What a record may ask for."""
        return st.just(())

    def scripts(self) -> st.SearchStrategy[list[Event]]:
        steps = st.lists(st.integers(0, 5), max_size=3).map(tuple)
        record = st.builds(Event, steps, self.headers())
        return st.lists(st.one_of(record, record, record, st.just(Event(null=True))), min_size=1, max_size=4)

    def road(self, memory: U8) -> Road:
        return Road(self.make(), self.contract, memory, self.bias)

    def alone(self, script: list[Event], key: bytes, after: Moment | None = None) -> list[Moment]:
        """The measure; from a moment on, or from the beginning."""
        memory, _ = memory_among_neighbours(self.make().memory_bytes, seed=4)
        road, player = self.road(memory), Player(script, key, slot=5)
        memory[5] = 0
        if after is not None:
            player.model, player.at = after.model, after.events
            memory[5] = np.frombuffer(after.row, np.uint8)
        out: list[Moment] = []
        while road.active(player) or player.at < len(script):
            assert len(out) < 500, "a generation that does not end"
            (answers,) = road.feed([player]) if road.active(player) else road.poll([player])
            out.append(Moment(answers, memory[5].tobytes(), player.model, player.at))
        return out

    # ---- the tests

    def test_declares_what_it_is(self) -> None:
        head = self.make()
        assert head.reads
        assert all(self.contract.output(name) for name in head.reads)
        assert 0 <= head.memory_bytes < 4096
        assert head.refuse(None) == {}
        assert not head.generates or (head.choices, head.keeps) == ("outputs", "last")

    def test_a_record_without_steps_and_an_end_say_nothing(self) -> None:
        for event in (Event(), Event(null=True)):
            (moment,) = self.alone([event], b"k")
            assert moment.answers == ()
            assert moment.row == bytes(self.make().memory_bytes)

    @inherited
    @given(data=st.data())
    def test_neighbours_and_polls_change_nothing(self, data: st.DataObject) -> None:
        """Streams run beside each other in any order and grouping; rows are stretches of wider rows."""
        scripts = data.draw(st.lists(self.scripts(), min_size=1, max_size=4))
        slots = data.draw(st.permutations(range(SLOTS)))
        memory, whole = memory_among_neighbours(self.make().memory_bytes, seed=5)
        road = self.road(memory)
        players = [Player(script, b"key %d" % i, slots[i]) for i, script in enumerate(scripts)]
        mine = [p.slot for p in players]
        memory[mine] = 0
        others = np.ones(whole.shape, np.bool_)
        others[mine, 2 : 2 + memory.shape[1]] = False
        before = whole[others].tobytes()

        expected = {p.key: iter(self.alone(p.script, p.key)) for p in players}
        chance = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        running = list(players)
        while running:
            chosen = [p for p in running if chance.random() < 0.7]
            feeding = [p for p in chosen if road.active(p)]
            records: list[Player] = []
            for p in chosen:
                more = 1 if self.make().generates else int(chance.integers(1, 3))
                # A stream that ends gives its slot back with the poll: what its key brings next comes in another one.
                if any(event.null for event in p.script[p.at : p.at + more - 1]):
                    more = 1
                records += [p] * min(more, len(p.script) - p.at) if p not in feeding else []
            chance.shuffle(records)  # type: ignore[arg-type]
            got: list[tuple[Player, tuple[Answer, ...]]] = []
            if records:
                got += zip(records, road.poll(records), strict=True)
            if feeding:
                got += zip(feeding, road.feed(feeding), strict=True)
            for i, (p, answers) in enumerate(got):
                moment = next(expected[p.key])
                assert answers == moment.answers
                if p not in [q for q, _ in got[i + 1 :]]:
                    assert (memory[p.slot].tobytes(), p.model) == (moment.row, moment.model)
            running = [p for p in running if road.active(p) or p.at < len(p.script)]
        assert whole[others].tobytes() == before, "another stream's row was touched"

    @inherited
    @given(data=st.data())
    def test_a_snapshot_goes_on_elsewhere(self, data: st.DataObject) -> None:
        """The row after any record or generated step goes on in another slot, among others, as it would have."""
        script = data.draw(self.scripts())
        moments = self.alone(script, b"k")
        k = data.draw(st.integers(0, len(moments) - 1))
        after = moments[k]

        memory, _ = memory_among_neighbours(self.make().memory_bytes, seed=6)
        road = self.road(memory)
        moved = Player(script, b"k", slot=1, model=after.model, at=after.events)
        memory[1] = np.frombuffer(after.row, np.uint8)
        neighbour = Player(data.draw(self.scripts()) * 100, b"neighbour", slot=7)
        memory[7] = 0
        for moment in moments[k + 1 :]:
            first = [neighbour] if neighbour.at < len(neighbour.script) else []
            if road.active(moved):
                pair = [p for p in first if road.active(p)] + [moved]
                answers = road.feed(pair)[-1]
            else:
                pair = [p for p in first if not road.active(p)] + [moved]
                answers = road.poll(pair)[-1]
            assert Moment(answers, memory[1].tobytes(), moved.model, moved.at) == moment
        assert not road.active(moved)

    @inherited
    @given(data=st.data())
    def test_replay_gives_the_same(self, data: st.DataObject) -> None:
        """From the beginning, and from any snapshot."""
        script = data.draw(self.scripts())
        moments = self.alone(script, b"k")
        assert self.alone(script, b"k") == moments
        k = data.draw(st.integers(0, len(moments) - 1))
        assert self.alone(script, b"k", after=moments[k]) == moments[k + 1 :]

    @inherited
    @given(data=st.data())
    def test_merging_keeps_what_every_stream_says(self, data: st.DataObject) -> None:
        """All answers of some streams, interleaved, merged by parts: the same bytes of every record, in order."""
        scripts = data.draw(st.lists(self.scripts(), min_size=1, max_size=3))
        told = [
            [(b"key %d" % i, a) for m in self.alone(s, b"key %d" % i) for a in m.answers] for i, s in enumerate(scripts)
        ]
        order = data.draw(st.permutations([i for i, answers in enumerate(told) for _ in answers]))
        rest = [iter(answers) for answers in told]
        rows = [next(rest[i]) for i in order]
        head = self.make()
        with_source = data.draw(st.booleans())
        cut = data.draw(st.integers(0, len(rows)))
        parts = [head.merge(records_of(part, with_source)) for part in (rows[:cut], rows[cut:]) if part]
        merged = [row for part in parts for row in rows_of(part)]
        for key in {key for key, _ in rows}:
            before = [(a.timestamp, a.value) for k, a in rows if k == key]
            after = [(timestamp, value) for k, value, timestamp, _ in merged if k == key]
            assert joined(before) == joined(after)
            finishes = [h for k, a in rows if k == key for h in a.headers if h[0] == "eddy-finish"]
            assert finishes == [h for k, _, _, hs in merged if k == key for h in hs if h[0] == "eddy-finish"]

    @inherited
    @given(data=st.data())
    def test_any_outputs_and_headers_at_all(self, data: st.DataObject) -> None:
        """Numbers that are none, headers that are nonsense: no exception, and only the poll's rows change."""
        name = st.sampled_from(
            ["eddy-max-steps", "eddy-temperature", "eddy-top-k", "eddy-top-p", "eddy-seed", "eddy-stop", "x"]
        )
        value = st.one_of(st.binary(max_size=40), st.integers(0, 30).map(lambda i: b"%d" % i), st.just(b"0.5"))
        headers = data.draw(st.lists(st.lists(st.tuples(name, value), max_size=4), min_size=1, max_size=5))
        head = self.make()
        refused = head.refuse(headers)
        assert all(e.reason == "header" and str(e) for e in refused.values())
        good = [h for i, h in enumerate(headers) if i not in refused]
        n = len(good)
        counts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), np.int64)
        strange = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1, 3e38, -3e38, 1e-45], np.float32)
        chance = np.random.default_rng(data.draw(st.integers(0, 2**32)))

        def outputs(rows: int) -> tuple[AnyArray, ...]:
            specs = [self.contract.output(r) for r in head.reads]
            with np.errstate(invalid="ignore", over="ignore"):
                return tuple(chance.choice(strange, (rows, *o.shape)).astype(o.dtype) for o in specs)

        memory, whole = memory_among_neighbours(head.memory_bytes, seed=7)
        slots = np.arange(n)
        memory[slots] = 0
        before = whole.copy()
        keys = [b"%d" % i for i in range(n)]
        rows = int(counts.sum()) if head.keeps == "all" else n
        head.answer(Finished(slots, counts, keys, slots, slots, good, outputs(rows), np.zeros(n, np.bool_)), memory)
        for _ in range(40):
            slots = slots[head.active(slots, memory)]
            if not len(slots):
                break
            head.feed(slots, memory)
            head.fed(slots, [keys[s] for s in slots], outputs(len(slots)), memory)
        memory[:n] = 0
        assert (whole == before).all()


def records_of(rows: list[tuple[bytes, Answer]], with_source: bool) -> Records:
    """Answers as the worker hands them to ``merge``."""
    columns = (("eddy-source", source_column(PARTITION, np.array([a.offset for _, a in rows]))),)
    return Records(
        [key for key, _ in rows],
        [a.value for _, a in rows],
        np.array([a.timestamp for _, a in rows]),
        (("eddy-model", b"m/1"),),
        columns if with_source else (),
        [a.headers for _, a in rows],
    )


def rows_of(records: Records) -> list[tuple[bytes | None, bytes, int, Headers]]:
    values = records.values if not isinstance(records.values, np.ndarray) else [v.tobytes() for v in records.values]
    assert records.constant == (("eddy-model", b"m/1"),)
    assert all(len(column) == len(records) for _, column in records.columns)
    extra = records.extra if records.extra is not None else [()] * len(records)
    return [
        (k, v or b"", t, h) for k, v, t, h in zip(records.keys, values, records.timestamps.tolist(), extra, strict=True)
    ]


def joined(values: list[tuple[int, bytes]]) -> dict[int, bytes]:
    out: dict[int, bytes] = {}
    for timestamp, value in values:
        out[timestamp] = out.get(timestamp, b"") + value
    return out
