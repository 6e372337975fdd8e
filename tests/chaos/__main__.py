"""``python -m tests.chaos --minutes 30`` (``make chaos``): chaos by hand, for as long as one likes."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from services.broker import Broker
from services.quorum import SIZE, Quorum
from tests.chaos.chaos import PARTITIONS, Report, run
from tests.chaos.losses import Losses, lose
from tests.chaos.scene import BROKER
from tests.kafka.harness import Topics, make_topic
from tests.models import rolling_hash

ROUND_S, ZOMBIES, LOSSES = 60.0, 10, 3

Round = Callable[[Topics, Path, int], Report | Losses]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="at least so long [30]")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9, help="of the first round [a new one]")
    parser.add_argument(
        "--brokers", type=int, choices=(1, SIZE), default=1, help="1: all faults; 3: the loss of one at a time [1]"
    )
    args = parser.parse_args()
    it: Broker | Quorum
    if args.brokers == 1:
        it = broker = Broker(settings=BROKER)

        def play(topics: Topics, model: Path, seed: int) -> Report | Losses:
            return run(broker, topics, model, seed, ROUND_S, ZOMBIES)

    else:
        it = quorum = Quorum()

        def play(topics: Topics, model: Path, seed: int) -> Report | Losses:
            return lose(quorum, topics, model, seed, LOSSES)

    it.start()
    try:
        return rounds(play, it, args.seed, 60 * args.minutes, f"BROKERS={args.brokers} ")
    finally:
        it.stop()


def rounds(play: Round, broker: Broker | Quorum, seed: int, seconds: float, how: str) -> int:
    """One after the other, each with topics of its own, until the time is over or one is not clean."""
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        model = rolling_hash(Path(folder) / "hash" / "1")
        while time.monotonic() < end:
            print(f"round of seed {seed}; again with: make chaos MINUTES=1 {how}SEED={seed}", flush=True)
            source, target = (make_topic(broker.address, f"{stem}-{seed}", PARTITIONS) for stem in ("in", "out"))
            told = play(Topics(broker.address, source, target), model, seed)
            print(told, flush=True)
            if not told.verdict.clean:
                print(told.verdict)
                return 1
            seed += 1
    return 0


sys.exit(main())
