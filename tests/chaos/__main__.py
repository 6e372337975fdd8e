"""``python -m tests.chaos --minutes 30`` (``make chaos``): chaos by hand, for as long as one likes."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from services.broker import Broker
from tests.chaos.chaos import PARTITIONS, run
from tests.chaos.scene import BROKER
from tests.kafka.harness import Topics, make_topic
from tests.models import rolling_hash

ROUND_S, ZOMBIES = 60.0, 10


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="at least so long [30]")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9, help="of the first round [a new one]")
    args = parser.parse_args()
    broker = Broker(settings=BROKER)
    broker.start()
    end, seed = time.monotonic() + 60 * args.minutes, args.seed
    with tempfile.TemporaryDirectory() as folder:
        model = rolling_hash(Path(folder) / "hash" / "1")
        try:
            while time.monotonic() < end:
                print(f"round of seed {seed}; again with: make chaos MINUTES=1 SEED={seed}", flush=True)
                names = (make_topic(broker.address, f"{stem}-{seed}", PARTITIONS) for stem in ("in", "out"))
                report = run(broker, Topics(broker.address, *names), model, seed, ROUND_S, ZOMBIES)
                print(report, flush=True)
                if not report.verdict.clean:
                    print(report.verdict)
                    return 1
                seed += 1
        finally:
            broker.stop()
    return 0


sys.exit(main())
