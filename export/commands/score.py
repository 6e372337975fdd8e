"""The command `eddy score MODEL_DIR`: a model's figures again, beside those that its card claims."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path

from export.arguments import Commands
from export.tasks import TASKS
from export.tasks.base import deviations, read_figures
from pipeline.errors import ModelError

EXAMPLES = """examples:
  eddy score models/python-reference/1
  eddy score models/python-reference/1 --baselines --json

Ends with exit code 1 when a figure is further from its claim than it may be, and when the held-out data here are other
ones, as Python's own texts are in another version of Python: then nothing can be compared. Needs no torch."""


def add_score_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds ``score``; it sets ``handler``."""
    parser = commands.add_parser(
        "score",
        help="a model's figures on its held-out data, beside its card's",
        description="Score a model on its held-out data again, and compare with figures.json, from which its card is.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="models/NAME/VERSION")
    parser.add_argument("--baselines", action="store_true", help="score those too: slower, and may need more packages")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object")
    parser.set_defaults(handler=_score)


def _score(args: argparse.Namespace) -> int:
    scored = read_figures(args.model)
    task = TASKS.get(scored.task)
    if task is None:
        raise ModelError(f"{args.model}: this Eddy has no task {scored.task!r}; it has {', '.join(TASKS)}")
    found = task.score(args.model, scored.about, baselines=args.baselines)
    same = found.digest == scored.scores.digest
    said = deviations(scored.scores.figures, found.figures) if same else []
    claimed = {f.name: f for f in scored.scores.figures}
    if args.json:
        figures = [
            {**asdict(f), "claimed": claimed[f.name].value if f.name in claimed else None} for f in found.figures
        ]
        result = {"task": scored.task, "same_data": same, "figures": figures, "deviations": said}
        print(json.dumps(result, ensure_ascii=False))
    else:
        rows = [("figure", "found", "claimed")]
        rows += [(f.name, str(f), str(claimed[f.name]) if f.name in claimed else "-") for f in found.figures]
        widths = [max(len(r[i]) for r in rows) for i in range(3)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    if not same:
        print(
            f"eddy: the held-out data here (Python {platform.python_version()}) are not those of the claimed figures"
            f" (Python {scored.python}): nothing was compared; the figures found are of other data",
            file=sys.stderr,
        )
    for sentence in said:
        print(f"eddy: {sentence}", file=sys.stderr)
    return 0 if same and not said else 1
