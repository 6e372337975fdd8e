"""A chaos run on a real broker: faults at random, then a while of peace, then the judgement."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from services.broker import Broker
from tests.chaos.faults import DECK, Fault, sleep_inside
from tests.chaos.scene import Scene
from tests.kafka.feed import Feed, Value, integers
from tests.kafka.harness import Topics, eventually, workers
from tests.kafka.reading import Reader
from tests.kafka.verdict import Verdict, judge_hash

PARTITIONS, REGULARS, GUESTS = 6, 3, 2
RATE = 1500
PEACE_S = 120.0
"""Liveness: everything must be out so long after the last fault."""


@dataclass(frozen=True)
class Chaos:
    """What happened."""

    seed: int
    counts: Counter[str]
    seconds: float
    """Of faults."""
    peace_s: float
    """From the last fault until every input was answered."""
    sent: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the workers, by chance."""
    said: Sequence[tuple[str, dict[str, Any]]] = ()
    """All that workers logged."""

    def __str__(self) -> str:
        said = ", ".join(f"{what} {n}" for what, n in sorted(self.counts.items()))
        chosen = ", ".join(f"{name} {value}" for name, value in self.settings.items() if name != "state_directory")
        chosen += ", with local copies" if "state_directory" in self.settings else ""
        return (
            f"seed {self.seed}: {self.seconds:.0f} s of faults ({chosen}): {said}; all answered"
            f" {self.peace_s:.1f} s after them"
        )


@dataclass(frozen=True)
class Report:
    """What happened, and what came of it."""

    chaos: Chaos
    verdict: Verdict

    def __str__(self) -> str:
        v = self.verdict
        return (
            f"{self.chaos}; {v.inputs} inputs of {v.streams} streams: lost {v.lost} / repeated {v.repeated} / out of"
            f" order {v.out_of_order} (wrong {v.wrong}, strange {v.strange})"
        )


def choose(rng: random.Random, folder: Path) -> dict[str, Any]:
    """Settings that change the road a state takes: how often it is saved, whether all have slots, where copies lie."""
    chosen: dict[str, Any] = {
        # With every commit; now and then; so rarely that much is replayed.
        "snapshot_interval_ms": rng.choice((0, 300, 2000)),
        # For all; for so few that most wait in the host tier.
        "slots": rng.choice((4096, 48)),
        "standbys": rng.choice((0, 0, 1)),
    }
    if chosen["standbys"] or rng.random() < 0.5:
        chosen["state_directory"] = folder
    return chosen


def deal(deck: Mapping[Fault, int], rng: random.Random) -> list[Fault]:
    """Shuffled, but what comes once comes in the first half: a run of a minute has some of everything."""
    cards = [(rng.random() * (0.5 if n == 1 else 1.0), fault) for fault, n in deck.items() for _ in range(n)]
    return [fault for _, fault in sorted(cards, key=itemgetter(0))]


def play(scene: Scene, seconds: float, zombies: int, deck: Mapping[Fault, int] = DECK) -> float:
    """Faults for so long, and until so many have woken inside an open transaction; the seconds that it took."""
    began = time.monotonic()
    cards: list[Fault] = []
    while time.monotonic() - began < seconds or scene.counts["zombies inside an open transaction"] < zombies:
        spent = time.monotonic() - began
        assert spent < 60 + 3 * seconds, f"too few zombies in {spent:.0f} s: {dict(scene.counts)}"
        if not cards:
            cards = deal(deck, scene.rng)
        fault = cards.pop(0)
        print(f"{spent:5.1f} s {fault.__name__}, asleep {[w.worker_id for w in scene.sleeping]}")
        fault(scene)
        scene.wait(scene.rng.uniform(0.1, 0.6))
    return time.monotonic() - began


def control(broker: Broker, topics: Topics, model: Path, seed: int, zombies_max: int) -> Report:
    """The same zombies with workers whose offset commits nobody fences, until that shows, or so many have woken."""
    scene = Scene(broker, topics, model, random.Random(seed), REGULARS, 0, program="tests.chaos.unfenced")
    with workers(*scene.regulars), Feed(topics, seed, RATE) as feed:
        reader = Reader(topics.address, topics.output)
        reader.until(RATE, of=scene.regulars)
        began = time.monotonic()
        for zombies in range(1, zombies_max + 1):
            play(scene, 0, zombies, {sleep_inside: 1})
            scene.wait(1.0)
            sources = [record.source for record in reader.rest()]
            if len(set(sources)) < len(sources):
                break
        reader.close()
        sent = feed.stop()
    return Report(Chaos(seed, scene.counts, time.monotonic() - began, 0.0, sent), judge_hash(topics))


def disturb(
    broker: Broker,
    topics: Topics,
    model: Path,
    seed: int,
    seconds: float,
    zombies: int,
    *,
    deck: Mapping[Fault, int] = DECK,
    rate: int = RATE,
    value: Value = integers,
    settled: Callable[[], bool] = lambda: True,
) -> Chaos:
    """Serves records under faults, until all that were sent are answered and ``settled`` holds.

    Raises AssertionError if that takes long.
    """
    rng = random.Random(seed)
    chosen = choose(rng, model.parent / "copies")
    scene = Scene(broker, topics, model, rng, REGULARS, GUESTS, **chosen)
    with workers(*scene.regulars, later=scene.guests), Feed(topics, seed, rate, value=value) as feed:
        reader = Reader(topics.address, topics.output)
        reader.until(rate, of=scene.regulars)
        took = play(scene, seconds, zombies, deck)
        healed = time.monotonic()
        scene.heal()
        sent = feed.stop()
        reader.until(sent, PEACE_S)
        peace = time.monotonic() - healed
        reader.close()
        eventually(settled, PEACE_S, "what was answered is saved")
        scene.close()
    return Chaos(seed, scene.counts, took, peace, sent, chosen, scene.past)


def run(broker: Broker, topics: Topics, model: Path, seed: int, seconds: float, zombies: int) -> Report:
    """The rolling hash under faults, judged."""
    chaos = disturb(broker, topics, model, seed, seconds, zombies)
    verdict = judge_hash(topics)
    assert verdict.inputs == chaos.sent
    if not verdict.clean:
        for worker_id, line in sorted(chaos.said, key=lambda said: said[1].get("time", "")):
            print(line.get("time", ""), worker_id, line["message"])
    return Report(chaos, verdict)
