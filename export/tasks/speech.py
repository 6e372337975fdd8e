"""Hearing: sound in pieces of any size in, what is said in it out, while it is said."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from export.arguments import number
from export.extras import need
from export.tasks.base import Figure, Scores, Served, Task
from export.training.schedule import Schedule

if TYPE_CHECKING:
    from export.card import CardText
    from export.data.prompts import Prompt
    from export.tasks.hearing import Listener
    from export.training.checkpoint import Run
    from export.training.speech import Sounds, SpeechProblem

PROMPTS, SYNTHESIS = "prompts", "synthesis"
LANGUAGE_MODEL = "characters.lm"
BEAM = {"beam": 32, "lm_weight": 0.5, "insertion_bonus": 1.0}
"""Chosen on the development prompts."""
HELD_OUT, WORDS = "held-out human prompts", "human digits/ and letters/"
LONG = "demo-instruct"
"""The prompt that is more than a quarter of the held-out time."""


class SpeechTask(Task):
    """`eddy train speech`."""

    name: ClassVar[str] = "speech"
    help: ClassVar[str] = "a net that writes down what it hears"
    defaults: ClassVar[Schedule] = Schedule(epochs=200, learning_rate=2e-3, ema=0.999)

    def add_arguments(self, parser: ArgumentParser) -> None:
        add = parser.add_argument
        what = "a human's recorded prompts and synthetic voices, or these alone [prompts]"
        add("--data", choices=(PROMPTS, SYNTHESIS), default=PROMPTS, help=what)
        number(parser, "--clips", 8000, 1, "synthetic utterances to make")
        number(parser, "--epoch-seconds", 1500.0, 1.0, "of sound in an epoch")
        number(parser, "--layers", 3, 1, "recurrent layers on top of each other")
        number(parser, "--units", 256, 1, "units of each layer")
        number(parser, "--dropout", 0.15, 0.0, "share of activations dropped in training")
        add("--bfloat16", action="store_true", help="compute in 16 bits, on processors that have them: half as long")

    def problem(self, args: Namespace) -> SpeechProblem:
        from export.data.distort import Distortion
        from export.data.synthesis import phonemes
        from export.nets.speech import SpeechNetShape
        from export.training.speech import Recipe, SpeechProblem

        alone = args.data == SYNTHESIS
        sounds = _synthetic(args.clips, args.seed) if alone else _mixed(args.clips, args.seed)
        worse = Distortion(tempo=0.2, colour_db=10.0, noise=0.5, line=0.5) if alone else Distortion(noise=0.2)
        recipe = Recipe(seconds=args.epoch_seconds, distortion=worse, bfloat16=args.bfloat16)
        words = sorted({word for clip in (*sounds.human, *sounds.synthetic) for word in clip.text.split()})
        shape = SpeechNetShape(layers=args.layers, units=args.units, dropout=args.dropout)
        return SpeechProblem(sounds, phonemes(words), shape, recipe, args.data, args.epochs)

    def served(self, run: Run) -> Served:
        from export.data.prompts import CHARACTERS
        from export.nets.speech import RATE, STEP, STEP_S
        from export.training.speech import net_of
        from pipeline.beside import entry
        from pipeline.contract import CodecSpec, HeadSpec, StepInput

        data, net = run.settings["data"], net_of(run)
        settings: dict[str, Any] = {"step_s": STEP_S}
        beside = {}
        if data == PROMPTS:
            beside[LANGUAGE_MODEL] = file = run.file.parent / LANGUAGE_MODEL
            file.write_bytes(language_model())
            settings |= {**BEAM, "language_model": entry(LANGUAGE_MODEL, file.read_bytes())}
        return Served(
            net=net,
            steps=StepInput("pcm", "float32", (STEP,)),
            codec=CodecSpec("audio", settings={"rate": RATE}),
            head=HeadSpec("transcribe", output="logits", labels=("", *CHARACTERS), settings=settings),
            card=_card(run, sum(p.numel() for name, p in net.named_parameters() if not name.startswith("sounds."))),
            about={"data": data},
            beside=beside,
        )

    def score(self, model: Path, about: Mapping[str, Any], *, baselines: bool = False) -> Scores:
        from export.data.prompts import digest, load_prompts
        from export.tasks.hearing import Listener

        listener, recorded = Listener(model), load_prompts()
        if about["data"] == SYNTHESIS:
            spoken = [p for p in recorded.all if p.name.startswith(("digits/", "letters/"))]
            figures = _figures_of_words(listener, spoken, recorded.held_out)
        else:
            spoken = list(recorded.held_out)
            how = f"language model in a beam of {listener.contract.head.settings['beam']}"
            figures = _figures_of_prompts(listener, spoken, how)
            figures += _figures_of_time(listener, spoken)
        if baselines:
            figures += _sphinx(spoken, WORDS if about["data"] == SYNTHESIS else HELD_OUT)
        return Scores(digest(spoken), tuple(figures))


def language_model() -> bytes:
    """Characters of the training transcripts, which count eight times, and of prose: Python's reference topics."""
    from export.data.prompts import CHARACTERS, load_prompts
    from export.data.sayings import prose_lines
    from export.language_model import build

    lines = [p.text for p in load_prompts().train] * 8 + prose_lines()
    return build(lines, 10, alphabet=tuple(CHARACTERS), max_bytes=60_000).to_bytes()


def _mixed(count: int, seed: int) -> Sounds:
    from export.data import prompts, sayings, synthesis
    from export.training.speech import Clip, Sounds

    recorded = prompts.load_prompts()
    kinds = {"phrases": 0.35, "prose": 0.3, "words": 0.15, "digits": 0.08, "named": 0.08, "letters": 0.04}
    texts = sayings.sayings(count, seed, kinds, [p.text for p in recorded.train])
    heard = synthesis.speak(synthesis.cast(texts, seed, women=0.7))
    return Sounds(
        human=[Clip(p.pcm, p.text) for p in recorded.train],
        synthetic=[Clip(pcm, text) for pcm, text in zip(heard, texts)],
        develop=[Clip(p.pcm, p.text) for p in recorded.develop],
        source=f"{prompts.SOURCE}; {synthesis.SOURCE}, saying parts of the training transcripts and {sayings.SOURCE}",
        licence=f"prompts: {prompts.LICENCE}; synthetic voices: {synthesis.LICENCE}",
    )


def _synthetic(count: int, seed: int) -> Sounds:
    from export.data import sayings, synthesis
    from export.training.speech import Clip, Sounds

    kinds = {"digits": 0.3, "named": 0.25, "letters": 0.1, "words": 0.2, "prose": 0.15}
    texts = sayings.sayings(count + 200, seed, kinds)
    slow_too = (85, 190)
    heard = synthesis.speak(synthesis.cast(texts[:count], seed, 0.6, slow_too))
    others = synthesis.speak(synthesis.cast(texts[count:], seed + 1, None, slow_too))
    return Sounds(
        human=(),
        synthetic=[Clip(pcm, text) for pcm, text in zip(heard, texts)],
        develop=[Clip(pcm, text) for pcm, text in zip(others, texts[count:])],
        source=f"{synthesis.SOURCE}, saying {sayings.SOURCE}; no human voice and none of the prompts' transcripts",
        licence=synthesis.LICENCE,
    )


def _figures_of_prompts(listener: Listener, prompts: Sequence[Prompt], how: str) -> list[Figure]:
    from export.tasks.hearing import text_of

    logits = [listener.logits(p.pcm) for p in prompts]
    figures = []
    for name, contract in (("greedy", listener.greedy()), (how, listener.contract)):
        texts = [text_of(said) for said in listener.transcribe(logits, contract)]
        figures += _rates(prompts, texts, HELD_OUT, name, 5e-3, baseline=False)
    return [*(f for f in figures if LONG not in f.name), *(f for f in figures if LONG in f.name)]


def _rates(
    prompts: Sequence[Prompt], texts: Sequence[str], what: str, how: str, tolerance: float, *, baseline: bool
) -> list[Figure]:
    """CER and WER; where the longest prompt is among them, without it too."""
    from export.edits import rates

    figures = []
    others = [p for p in prompts if p.name != LONG]
    for where, kept in (("", prompts), (f", without {LONG}", others))[: 1 + (len(others) < len(prompts))]:
        names = {p.name for p in kept}
        found = rates([t for p, t in zip(prompts, texts) if p.name in names], [p.text for p in kept])
        for name, value in (("CER", found.cer), ("WER", found.wer)):
            label = f"{name} of {len(kept)} {what}{where}, {how}"
            figures.append(Figure(label, value, tolerance=tolerance, baseline=baseline))
    return figures


def _figures_of_time(listener: Listener, prompts: Sequence[Prompt]) -> list[Figure]:
    """Speed may be anything faster than real time on another machine; end points may not move."""
    from export.data.prompts import RATE
    from export.tasks.hearing import ends, speed

    fast = speed(listener, max(prompts, key=lambda p: len(p.pcm)).pcm)
    found = ends(listener, [p.pcm for p in prompts], RATE)
    return [
        Figure("real-time factor, one thread, a call for each 30 ms", fast.real_time_factor, tolerance=0.9),
        Figure("computing for a chunk of 30 ms, median", fast.step_ms, "ms", 2, 29.0),
        Figure("computing for a chunk of 30 ms, 99th percentile", fast.step_ms_p99, "ms", 2, 1e3),
        Figure("end points found in pauses of 1 s between prompts", found.found, tolerance=0.04),
        Figure("end points a prompt inside of it", found.inside, tolerance=0.1),
        Figure("end of speech as said, behind the last sound, median", found.late_s, "s", 2, 0.1),
    ]


def _figures_of_words(listener: Listener, words: Sequence[Prompt], prompts: Sequence[Prompt]) -> list[Figure]:
    from export.data.sayings import DIGITS
    from export.tasks.hearing import choose, text_of

    labels = listener.contract.head.labels
    logits = {p.name: listener.logits(p.pcm) for p in words}

    def right(some: Sequence[Prompt], texts: Sequence[str]) -> int:
        return sum(texts[choose(logits[p.name], texts, labels)] == p.text for p in some)

    names = DIGITS.split()
    digits = [p for p in words if p.text in names and p.name.startswith("digits/")]
    every = sorted({p.text for p in words})
    texts = [text_of(said) for said in listener.transcribe(list(logits.values()))]
    spoken = [text_of(said) for said in listener.transcribe([listener.logits(p.pcm) for p in prompts])]
    return [
        Figure(f"of the {len(digits)} human digits, right from a closed list", right(digits, names), "", 0, 0.0),
        Figure(
            f"{len(words)} {WORDS}, right from a list of all {len(every)}",
            right(words, every) / len(words),
            "",
            4,
            0.02,
        ),
        *_rates(words, texts, WORDS, "open, greedy", 1e-2, baseline=False),
        *_rates(prompts, spoken, HELD_OUT, "open, greedy", 1e-2, baseline=False),
    ]


def _sphinx(prompts: Sequence[Prompt], what: str) -> list[Figure]:
    """Pocketsphinx with the model of its wheel, on the same sound at the rate that it wants. Raises ConfigError."""
    from export.data.prompts import RATE, normalise
    from export.data.synthesis import resample

    need("score --baselines", "pocketsphinx")
    from pocketsphinx import Decoder

    rate = 16000
    decoder = Decoder(samprate=rate, loglevel="FATAL")
    texts = []
    for prompt in prompts:
        decoder.start_utt()
        decoder.process_raw(resample(prompt.pcm, RATE, rate).tobytes(), full_utt=True)
        decoder.end_utt()
        heard = decoder.hyp()
        texts.append(normalise(heard.hypstr if heard else ""))
    return _rates(prompts, texts, what, "pocketsphinx 5 with its own model", 2e-2, baseline=True)


def _card(run: Run, weights: int) -> CardText:
    from export.card import CardText

    settings, schedule, progress, described = run.settings, run.schedule, run.progress, run.described
    shape, recipe = settings["shape"], settings["recipe"]
    human, synthetic, develop = (f"{s / 60:.1f} minutes" for s in described["seconds"])
    alone = settings["data"] == SYNTHESIS
    mixture = "" if alone else f"{human} of human speech and "
    judged = f"All {WORDS} are judged, and the held-out prompts: " if alone else "Held out: "
    return CardText(
        summary=(
            "Writes down English telephone speech, 8 kHz, while it is said: log-mel energies in the graph, two causal"
            f" convolutions of {shape['channels']} channels, {shape['layers']} LSTM layers of {shape['units']} units,"
            f" {weights:,} weights; connectionist temporal classification over 28 characters, a step being 30 ms."
        ),
        data=(
            f"{described['source']}. Licences: {described['licence']}. {mixture}{synthetic} of synthetic speech to"
            f" train on, {develop} for development. {judged}sha256(name) % 10 == 0 of those that hold speech;"
            " 17 of 568 recordings are tones and silence. Some held-out prompts share most of their text with"
            f" others; {LONG} is 27% of their time."
        ),
        training=(
            f"{progress.epoch} epochs of {recipe['seconds']:.0f} s of sound, {recipe['human'] * (not alone):.0%} of it"
            f" human, short clips first, half of them joined to others, each with its own tempo, colour, loudness and"
            f" noise and with masks over bands and time; a second loss over espeak-ng's phonemes in the middle, weight"
            f" {recipe['helping']:g}; AdamW {schedule.learning_rate:g} with half a cosine, moving average"
            f" {schedule.ema:g}, dropout {shape['dropout']:g}, gradient norm at most {schedule.clip_norm:g},"
            f" {'bfloat16' if recipe['bfloat16'] else 'float32'}, seed {schedule.seed};"
            f" {progress.cpu_seconds / 60:.1f} minutes of processor time in {progress.seconds / 60:.1f} minutes, torch"
            f" threads: {described['threads']}. The weights are those of epoch {progress.best_epoch}, which had the"
            " least character error rate on the development sounds."
        ),
        metrics=(("CER, development sounds, greedy (least)", f"{progress.best_score:.4f}"),),
        licence=f"Apache-2.0, as Eddy; the training sounds: {described['licence']}.",
    )
