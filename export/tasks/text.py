"""Going on with a text: characters (or bytes, or parts of words) in, the next one out, as they are made."""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from export.arguments import number
from export.tasks.base import Figure, Scores, Served, Task
from export.training.schedule import Schedule
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from export.training.checkpoint import Run
    from export.training.text import TextProblem

GENERATE = {"max_steps": 200, "temperature": 0.8, "top_k": 0, "top_p": 1.0, "seed": 0, "stop": [], "end_token": None}
"""The head's settings where a prompt's headers say nothing else."""

NAMES = {"elman": "Elman", "lstm": "LSTM", "gru": "GRU", "mingru": "minGRU"}


class TextTask(Task):
    """`eddy train text`."""

    name: ClassVar[str] = "text"
    help: ClassVar[str] = "a net that goes on with a text"
    defaults: ClassVar[Schedule] = Schedule(epochs=24, learning_rate=3e-3)

    def add_arguments(self, parser: ArgumentParser) -> None:
        add = parser.add_argument
        text = "UTF-8 text [python-topics: Python's reference topics]"
        add("--data", default="python-topics", metavar="FILE", help=text)
        units = ("characters", "bytes", "tokens")
        add(
            "--unit", choices=units, default="characters", help="what a token is; tokens: a part of a word [characters]"
        )
        number(parser, "--vocabulary", 1000, 257, "tokens that are learned from the text, with --unit tokens")
        add("--net", choices=tuple(NAMES), default="lstm", help="recurrent layers [lstm]")
        number(parser, "--layers", 2, 1, "recurrent layers")
        number(parser, "--units", 256, 1, "units of each layer")
        number(parser, "--embedding", 64, 1, "width of the tokens' embedding")
        number(parser, "--dropout", 0.3, 0.0, "share of activations dropped in training")
        text = "each layer sees the one below it, or the input and all below it [stacked]"
        add("--connect", choices=("stacked", "dense"), default="stacked", help=text)
        text = "of Elman layers [tanh]"
        add("--activation", choices=("tanh", "sigmoid", "relu", "identity"), default="tanh", help=text)
        text = "of Elman layers' recurrent weights [uniform]"
        add("--start", choices=("uniform", "orthogonal", "identity"), default="uniform", help=text)
        number(parser, "--memory", 0, 0, "steps that gates are set to keep at first, 0: as they come")
        add("--residual", action="store_true", help="each layer adds to what the one below gave")
        add("--norm", action="store_true", help="layer normalisation of what each layer sees")
        add("--learned-start", action="store_true", dest="learned", help="learn the initial state, instead of zero")
        number(parser, "--lanes", 32, 1, "streams trained side by side")
        number(parser, "--window", 100, 1, "steps that the error goes back")

    def problem(self, args: Namespace) -> TextProblem:
        from export.data.subwords import Subwords
        from export.data.topics import Alphabet, Units, load_corpus
        from export.nets.text import TextNetShape
        from export.training.text import TextProblem

        corpus = load_corpus(args.data)
        alphabet: Units
        if args.unit == "tokens":
            alphabet = Subwords.of(corpus.train, args.vocabulary)
        else:
            alphabet = Alphabet(None) if args.unit == "bytes" else Alphabet.of(corpus.train)
        given = {f.name: getattr(args, f.name) for f in fields(TextNetShape) if f.name not in ("kind", "vocabulary")}
        shape = TextNetShape(args.net, alphabet.size, **given)
        return TextProblem(corpus, alphabet, shape, lanes=args.lanes, window=args.window)

    def served(self, run: Run) -> Served:
        """Raises ConfigError when the text that the run was trained on is no longer the same."""
        from export.data.subwords import Subwords
        from export.data.topics import load_corpus, read_units
        from export.tokens import TOKENIZER, Tokenized, tokens_codec
        from export.training.text import net_of
        from pipeline.contract import CodecSpec, HeadSpec, StepInput

        settings, net = run.settings, net_of(run)
        alphabet = read_units(settings["alphabet"])
        corpus = load_corpus(settings["data"])
        if corpus.digest != settings["digest"]:
            raise ConfigError(
                f"{run.file}: trained on {run.described['source']}, which is not what {settings['data']} holds now;"
                " train again (another Python has other topics)"
            )
        if isinstance(alphabet, Subwords):
            file = run.file.parent / TOKENIZER
            file.write_text(alphabet.content, encoding="utf-8")
            text = tokens_codec(file)
        else:
            text = Tokenized(CodecSpec("text", settings=alphabet.settings()))
        return Served(
            net=net,
            steps=StepInput("tokens", "int64"),
            codec=text.codec,
            head=HeadSpec("generate", output="logits", settings=GENERATE),
            card=_card(run, sum(p.numel() for p in net.parameters())),
            about={"data": settings["data"]},
            beside=text.beside,
        )

    def score(self, model: Path, about: Mapping[str, Any], *, baselines: bool = False) -> Scores:
        from export.data.topics import load_corpus, xz_bits_per_character

        corpus = load_corpus(about["data"])
        bits = score_model(model / "model.onnx", corpus.held_out)
        figures = [Figure("bits per character, held out, one stream from the initial state", bits, tolerance=2e-3)]
        if baselines:
            xz = xz_bits_per_character(corpus)
            figures.append(
                Figure("bits per character, held out, `xz -9e` given the rest", xz, tolerance=2e-2, baseline=True)
            )
        return Scores(corpus.digest, tuple(figures))


def _card(run: Run, weights: int) -> Any:
    from export.card import CardText

    settings, schedule, progress, described = run.settings, run.schedule, run.progress, run.described
    shape = settings["shape"]
    units = settings["alphabet"]
    unit = "byte" if units is None else "character" if isinstance(units, list) else "part of a word"
    average = f" moving average of the weights {schedule.ema:g}," if schedule.ema else ""
    kind = f"{'densely connected ' * (shape['connect'] == 'dense')}{NAMES[shape['kind']]}"
    layers = f"{shape['layers']} {kind} layer{'s' * (shape['layers'] > 1)} of {shape['units']} units"
    train, develop, held_out = described["characters"]
    return CardText(
        summary=(
            f"Goes on with a text, one {unit} after the other: {shape['vocabulary']} tokens, an embedding of"
            f" {shape['embedding']}, {layers}, {weights:,} weights."
        ),
        data=(
            f"{described['source']}; licence {described['licence']}. {train:,} characters to train on,"
            f" {develop:,} for development, {held_out:,} held out."
        ),
        training=(
            f"Truncated back-propagation over {settings['window']} steps with carried state, {settings['lanes']} lanes,"
            f" {progress.epoch} epochs, AdamW {schedule.learning_rate:g} with half a cosine, dropout"
            f" {shape['dropout']:g}, gradient norm at most {schedule.clip_norm:g},{average} seed {schedule.seed};"
            f" {progress.cpu_seconds / 60:.1f} minutes of processor time in {progress.seconds / 60:.1f} minutes,"
            f" torch threads: {described['threads']}. The weights are those of the epoch"
            f" with the least loss on the development text."
        ),
        metrics=(
            ("bits per character, development (least)", f"{progress.best_score:.4f}"),
            ("bits per character, training (last epoch, with dropout)", f"{progress.curve[-1].train:.4f}"),
        ),
        licence=f"Apache-2.0, as Eddy; the training text is under {described['licence']}.",
    )


def score_model(file: Path, text: str, chunk: int = 2000) -> float:
    """Bits per character of a text as one stream from the initial state, by the exported graph alone."""
    import numpy as np
    import onnxruntime as ort

    from export.data.subwords import Subwords
    from export.data.topics import Alphabet, Units, begun
    from pipeline.beside import Beside
    from pipeline.model_file import load_graph, read_contract

    contract = read_contract(load_graph(file), str(file))
    alphabet: Units = Alphabet.read(contract.codec.settings.get("vocabulary"))
    if contract.codec.settings["unit"] == "tokens":
        content = Beside(file.parent).read(contract.codec.settings["tokenizer"], contract.label)
        alphabet = Subwords(content.decode())
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    states = {s.input: np.zeros(s.shape, s.dtype) for s in contract.states}
    tokens = begun(alphabet, text)
    nats = 0.0
    for at in range(0, len(tokens) - 1, chunk):
        wanted = tokens[at + 1 : at + chunk + 1]
        given = tokens[at : at + len(wanted), None]
        logits, *after = session.run(["logits", *(s.output for s in contract.states)], {"tokens": given, **states})
        states = {s.input: a for s, a in zip(contract.states, after)}
        rows = logits[:, 0].astype(np.float64)
        peak = rows.max(axis=1, keepdims=True)
        total = np.log(np.exp(rows - peak).sum(axis=1)) + peak[:, 0]
        nats += float((total - rows[np.arange(len(wanted)), wanted]).sum())
    return (nats / math.log(2) + alphabet.hidden_bits(text)) / len(text)
