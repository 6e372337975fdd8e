"""States of streams go to another group, another cluster or another number of partitions, as if undisturbed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.columns import as_list
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.streams.snapshots import Restored, Snapshots
from services.broker import Broker
from services.cli import build_parser
from services.state import export, install, moving
from services.state.file import Rows, read_head, read_rows
from services.state.group import Held, View, opened
from tests.kafka.commands import eddy, one_line, told
from tests.kafka.harness import Topics, eventually, make_topics, new_producer, new_seed, produce, workers
from tests.kafka.reading import Reader, Record, read_all
from tests.models import lstm_module, lstm_tensor, rolling_hash, rolling_hash_reference

pytestmark = pytest.mark.kafka
Unique = Callable[[str], str]
STREAMS = 60


def steps(*values: int) -> bytes:
    return np.array(values, "<i8").tobytes()


def of(topics: Topics) -> tuple[str, ...]:
    """The group that ``topics.worker`` gives, and its input."""
    return ("--group", f"{topics.input}-g", "--input", topics.input)


def served(topics: Topics, model: Path, outputs: int) -> list[Record]:
    """What a worker has answered when there are so many outputs and the input is done; it is drained."""
    worker = topics.worker(model)
    with workers(worker):
        judged = Reader(topics.address, topics.output)
        worker.wait_ready()
        judged.until(outputs, of=[worker])
        eventually(lambda: worker.metrics().get("eddy_lag_records") == 0, 30, "the input is done")
        worker.drained()
        records = judged.rest()
        judged.close()
    return records


def hashed(records: Sequence[Record]) -> dict[bytes, list[int]]:
    """The outputs of every stream, in their order."""
    found: dict[bytes, list[int]] = {}
    for r in records:
        found.setdefault(r.key or b"", []).extend(np.frombuffer(r.value or b"", np.int64).tolist())
    return found


class Hashes:
    """Records for streams of the rolling hash, and what must become of them."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._sent: dict[bytes, list[int]] = {}

    def send(self, topics: Topics, n: int) -> dict[bytes, list[int]]:
        """``n`` records; the right outputs of these, by stream."""
        records = []
        before = {key: len(values) for key, values in self._sent.items()}
        for i in self._rng.integers(0, STREAMS, n).tolist():
            key, value = b"stream-%d" % i, int(self._rng.integers(0, 1 << 40))
            self._sent.setdefault(key, []).append(value)
            records.append((key, steps(value)))
        produce(topics.address, topics.input, records)
        right = {k: rolling_hash_reference(np.array(v))[before.get(k, 0) :].tolist() for k, v in self._sent.items()}
        return {key: outputs for key, outputs in right.items() if outputs}

    def forget(self, key: bytes) -> None:
        del self._sent[key]

    @property
    def alive(self) -> int:
        return len(self._sent)


def test_a_group_goes_on_elsewhere_where_it_was_exported(cluster: Broker, unique: Unique, tmp_path: Path) -> None:
    """Into another number of partitions as well: of another cluster nothing is known."""
    here, there = make_topics(cluster.address, unique, 3), make_topics(cluster.address, unique, 5)
    model = rolling_hash(tmp_path / "hash" / "1")
    hashes = Hashes(new_seed())
    first = hashes.send(here, 400)
    produce(here.address, here.input, [(b"stream-7", None)])
    assert hashed(served(here, model, 400)) == first
    hashes.forget(b"stream-7")

    file = tmp_path / "hash.states"
    out = told("state", "export", *of(here), "--model", model, "--output", file)
    row = hashes.alive * (8 + 24 + 8)
    assert (out["streams"], out["waiting"]) == (hashes.alive, 0)
    assert row < out["bytes"] < 2 * row
    head = read_head(file)
    assert (head.group, head.topic, head.partitions, head.row_bytes) == (f"{here.input}-g", here.input, 3, 8)
    assert (head.model, head.committed) == ("rolling-hash/1", [p["committed"] for p in summary(here)])
    rows = list(read_rows(file, head))
    assert sum(len(r.keys) for r in rows) == hashes.alive

    # The topic may hold records already: they are what the streams go on with.
    moved = hashes.alive
    second = hashes.send(there, 150)
    brought = told("state", "import", file, *of(there), "--model", model)
    assert (brought["streams"], brought["committed"]) == (moved, [0] * 5)
    assert all(p["note"] is None and not p["problems"] for p in summary(there))
    assert sum(p["streams"] for p in summary(there)) == moved
    third = hashes.send(there, 150)
    assert hashed(served(there, model, 300)) == {k: second.get(k, []) + third.get(k, []) for k in {*second, *third}}


def summary(topics: Topics) -> list[dict[str, object]]:
    partitions: list[dict[str, object]] = told("state", "inspect", *of(topics))["partitions"]
    return partitions


def test_an_import_may_begin_behind_what_the_topic_holds(cluster: Broker, unique: Unique, tmp_path: Path) -> None:
    """A mirrored topic holds the records that the states are of."""
    here, there = make_topics(cluster.address, unique, 2), make_topics(cluster.address, unique, 2)
    model = rolling_hash(tmp_path / "hash" / "1")
    hashes = Hashes(new_seed())
    hashes.send(here, 100)
    served(here, model, 100)
    mirrored = [(r.key, r.value) for r in read_all(here.address, here.input)]
    produce(there.address, there.input, mirrored)
    told("state", "export", *of(here), "--output", tmp_path / "s")
    brought = told("state", "import", tmp_path / "s", *of(there), "--auto-offset-reset", "latest")
    assert sum(brought["committed"]) == 100
    for p in summary(there):
        assert p["committed"] == p["replay_from"] == p["log_end"]
    applied = told("state", "inspect", *of(there), mirrored[0][0].decode())  # type: ignore[union-attr]
    assert applied["applied"] == applied["committed"] - 1
    before = told("state", "inspect", *of(here), mirrored[0][0].decode())  # type: ignore[union-attr]
    assert applied["written_ms"] == before["written_ms"]
    more = hashes.send(there, 100)
    assert hashed(served(there, model, 100)) == more


def test_streams_go_to_another_number_of_partitions(cluster: Broker, unique: Unique, tmp_path: Path) -> None:
    """A recurrent model; its outputs go on as those of an undisturbed run."""
    rng = np.random.default_rng(new_seed())
    old, new = make_topics(cluster.address, unique, 4), make_topics(cluster.address, unique, 7)
    model = lstm_tensor(tmp_path / "lstm" / "1", seed=5)
    sent: dict[bytes, list[np.ndarray]] = {}

    def send(topics: Topics, n: int) -> None:
        records = []
        for i in rng.integers(0, STREAMS, n).tolist():
            key, x = b"stream-%d" % i, rng.standard_normal((2, 64), np.float32)
            sent.setdefault(key, []).append(x)
            records.append((key, x.tobytes()))
        produce(topics.address, topics.input, records)

    send(old, 300)
    first = served(old, model, 300)
    moved = told("state", "repartition", *of(old), "--to", new.input, "--new-group", f"{new.input}-g")
    assert (moved["streams"], moved["committed"]) == (len(sent), [0] * 7)
    shown = told("state", "inspect", *of(new), "--model", model, "stream-0")
    assert [s["name"] for s in shown["states"]] == ["h", "c"]
    assert all(s["norm"] > 0 and not s["not_finite"] for s in shown["states"])
    assert shown["fits"]
    send(new, 300)
    second = served(new, model, 300)

    module = lstm_module(seed=5)
    worst = 0.0
    for key, x in sent.items():
        with torch.no_grad():
            y = module(torch.from_numpy(np.concatenate(x))[:, None], *module.initial_state(1))[0][:, 0].numpy()
        got = b"".join(r.value or b"" for r in (*first, *second) if r.key == key)
        worst = max(worst, float(np.abs(np.frombuffer(got, np.float32).reshape(-1, 10) - y).max()))
    print(f"{len(sent)} streams, largest difference {worst:g}")
    assert worst < 1e-5


# ---- what is refused


@pytest.fixture
def small(cluster: Broker, unique: Unique, tmp_path: Path) -> tuple[Topics, Path, Path]:
    """Topics whose group has 20 streams, their model, and an export of them."""
    topics = make_topics(cluster.address, unique, 2)
    model = rolling_hash(tmp_path / "hash" / "1")
    produce(topics.address, topics.input, [(b"k%d" % i, steps(i)) for i in range(20)])
    served(topics, model, 20)
    told("state", "export", *of(topics), "--output", tmp_path / "small.states")
    return topics, model, tmp_path / "small.states"


def test_what_would_not_be_exact_is_not_moved(small: tuple[Topics, Path, Path], unique: Unique, tmp_path: Path) -> None:
    topics, model, file = small
    target = make_topics(topics.address, unique, 3)
    to_target = ("state", "repartition", *of(topics), "--to", target.input, "--new-group", f"{target.input}-g")
    # More input than is done.
    produce(topics.address, topics.input, [(b"k0", steps(5))])
    assert "stop its producers" in one_line(eddy(*to_target))
    assert told("state", "export", *of(topics), "--output", tmp_path / "again")["waiting"] == 1
    # A worker.
    worker = topics.worker(model)
    with workers(worker):
        worker.wait_ready()
        judged = Reader(topics.address, topics.output)
        judged.until(21, of=[worker])
        assert "has members: w at " in one_line(eddy(*to_target))
        assert f"group '{topics.input}-g' has members: w at " in one_line(eddy("state", "import", file, *of(topics)))
        assert worker.alive
        assert worker.ready
        assert worker.log.count("assigned partitions") == 1, "looking at the members has disturbed the group"
        worker.drained()
        judged.close()
    # Streams that are there.
    held = one_line(eddy("state", "import", file, *of(topics)))
    assert f"group '{topics.input}-g' has streams of '{topics.input}' already" in held
    # A model that does not fit, topics that are not there.
    shipped = Path(__file__).parents[2] / "models" / "python-reference"
    assert "give the model that they are of" in one_line(eddy("state", "import", file, *of(target), "--model", shipped))
    wrong = one_line(eddy("state", "export", *of(topics), "--model", shipped, "--output", tmp_path / "x"))
    assert "give the model it runs" in wrong
    nowhere = one_line(eddy("state", "import", file, "--group", "g", "--input", "nowhere"))
    assert "no topic 'nowhere'" in nowhere
    assert "--to is the input" in one_line(eddy("state", "repartition", *of(topics), "--to", topics.input))
    assert "cannot write" in one_line(eddy("state", "export", *of(topics), "--output", tmp_path / "no" / "x"))
    assert "cannot read" in one_line(eddy("state", "import", tmp_path / "no", *of(target)))
    # A file that was cut off is noticed before any worker could begin with half of it.
    cut = tmp_path / "cut"
    cut.write_bytes(file.read_bytes()[:-30])
    assert "it was cut off" in one_line(eddy("state", "import", cut, *of(target)))
    # The end of a stream, from a life of the group that its offsets do not know of.
    none, ended_at = np.empty(0, np.int64), np.array([3])
    over = Snapshots(none, [], none, np.empty((0, 8), np.uint8), [b"old"], ended_at)
    (end,) = as_list(over.records(bytes.fromhex(read_head(file).digest), 1_000).values)
    produce(target.address, target.changelog, [(b"old", end)])
    assert "'old' among them" in one_line(eddy("state", "import", file, *of(target)))
    produce(target.address, target.changelog, [(b"old", None)])
    assert told("state", "import", file, *of(target))["streams"] == 20


def test_states_that_lag_behind_their_outputs_are_not_exported(cluster: Broker, unique: Unique, tmp_path: Path) -> None:
    """A worker that was killed leaves done records in no snapshot; one that was drained leaves none."""
    topics = make_topics(cluster.address, unique, 1)
    worker = topics.worker(rolling_hash(tmp_path / "hash" / "1"), snapshot_interval_ms=600_000)
    export = ("state", "export", *of(topics), "--output", tmp_path / "s")
    with workers(worker):
        worker.wait_ready()
        judged = Reader(topics.address, topics.output)
        produce(topics.address, topics.input, [(b"k%d" % (i % 3), steps(i)) for i in range(9)])
        judged.until(9, of=[worker])
        judged.close()
        refused = one_line(eddy(*export))
        assert "records from 0 on are done, and not all of them are in a snapshot (R 0, C 9)" in refused
        assert "drain it: at SIGTERM it saves every state" in refused
        target = make_topics(topics.address, unique, 2)
        worker.kill()
        assert refused == one_line(eddy(*export))
        worker.start().wait_ready()
        eventually(lambda: worker.metrics().get("eddy_lag_records") == 0, 30, "what was lost is applied again")
        worker.drained()
    moving = ("state", "repartition", *of(topics), "--to", target.input, "--new-group", "g2")
    assert told(*export)["streams"] == told(*moving)["streams"] == 3


async def test_an_import_that_was_cut_off_lets_no_worker_begin_until_it_is_run_again(
    small: tuple[Topics, Path, Path], unique: Unique
) -> None:
    topics, model, file = small
    target = make_topics(topics.address, unique, 3)
    head = read_head(file)
    group = f"{target.input}-g"
    config = Config(bootstrap_servers=topics.address, group=group, input=target.input, worker_id=install.WORKER_ID)

    async def broken() -> AsyncIterator[Rows]:
        """One lot is committed, of a stream that is in no later import: two partitions have no snapshot."""
        yield Rows(0, [b"stray"], np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros((1, 8), np.uint8))
        yield next(read_rows(file, head))
        raise ConnectionResetError("the file's disk is gone")

    async with opened(topics.address, group, target.input, snapshots=False) as view:
        with pytest.raises(ConnectionResetError):
            await install.install(view, config, broken(), bytes.fromhex(head.digest))
    worker = target.worker(model)
    with workers(worker):
        worker.heard("an import of states was cut off", times=3)
        assert not worker.ready
        worker.drained()
    assert told("state", "import", file, *of(target))["streams"] == 20
    keys = [b"k%d" % i for i in range(20)] + [b"stray"]
    produce(target.address, target.input, [(key, steps(100)) for key in keys])
    found = hashed(served(target, model, 21))
    assert found.pop(b"stray") == rolling_hash_reference(np.array([100])).tolist(), "a stream of the first try was kept"
    assert found == {b"k%d" % i: rolling_hash_reference(np.array([i, 100]))[1:].tolist() for i in range(20)}


async def test_a_worker_that_joins_during_an_import_ends_it(small: tuple[Topics, Path, Path], unique: Unique) -> None:
    """Under the membership of before nothing is committed any more (X1, X15)."""
    topics, model, file = small
    target = make_topics(topics.address, unique, 3)
    head = read_head(file)
    worker = target.worker(model)

    async def disturbed() -> AsyncIterator[Rows]:
        lots = read_rows(file, head)
        yield next(lots)
        worker.start()
        await asyncio.to_thread(worker.heard, "assigned partitions")
        yield next(lots)

    config = Config(
        bootstrap_servers=topics.address, group=f"{target.input}-g", input=target.input, worker_id=install.WORKER_ID
    )
    with workers(later=[worker]):
        async with opened(topics.address, config.group, target.input, snapshots=False) as view:
            with pytest.raises(UserError, match="has another member since"):
                await install.install(view, config, disturbed(), bytes.fromhex(head.digest))
        assert worker.alive
        worker.drained()
    assert not [r for r in read_all(topics.address, f"{config.group}-{target.input}-changelog") if r.value is not None]


async def test_states_that_move_while_they_are_read_are_not_exported(
    small: tuple[Topics, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker may run, as long as it commits nothing meanwhile."""
    topics, model, _ = small
    worker = topics.worker(model)
    judged = Reader(topics.address, topics.output)
    read = export.read_settled

    async def slowly(view: View, of: Held, digest: bytes, row_bytes: int) -> Restored:
        if of.partition == 1 and not sent:
            sent.append(produce(topics.address, topics.input, [(b"new", steps(1))]))
            await asyncio.to_thread(judged.until, 21, of=[worker])
        return await read(view, of, digest, row_bytes)

    sent: list[int] = []
    monkeypatch.setattr(export, "read_settled", slowly)
    arguments = build_parser().parse_args(["state", "export", *of(topics), "--output", str(tmp_path / "moving")])
    with workers(worker):
        worker.wait_ready()
        with pytest.raises(UserError, match="has moved while its states were read"):
            await asyncio.to_thread(export.export, arguments)
        assert not (tmp_path / "moving").exists()
        worker.drained()
    judged.close()
    assert await asyncio.to_thread(export.export, arguments) == 0
    assert sum(len(rows.keys) for rows in read_rows(tmp_path / "moving", read_head(tmp_path / "moving"))) == 21


async def test_an_input_that_grows_while_it_is_moved_is_not_moved(
    small: tuple[Topics, Path, Path], unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics, _, _ = small
    target = make_topics(topics.address, unique, 3)
    read = moving.read_settled

    async def slowly(view: View, of: Held, digest: bytes, row_bytes: int) -> Restored:
        if of.partition == 1:
            produce(topics.address, topics.input, [(b"late", steps(1))])
        return await read(view, of, digest, row_bytes)

    monkeypatch.setattr(moving, "read_settled", slowly)
    command = ["state", "repartition", *of(topics), "--to", target.input, "--new-group", f"{target.input}-g"]
    with pytest.raises(UserError, match="stop its producers"):
        await asyncio.to_thread(moving.repartition, build_parser().parse_args(command))


def test_a_key_in_two_partitions_has_no_one_place_to_go(cluster: Broker, unique: Unique, tmp_path: Path) -> None:
    topics, target = make_topics(cluster.address, unique, 2), make_topics(cluster.address, unique, 3)
    for partition in range(2):
        produce(topics.address, topics.input, [(b"k", steps(partition))], partition=partition)
    served(topics, rolling_hash(tmp_path / "hash" / "1"), 2)
    moved = eddy("state", "repartition", *of(topics), "--to", target.input, "--new-group", "another")
    assert "stream 'k' is there twice" in one_line(moved)
    ended = eddy("state", "end", "--input", topics.input, "k", "--partition", 0)
    assert f"k: ended by {topics.input}, partition 0, offset 1" in ended.stdout
    served(topics, rolling_hash(tmp_path / "hash" / "1"), 2)
    assert told("state", "repartition", *of(topics), "--to", target.input, "--new-group", "another")["streams"] == 1
    produce(target.address, target.input, [(b"k", steps(9))])
    worker = target.worker(rolling_hash(tmp_path / "hash" / "1"), group="another")
    with workers(worker):
        judged = Reader(target.address, target.output)
        judged.until(1, of=[worker])
        assert hashed(judged.records) == {b"k": [rolling_hash_reference(np.array([1, 9]))[1]]}
        judged.close()


def test_markers_of_transactions_at_the_end_of_an_input_are_no_records(
    cluster: Broker, unique: Unique, tmp_path: Path
) -> None:
    topics, target = make_topics(cluster.address, unique, 2), make_topics(cluster.address, unique, 3)
    producer = new_producer(topics.address, **{"transactional.id": unique("producer")})
    producer.init_transactions(30)
    producer.begin_transaction()
    for i in range(8):
        producer.produce(topics.input, steps(i), b"k%d" % i)
    producer.commit_transaction(30)
    served(topics, rolling_hash(tmp_path / "hash" / "1"), 8)
    assert told("state", "export", *of(topics), "--output", tmp_path / "s")["waiting"] == 0
    moved = told("state", "repartition", *of(topics), "--to", target.input, "--new-group", f"{target.input}-g")
    assert moved["streams"] == 8
