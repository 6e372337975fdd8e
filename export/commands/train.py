"""The command `eddy train TASK`."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import fields
from pathlib import Path

from export.arguments import Commands, number
from export.extras import need
from export.reports import REPORTS
from export.tasks import TASKS
from export.tasks.base import Task
from export.training.schedule import Schedule
from pipeline.errors import ConfigError

EXAMPLES = """examples:
  eddy train text                                            Python's reference topics, about 10 minutes
  eddy train text --data book.txt --net gru --units 128 --output runs/book
  eddy train --report gradients                              vanishing gradients: a picture and a table, 5 minutes
  eddy export --checkpoint runs/text/checkpoint.pt --output models/my-text/1

Ctrl-C is safe: the same command goes on after the last finished epoch."""


def add_train_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds ``train`` with its tasks; each sets ``handler``."""
    train = commands.add_parser(
        "train",
        help="train a reference model",
        description="Train a reference model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(f"{r.name}: {r.help}" for r in REPORTS.values())
    train.add_argument("--report", choices=tuple(REPORTS), metavar="NAME", help=f"measure and draw instead; {names}")
    train.add_argument("--folder", type=Path, metavar="DIR", help="of the report [runs/reports/NAME]")
    train.set_defaults(handler=_report)
    tasks = train.add_subparsers(metavar="TASK")
    for task in TASKS.values():
        parser = tasks.add_parser(
            task.name,
            help=task.help,
            description=f"Train {task.help}.",
            epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        task.add_arguments(parser)
        _add_shared(parser, task)
        parser.set_defaults(handler=_train, task=task.name)


def _add_shared(parser: argparse.ArgumentParser, task: Task) -> None:
    group = parser.add_argument_group("every training has these")
    default, output = task.defaults, Path("runs") / task.name
    group.add_argument("--output", type=Path, default=output, metavar="DIR", help=f"checkpoint and curves [{output}]")
    group.add_argument("--fresh", action="store_true", help="begin anew where a checkpoint is")
    number(group, "--epochs", default.epochs, 1, "passes over the data")
    number(group, "--learning-rate", default.learning_rate, 0.0, "highest learning rate of AdamW")
    number(group, "--weight-decay", default.weight_decay, 0.0, "of AdamW")
    number(group, "--warm-up", default.warm_up, 0.0, "share of the updates in which the learning rate rises")
    number(group, "--clip-norm", default.clip_norm, 0.0, "largest norm of a gradient, 0: any")
    number(group, "--clip-value", default.clip_value, 0.0, "largest number in a gradient, 0: any")
    number(group, "--ema", default.ema, 0.0, "what a moving average of the weights keeps at an update, 0: no average")
    number(group, "--patience", default.patience, 0, "epochs without a better score after which it ends, 0: never")
    number(group, "--seed", default.seed, 0, "of weights, dropout and the order of the data")
    number(group, "--threads", min(2, os.cpu_count() or 1), 1, "threads that compute; more gain little")
    group.add_argument("--json", action="store_true", help="the result as one JSON object")


def _report(args: argparse.Namespace) -> int:
    if args.report is None:
        raise ConfigError(f"nothing to train: name a task ({', '.join(TASKS)}), or a --report ({', '.join(REPORTS)})")
    need("train", "torch", "matplotlib")
    import torch

    torch.set_num_threads(1)  # its times are those of one core
    folder = args.folder or Path("runs") / "reports" / args.report
    REPORTS[args.report].run(folder)
    print(f"report in {folder}: pictures (PNG), their numbers (CSV), tables (Markdown)")
    return 0


def _train(args: argparse.Namespace) -> int:
    task = TASKS[args.task]
    need("train", "torch", "matplotlib", *task.needs)
    import torch

    from export.training.checkpoint import CHECKPOINT
    from export.training.loop import fit

    torch.set_num_threads(args.threads)
    schedule = Schedule(**{f.name: getattr(args, f.name) for f in fields(Schedule)})
    torch.manual_seed(schedule.seed)
    problem = task.problem(args)
    progress = fit(problem, schedule, args.output, resume=not args.fresh)
    checkpoint = args.output / CHECKPOINT
    if args.json:
        result = {
            "checkpoint": str(checkpoint),
            "epochs": progress.epoch,
            "seconds": round(progress.seconds, 1),
            "cpu_seconds": round(progress.cpu_seconds, 1),
            "development": progress.best_score,
            "unit": problem.score_unit,
            "best_epoch": progress.best_epoch,
        }
        print(json.dumps(result))
    else:
        best = f"{progress.best_score:.3f} {problem.score_unit} after epoch {progress.best_epoch}"
        print(f"{progress.epoch} epochs in {progress.seconds:.0f} s, {best}")
        print(f"checkpoint {checkpoint}, curves {args.output / 'loss.png'} and loss.csv")
        print(f"next: eddy export --checkpoint {checkpoint} --output models/NAME/1")
    return 0
