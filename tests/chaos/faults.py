"""What goes wrong in a chaos run, one thing after the other; sleepers and restarts of earlier ones go on meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle, islice

from tests.chaos.scene import Scene
from tests.kafka.harness import Worker

Fault = Callable[[Scene], None]

STORM_S = 5.0
SLEEPERS_MAX = 2
SOMEONE_S = 60.0


def someone(scene: Scene) -> Worker:
    """A worker with partitions, as soon as there is another beside it and few sleep."""
    ready = scene.wait_for(lambda: len(scene.serving()) >= 2 and len(scene.sleeping) < SLEEPERS_MAX, SOMEONE_S)
    assert ready, f"nobody to hit in {SOMEONE_S:g} s: {dict(scene.counts)}"
    return scene.rng.choice(scene.serving())


def kill(scene: Scene) -> None:
    """kill -9 of a worker, often when its transaction is seen open; it is back at once, or after its session."""
    worker = someone(scene)
    if scene.rng.random() < 0.6:
        scene.transactions.await_open(worker.lane, 1.0)
    scene.kill(worker, 0.0 if scene.rng.random() < 0.6 else scene.rng.uniform(2.5, 4.0))


def sleep(scene: Scene) -> None:
    """SIGSTOP at a random moment, for longer than the session."""
    scene.sleep(someone(scene))


def sleep_inside(scene: Scene) -> None:
    """SIGSTOP inside an open transaction, for longer than the session; mostly before anything of it was written, as
    then nobody has to wait for it and it is still open when the sleeper wakes."""
    scene.sleep_inside(someone(scene), before_records=scene.rng.random() < 0.85)


def storm(scene: Scene) -> None:
    """Every second a worker joins, and the one that has been there longest leaves."""
    for guest in islice(cycle(scene.guests), round(STORM_S)):
        if guest in scene.sleeping:
            continue
        if guest.alive:
            scene.note(guest)
            guest.terminate()
            scene.counts["left"] += 1
        else:
            scene.start(guest)
            scene.counts["joined"] += 1
        scene.wait(1.0)


def stop_broker(scene: Scene) -> None:
    """SIGTERM, and it comes back."""
    scene.restart_broker(kill=False)


def kill_broker(scene: Scene) -> None:
    """kill -9, and it comes back."""
    scene.restart_broker(kill=True)


DECK: Mapping[Fault, int] = {sleep_inside: 16, sleep: 2, kill: 6, storm: 1, stop_broker: 1, kill_broker: 1}
"""How often each comes before all are shuffled anew."""
