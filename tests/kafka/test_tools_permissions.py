"""`eddy state` and `eddy dlq` without a permission that they need: one readable line says which; nothing is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AclOperation, ResourceType

from tests.conftest import started
from tests.kafka.commands import eddy, one_line
from tests.kafka.harness import Topics, make_topics, produce, workers
from tests.kafka.permissions import GUARDED, deny
from tests.kafka.reading import Reader, read_all
from tests.models import rolling_hash

pytestmark = pytest.mark.kafka
Unique = Callable[[str], str]
TOPIC, GROUP, LANE = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID
READ, WRITE, DESCRIBE = AclOperation.READ, AclOperation.WRITE, AclOperation.DESCRIBE


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Topics, Path, Path]]:
    """Topics with states and a dead letter, the model, and the states in a file."""
    folder = tmp_path_factory.mktemp("guarded")
    model = rolling_hash(folder / "hash" / "1")
    with started(GUARDED) as broker:
        topics = make_topics(broker.address, lambda name: f"served-{name}", 2)
        worker = topics.worker(model, snapshot_interval_ms=0)
        with workers(worker):
            produce(topics.address, topics.input, [(b"a", (1).to_bytes(8, "little")), (b"a", b"seven b")])
            letters = Reader(topics.address, topics.dead_letters)
            letters.until(1, of=[worker])
            letters.close()
            worker.drained()
        states = folder / "hash.states"
        done = eddy("state", "export", *of(topics), "--model", model, "--output", states, **at(topics))
        assert done.returncode == 0, done.stderr
        yield topics, model, states


def of(topics: Topics) -> tuple[str, ...]:
    return ("--group", f"{topics.input}-g", "--input", topics.input)


def at(topics: Topics) -> dict[str, str]:
    return {"EDDY_BOOTSTRAP_SERVERS": topics.address}


@pytest.mark.parametrize(
    ("command", "operation", "kind", "what"),
    [
        ("state inspect", READ, TOPIC, "changelog"),
        ("state inspect", DESCRIBE, GROUP, "group"),
        ("state export", READ, TOPIC, "changelog"),
        ("state export", DESCRIBE, GROUP, "group"),
        ("state end", WRITE, TOPIC, "input"),
        ("dlq list", READ, TOPIC, "dead letters"),
        ("dlq replay", READ, TOPIC, "dead letters"),
        ("dlq replay", WRITE, TOPIC, "input"),
    ],
)
def test_a_permission_that_is_missing_is_named(
    served: tuple[Topics, Path, Path],
    tmp_path: Path,
    command: str,
    operation: AclOperation,
    kind: ResourceType,
    what: str,
) -> None:
    topics, model, _ = served
    name = {
        "changelog": topics.changelog,
        "group": f"{topics.input}-g",
        "input": topics.input,
        "dead letters": topics.dead_letters,
    }[what]
    more = {
        "state inspect": (*of(topics),),
        "state export": (*of(topics), "--model", model, "--output", tmp_path / "out.states"),
        "state end": ("--input", topics.input, "a"),
        "dlq list": ("--input", topics.input),
        "dlq replay": ("--input", topics.input),
    }[command]
    before = read_all(topics.address, topics.input)
    give_back = deny(topics.address, operation, kind, name)
    try:
        line = one_line(eddy(*command.split(), *more, **at(topics)), 1)
    finally:
        give_back()
    assert "not authorized" in line
    assert name in line
    assert ("Read" if kind == GROUP else operation.name.capitalize()) in line
    assert read_all(topics.address, topics.input) == before
    assert not (tmp_path / "out.states").exists()


@pytest.mark.parametrize(
    ("operation", "kind", "what"),
    [(READ, GROUP, "group"), (WRITE, TOPIC, "changelog"), (WRITE, LANE, "lane"), (READ, TOPIC, "input")],
)
def test_an_import_that_may_not_write_leaves_nothing_to_begin_from(
    served: tuple[Topics, Path, Path], unique: Unique, operation: AclOperation, kind: ResourceType, what: str
) -> None:
    here, model, states = served
    there = make_topics(here.address, unique, 2)
    name = {
        "group": f"{there.input}-g",
        "changelog": there.changelog,
        "lane": f"{there.input}-g-{there.input}-eddy-state",
        "input": there.input,
    }[what]
    command = ("state", "import", states, *of(there), "--model", model)
    give_back = deny(there.address, operation, kind, name)
    try:
        line = one_line(eddy(*command, **at(there)), 2 if what == "group" else 1)
    finally:
        give_back()
    assert "not authorized" in line
    assert name in line
    done = eddy(*command, **at(there))
    assert done.returncode == 0, done.stderr
