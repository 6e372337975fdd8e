"""``python -m tests.simulation --seeds N --start S``: runs seeds, prints those that fail and how to repeat each."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial

HASH_SEED = "0"
ENOUGH = 10
"""So many failing seeds say it."""
PER_PROCESS = 500
"""Seeds; then another one takes over, so that nothing piles up."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--start", type=int, default=0, help="the first")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--verbose", action="store_true", help="tell what happens, with virtual times")
    parser.add_argument("--mutation", help="with a deliberate mistake in the worker; 'each' searches for all")
    parser.add_argument("--bias", help="in worlds bent towards that mistake, without it")
    parser.add_argument("--trace", action="store_true", help="print a digest of everything that one seed wrote")
    parser.add_argument("--keep-going", action="store_true", help=f"go on after {ENOUGH} failing seeds")
    asked = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        # The order of sets of strings is part of a run.
        again = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(sys.executable, again, os.environ | {"PYTHONHASHSEED": HASH_SEED})
    from tests.simulation.mutations import MUTATIONS
    from tests.simulation.running import report, run_seed

    options = "".join(f" --{name} {value}" for name in ("bias", "mutation") if (value := getattr(asked, name)))
    if asked.verbose:
        logging.basicConfig(level=logging.INFO, format="          %(name)s: %(message)s", stream=sys.stdout)
        logging.getLogger("aiokafka").setLevel(logging.ERROR)
        result = run_seed(asked.start, asked.bias or asked.mutation, asked.mutation, say=print)
        print(report(result, options))
        return bool(result.problems)
    if asked.mutation is not None:
        return find(sorted(MUTATIONS) if asked.mutation == "each" else asked.mutation.split(","), asked)
    if asked.trace:
        result = run_seed(asked.start)
        print(f"{result.digest:08x} after {result.steps} steps")
        return bool(result.problems)
    began = time.perf_counter()
    failed = 0
    totals: dict[str, int] = {}
    virtual_s = 0.0
    seeds = range(asked.start, asked.start + asked.seeds)
    done = 0
    context = multiprocessing.get_context("spawn")
    run = partial(run_seed, bias=asked.bias)
    # Not concurrent.futures: where its processes are replaced, it may wait for a result that nobody computes.
    with context.Pool(asked.jobs, maxtasksperchild=PER_PROCESS) as pool:
        for result in pool.imap(run, seeds):
            done += 1
            virtual_s += result.virtual_s
            for name, n in result.counts.items():
                totals[name] = totals.get(name, 0) + n
            if result.problems:
                failed += 1
                print(report(result, options), flush=True)
                if failed >= ENOUGH and not asked.keep_going:
                    break
    took = time.perf_counter() - began
    each = took / max(done, 1) * asked.jobs
    print(f"{done} seeds, {failed} failed; {virtual_s:,.0f} virtual seconds in {took:.1f} s, {each:.2f} s a seed")
    print(", ".join(f"{name} {n}" for name, n in sorted(totals.items())))
    return bool(failed)


def find(names: list[str], asked: argparse.Namespace) -> int:
    """Which of these mistakes the invariants find, and by which seed."""
    from tests.simulation.running import search

    good = 0
    with ProcessPoolExecutor(asked.jobs, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(search, name, asked.seeds) for name in names]):
            found = done.result()
            if found.seed is None:
                print(f"{found.name}: NOT FOUND by {asked.seeds} seeds", flush=True)
            elif found.control:
                print(f"{found.name}: seed {found.seed} fails without it, too: {found.control}", flush=True)
            else:
                good += 1
                print(f"{found.name}: found by seed {found.seed}: {found.problem}", flush=True)
    print(f"{good} of {len(names)} mistakes found")
    return good < len(names)


if __name__ == "__main__":
    sys.exit(main())
