"""The commands `eddy train` and `eddy export`. Nothing here needs torch until a command runs."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from export.exporter import Exported

Commands = argparse._SubParsersAction
TRAIN_EXAMPLES = """examples:
  eddy train text                                            Python's reference topics, about 10 minutes
  eddy train text --data book.txt --net gru --units 128 --output runs/book
  eddy export --checkpoint runs/text/checkpoint.pt --output models/my-text/1

Ctrl-C is safe: the same command goes on after the last finished epoch."""
EXPORT_EXAMPLES = """examples:
  eddy export --checkpoint runs/text/checkpoint.pt --output models/my-text/1
  eddy export mypackage.mymodule:build --checkpoint weights.pt --steps float32[64] --output models/mine/1
  eddy export mymodule:Net --steps float32[40] --head classify --labels yes,no --output models/words/1

A module needs forward(steps, *states) -> (outputs, *states) and initial_state(batch). Its states, outputs, axes and
initial values are found by running it; the graph is compared with it before anything is written."""

OF_A_MODULE = (
    *("steps", "step_limit", "time_axis", "state_names", "output_names", "codec", "codec_setting", "head"),
    *("head_output", "labels", "summary", "data", "licence"),
)
"""What a checkpoint of `eddy train` knows by itself."""


def add_train_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds ``train`` with its tasks; each sets ``handler``."""
    train = commands.add_parser(
        "train",
        help="train a reference model",
        description="Train a reference model.",
        epilog=TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = train.add_subparsers(metavar="TASK", required=True)
    text = tasks.add_parser(
        "text",
        help="a net that goes on with a text",
        description="Train a net that goes on with a text, by truncated back-propagation with carried state.",
        epilog=TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = text.add_argument
    add("--data", default="python-topics", metavar="FILE", help="UTF-8 text [python-topics: Python's reference topics]")
    add("--output", type=Path, default=Path("runs/text"), metavar="DIR", help="checkpoint and curves [runs/text]")
    add("--fresh", action="store_true", help="begin anew where a checkpoint is")
    add("--unit", choices=("characters", "bytes"), default="characters", help="what a token is [characters]")
    add("--net", choices=("lstm", "gru", "elman"), default="lstm", help="recurrent layers [lstm]")
    _number(text, "--layers", 2, 1, "recurrent layers on top of each other")
    _number(text, "--units", 256, 1, "units of each layer")
    _number(text, "--embedding", 64, 1, "width of the tokens' embedding")
    _number(text, "--dropout", 0.3, 0.0, "share of activations dropped in training")
    _number(text, "--epochs", 24, 1, "passes over the text")
    _number(text, "--lanes", 32, 1, "streams trained side by side")
    _number(text, "--window", 100, 1, "steps that the error goes back")
    _number(text, "--learning-rate", 3e-3, 0.0, "highest learning rate of AdamW")
    _number(text, "--weight-decay", 0.01, 0.0, "of AdamW")
    _number(text, "--clip", 1.0, 0.0, "largest norm of a gradient")
    _number(text, "--seed", 0, 0, "of weights, dropout and the places where epochs begin")
    _number(text, "--threads", min(2, os.cpu_count() or 1), 1, "threads that compute; more gain little")
    add("--json", action="store_true", help="the result as one JSON object")
    text.set_defaults(handler=_train_text)


def add_export_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds ``export``; it sets ``handler``."""
    parser = commands.add_parser(
        "export",
        help="PyTorch module to a proven model folder",
        description="Export a PyTorch module to a model folder, and prove that it does the same.",
        epilog=EXPORT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "module",
        nargs="?",
        metavar="PACKAGE.MODULE:NAME",
        help="a torch.nn.Module, or what makes one [the checkpoint's]",
    )
    add("--output", type=Path, required=True, metavar="DIR", help="models/NAME/VERSION")
    add("--checkpoint", type=Path, metavar="FILE", help="weights: torch.save(module.state_dict(), FILE)")
    add(
        "--steps",
        action="append",
        default=[],
        metavar="[NAME:]DTYPE[SHAPE]",
        help="one step, as in float32[64] or int64",
    )
    add(
        "--step-limit",
        type=int,
        metavar="N",
        help="whole-number steps lie below N [the first embedding's size, else 100]",
    )
    add(
        "--time-axis", choices=("auto", "0", "1", "none"), default="auto", help="of steps and outputs [auto: found out]"
    )
    add("--state-names", default="", metavar="A,B", help="[the module's state_names, or forward's parameters]")
    add("--output-names", default="", metavar="A,B", help="[the module's output_names, or output]")
    add("--codec", default="tensor", help="tensor or text [tensor]")
    add("--codec-setting", action="append", default=[], metavar="KEY=VALUE", help="JSON, text or @FILE of JSON; repeat")
    add("--head", default="tensor", help="tensor, classify or generate [tensor]")
    add("--head-setting", action="append", default=[], metavar="KEY=VALUE", help="the same for the head")
    add("--head-output", metavar="NAME", help="output that feeds the head [all, or the only one]")
    add("--labels", default="", metavar="A,B", help="classes of the head classify; @FILE has one a line")
    add("--tolerance", type=float, metavar="X", help="largest relative difference [1e-4; 5e-3 with float16]")
    add("--max-megabytes", type=float, default=200.0, metavar="N", help="largest graph [200]")
    add("--summary", default="", metavar="TEXT", help="for the model card: what the model does")
    add("--data", default="", metavar="TEXT", help="for the model card: what it was trained on")
    add("--licence", default="", metavar="TEXT", help="for the model card")
    add("--rebuild", metavar="TEXT", help="for the model card: the command that makes it again [this one]")
    add("--json", action="store_true", help="the result as one JSON object")
    parser.set_defaults(handler=_export)


def _number(parser: argparse.ArgumentParser, flag: str, default: float, low: float, text: str) -> None:
    kind = type(default)

    def convert(word: str) -> float:
        value = kind(word)
        if value < low:
            raise argparse.ArgumentTypeError(f"{word} is less than {low:g}")
        return value

    convert.__name__ = kind.__name__
    parser.add_argument(flag, type=convert, default=default, metavar="N", help=f"{text} [{default:g}]")


def _need(command: str, *packages: str) -> None:
    """Raises ConfigError that names the extra, in place of an ImportError deep inside."""
    missing = [p for p in packages if find_spec(p) is None]
    if missing:
        raise ConfigError(f"eddy {command} needs {' and '.join(missing)}: pip install 'eddy-streams[export]'")


def _train_text(args: argparse.Namespace) -> int:
    _need("train", "torch", "matplotlib")
    import torch

    from export.nets import TextNetShape
    from export.text import Alphabet, load_corpus
    from export.training import CHECKPOINT, Schedule, train_text

    torch.set_num_threads(args.threads)
    corpus = load_corpus(args.data)
    alphabet = Alphabet(None) if args.unit == "bytes" else Alphabet.of(corpus.train)
    shape = TextNetShape(args.net, alphabet.size, args.layers, args.units, args.embedding, args.dropout)
    schedule = Schedule(
        epochs=args.epochs,
        lanes=args.lanes,
        window=args.window,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        clip=args.clip,
        seed=args.seed,
    )
    progress = train_text(corpus, alphabet, shape, schedule, args.output, resume=not args.fresh)
    checkpoint = args.output / CHECKPOINT
    if args.json:
        result = {
            "checkpoint": str(checkpoint),
            "epochs": progress.epoch,
            "seconds": round(progress.seconds, 1),
            "cpu_seconds": round(progress.cpu_seconds, 1),
            "development_bits_per_character": progress.best_bits,
        }
        print(json.dumps(result))
    else:
        print(f"{progress.epoch} epochs in {progress.seconds:.0f} s, {progress.best_bits:.3f} bits per character")
        print(f"checkpoint {checkpoint}, curves {args.output / 'loss.png'} and loss.csv")
        print(f"next: eddy export --checkpoint {checkpoint} --output models/NAME/1")
    return 0


def _export(args: argparse.Namespace) -> int:
    _need("export", "torch")
    command = args.rebuild or shlex.join(["eddy", *sys.argv[1:]])
    if args.module is not None:
        exported = _export_module(args, command)
    elif args.checkpoint is not None:
        exported = _export_run(args, command)
    else:
        raise ConfigError("nothing to export: name PACKAGE.MODULE:NAME, or a --checkpoint of `eddy train`")
    _report(exported, args.json)
    return 0


def _export_run(args: argparse.Namespace, command: str) -> Exported:
    from export.exporter import ExportOptions
    from export.textmodel import export_text

    for name in OF_A_MODULE:
        if getattr(args, name) not in ("", "auto", "tensor", [], None):
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is for a module of your own: name PACKAGE.MODULE:NAME, or leave it out")
    settings = _settings(args.head_setting, "--head-setting")
    options = ExportOptions(tolerance=args.tolerance, max_megabytes=args.max_megabytes)
    return export_text(args.checkpoint, args.output, command, settings, options)


def _export_module(args: argparse.Namespace, command: str) -> Exported:
    from export.card import CardText
    from export.exporter import ExportOptions, export_module
    from export.load import load_module, load_weights
    from pipeline.contract import CodecSpec, HeadSpec

    if not args.steps:
        raise ConfigError(
            "a step's dtype and shape cannot be seen from outside: give --steps, as in --steps float32[64]"
        )
    codec = CodecSpec(args.codec, settings=_settings(args.codec_setting, "--codec-setting"))
    head = HeadSpec(
        args.head,
        output=args.head_output,
        labels=tuple(_labels(args.labels)),
        settings=_settings(args.head_setting, "--head-setting"),
    )
    module = load_module(args.module)
    if args.checkpoint is not None:
        load_weights(module, args.checkpoint)
    return export_module(
        module,
        args.output,
        args.steps,
        codec=codec,
        head=head,
        options=ExportOptions(
            state_names=_words(args.state_names),
            output_names=_words(args.output_names),
            step_limit=args.step_limit,
            time_axis=args.time_axis,
            tolerance=args.tolerance,
            max_megabytes=args.max_megabytes,
            card=CardText(summary=args.summary, data=args.data, licence=args.licence, command=command),
        ),
    )


def _report(exported: Exported, as_json: bool) -> None:
    contract, parity = exported.contract, exported.parity
    if as_json:
        result = {
            "file": str(exported.file),
            "model": contract.label,
            "time_axis": contract.time_axis,
            "parity": [{"comparison": r.what, "where": r.where, "largest": r.largest} for r in parity.rows],
            "contract": json.loads(contract.to_json()),
        }
        print(json.dumps(result, ensure_ascii=False))
        return
    rows = [("comparison", "where", "largest difference"), *parity.table()]
    widths = [max(len(r[i]) for r in rows) for i in range(3)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    for note in exported.notes:
        print(f"note: {note}")
    print(f"{contract.label}: {exported.file} ({exported.file.stat().st_size / 1e6:.2f} MB), card README.md beside it")
    print(f"next: eddy run --model {exported.file.parent} --input TOPIC --output TOPIC")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _labels(text: str) -> Iterable[str]:
    return _read(text[1:], "--labels").splitlines() if text.startswith("@") else _words(text)


def _settings(pairs: list[str], flag: str) -> dict[str, Any]:
    """``KEY=VALUE``: a value is JSON where it can be read as such, else text; ``@FILE`` holds JSON."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{flag} {pair!r}: expected KEY=VALUE")
        from_file = value.startswith("@")
        text = _read(value[1:], flag) if from_file else value
        try:
            settings[key] = json.loads(text)
        except ValueError as error:
            if from_file:
                raise ConfigError(f"{flag} {pair!r}: the file is not JSON ({error})") from None
            settings[key] = text
    return settings


def _read(path: str, flag: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{flag} @{path}: cannot be read ({error.strerror})") from None
