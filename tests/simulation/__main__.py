"""``python -m tests.simulation --seeds N --start S``: runs seeds, prints those that fail and how to repeat each."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time

HASH_SEED = "0"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--start", type=int, default=0, help="the first")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--verbose", action="store_true", help="tell what happens, with virtual times")
    parser.add_argument("--trace", action="store_true", help="print a digest of everything that one seed wrote")
    parser.add_argument("--keep-going", action="store_true", help="go on after ten failing seeds")
    asked = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        # The order of sets of strings is part of a run.
        again = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(sys.executable, again, os.environ | {"PYTHONHASHSEED": HASH_SEED})
    from tests.simulation.running import report, run_seed

    if asked.verbose:
        logging.basicConfig(level=logging.INFO, format="          %(name)s: %(message)s", stream=sys.stdout)
        logging.getLogger("aiokafka").setLevel(logging.ERROR)
        result = run_seed(asked.start, say=print)
        print(report(result))
        return bool(result.problems)
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
    with multiprocessing.get_context("spawn").Pool(asked.jobs, maxtasksperchild=500) as pool:
        for result in pool.imap_unordered(run_seed, seeds, chunksize=max(1, min(8, asked.seeds // asked.jobs))):
            done += 1
            virtual_s += result.virtual_s
            for name, n in result.counts.items():
                totals[name] = totals.get(name, 0) + n
            if result.problems:
                failed += 1
                print(report(result), flush=True)
                if failed >= 10 and not asked.keep_going:
                    pool.terminate()
                    break
    took = time.perf_counter() - began
    each = took / max(done, 1) * asked.jobs
    print(f"{done} seeds, {failed} failed; {virtual_s:,.0f} virtual seconds in {took:.1f} s, {each:.2f} s a seed")
    print(", ".join(f"{name} {n}" for name, n in sorted(totals.items())))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
