"""Text classification: the characters of a document in, the language of all that came so far out."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from export.arguments import number
from export.extras import need
from export.tasks.base import Figure, Scores, Served, Task
from export.training.schedule import Schedule

if TYPE_CHECKING:
    from export.card import CardText
    from export.exporter import Exported, ExportOptions
    from export.training.checkpoint import Run
    from export.training.confusion import Confusion
    from export.training.language import LanguageProblem

PLACES = (10, 20, 50, 100)
"""Characters of a stream after which its language is judged."""
EACH = 100
"""Held-out streams of every language."""
SEED = 7
"""Of the places where they begin."""
BY_CLASS = 20
"""Characters after which classes are told apart in the confusion matrix."""
CONFUSION = "confusion.png"

Sample = list[tuple[str, int]]


class LanguageTask(Task):
    """`eddy train language`."""

    name: ClassVar[str] = "language"
    help: ClassVar[str] = "a net that tells the language of a text"
    defaults: ClassVar[Schedule] = Schedule(epochs=8, learning_rate=4e-3)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--net", choices=("mingru", "gru", "lstm"), default="mingru", help="layers [mingru]")
        number(parser, "--layers", 2, 1, "recurrent layers on top of each other")
        number(parser, "--units", 192, 1, "units of each layer")
        number(parser, "--dropout", 0.1, 0.0, "share of activations dropped in training")
        number(parser, "--lanes", 64, 1, "streams trained side by side")
        number(parser, "--window", 96, 1, "bytes that the error goes back")
        number(parser, "--updates", 150, 1, "windows of an epoch")

    def problem(self, args: Namespace) -> LanguageProblem:
        from export.data.pages import LANGUAGES, load_pages, versions
        from export.nets.language import LanguageNetShape
        from export.training.language import LanguageProblem

        pages = load_pages(["develop", "train"])
        shape = LanguageNetShape(
            len(LANGUAGES), kind=args.net, layers=args.layers, units=args.units, dropout=args.dropout
        )
        return LanguageProblem(
            pages["train"],
            pages["develop"],
            shape,
            lanes=args.lanes,
            window=args.window,
            updates=args.updates,
            packages=versions(),
        )

    def served(self, run: Run) -> Served:
        from export.training.language import net_of
        from pipeline.contract import CodecSpec, HeadSpec, StepInput

        net = net_of(run)
        return Served(
            net=net,
            steps=StepInput("tokens", "int64"),
            codec=CodecSpec("text", settings={"unit": "bytes"}),
            head=HeadSpec("classify", output="logits", labels=tuple(run.settings["languages"])),
            card=_card(run, sum(p.numel() for p in net.parameters())),
            about={"packages": run.described["packages"]},
        )

    def score(self, model: Path, about: Mapping[str, Any], *, baselines: bool = False) -> Scores:
        from export.data.pages import digest, load_pages, streams
        from export.training.confusion import Confusion

        pages = load_pages(["held_out"])["held_out"]
        sample = streams(pages, EACH, max(PLACES), SEED)
        found = _confusions(model, sample)
        figures = [Figure(f"accuracy after {n} characters, held out", found[n].accuracy) for n in PLACES]
        figures.append(Figure(f"macro F1 after {BY_CLASS} characters, held out", found[BY_CLASS].macro_f1))
        if baselines:
            truth = [label for _, label in sample]
            for name, guess in (("lingua", lingua), ("py3langid", langid)):
                for n, said in guess(sample).items():
                    other = Confusion.of((*found[n].labels, "unknown"), truth, said)
                    figures.append(
                        Figure(f"accuracy after {n} characters, held out, {name}", other.accuracy, baseline=True)
                    )
        return Scores(digest(pages), tuple(figures))

    def export(
        self, run: Run, output: Path, command: str, settings: Mapping[str, Any], options: ExportOptions
    ) -> Exported:
        """Writes ``confusion.png`` and the table of classes too."""
        from export.data.pages import LANGUAGES, load_pages, streams

        exported = super().export(run, output, command, settings, options)
        pages = load_pages(["held_out"])["held_out"]
        found = _confusions(output, streams(pages, EACH, max(PLACES), SEED))[BY_CLASS]
        found.write_png(output / CONFUSION, f"{exported.contract.label}, after {BY_CLASS} characters of held-out pages")
        names = tuple(f"{code} ({name})" for code, name in LANGUAGES.items())
        found.append_to(output / "README.md", CONFUSION, f"after {BY_CLASS} characters", names)
        return exported


def _confusions(model: Path, sample: Sample) -> dict[int, Confusion]:
    """After each of ``PLACES`` characters of these streams, cut into records there; held against the labels."""
    from export.data.pages import LANGUAGES
    from export.tasks.conversations import converse
    from export.training.confusion import Confusion

    cuts = list(zip((0, *PLACES), PLACES))
    said = converse(model, [[text[a:b].encode() for text, _ in sample] for a, b in cuts])
    truth = [label for _, label in sample]
    return {n: Confusion.of(tuple(LANGUAGES), truth, s.argmax(1)) for n, s in zip(PLACES, said)}


def lingua(sample: Sample) -> dict[int, list[int]]:
    """What lingua says, which chooses among the same languages; the number of languages where it says nothing."""
    need("score --baselines", "lingua-language-detector", extra="baselines")
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    from export.data.pages import LANGUAGES

    codes = [getattr(IsoCode639_1, code.upper()) for code in LANGUAGES]
    numbers = {code: i for i, code in enumerate(codes)}
    detector = LanguageDetectorBuilder.from_iso_codes_639_1(*codes).with_preloaded_language_models().build()
    answers = {n: [detector.detect_language_of(text[:n]) for text, _ in sample] for n in PLACES}
    return {n: [len(codes) if a is None else numbers[a.iso_code_639_1] for a in said] for n, said in answers.items()}


def langid(sample: Sample) -> dict[int, list[int]]:
    """What py3langid says, which chooses among the same languages; to it all Norwegian is ``no``."""
    need("score --baselines", "py3langid", extra="baselines")
    import py3langid

    from export.data.pages import LANGUAGES

    numbers = {"no" if code == "nb" else code: i for i, code in enumerate(LANGUAGES)}
    py3langid.set_languages(list(numbers))
    return {n: [numbers[str(py3langid.classify(text[:n])[0])] for text, _ in sample] for n in PLACES}


def _card(run: Run, weights: int) -> CardText:
    from export.card import CardText

    settings, schedule, progress, described = run.settings, run.schedule, run.progress, run.described
    shape, best = settings["shape"], progress.curve[progress.best_epoch - 1]
    return CardText(
        summary=(
            f"Tells in which of {len(settings['languages'])} languages a text is, after every record and from any place"
            f" in it on. It reads bytes of UTF-8, {shape['width']} at a time: {shape['grams']} patterns in them,"
            f" {shape['layers']} layers ({shape['kind']}) of {shape['units']} units, {weights:,} weights."
        ),
        data=(
            f"Manual pages of Debian, rendered, prose only ({described['packages']}); {described['licence']}."
            f" To train on: {described['train']}; for development: {described['develop']}. Held out are the pages, in"
            " all languages, of whose names the SHA-256 is a multiple of ten, for development those with rest one; a"
            f" paragraph that several pages share stays with one. {EACH} streams of each language are scored, which"
            f" begin at random places of held-out pages (seed {SEED})."
        ),
        training=(
            f"Truncated back-propagation over {settings['window']} bytes, {settings['lanes']} streams side by side, the"
            " same number of each language; three of four are one window long, the others three. Early bytes count"
            f" more. {progress.epoch} epochs of {settings['updates']} updates, AdamW {schedule.learning_rate:g} with"
            f" half a cosine, dropout {shape['dropout']:g}, gradient norm at most {schedule.clip_norm:g}, seed"
            f" {schedule.seed}; {progress.cpu_seconds / 60:.1f} minutes of processor time in"
            f" {progress.seconds / 60:.1f} minutes, torch threads: {described['threads']}. The weights are those of the"
            " epoch with the least cross entropy on the development pages."
        ),
        metrics=tuple((f"{name}, development", f"{value:.4f}") for name, value in best.extras.items()),
        licence=f"Apache-2.0, as Eddy; the pages are under {described['licence']}.",
    )
