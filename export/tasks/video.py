"""Image sequences: frames of a moving digit in, which digit and which way it moves out, after every frame."""

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
    from export.data.digits import Clips
    from export.exporter import Exported, ExportOptions
    from export.training.checkpoint import Run
    from export.training.confusion import Confusion
    from export.training.video import VideoProblem

PLACES = (1, 2, 4, 8)
"""Frames of a clip after which it is judged."""
CLIPS = 1080
"""Held-out clips: three of each image."""
SEED = 7
"""Of their motions."""
QUALITY = 75
"""Of the JPEG that the clips are scored through, too."""
DIGIT, DIRECTION = "confusion-digit.png", "confusion-direction.png"


class VideoTask(Task):
    """`eddy train video`."""

    name: ClassVar[str] = "video"
    help: ClassVar[str] = "a net that watches a handwritten digit move"
    defaults: ClassVar[Schedule] = Schedule(epochs=8, learning_rate=3e-3)
    needs: ClassVar[tuple[str, ...]] = ("scikit-learn",)

    def add_arguments(self, parser: ArgumentParser) -> None:
        number(parser, "--channels", 16, 1, "of the first convolution")
        number(parser, "--units", 128, 1, "units of the recurrent layer")
        number(parser, "--dropout", 0.1, 0.0, "share of activations dropped in training")
        number(parser, "--lanes", 64, 1, "clips trained side by side")
        number(parser, "--frames", 8, 2, "of a clip")
        number(parser, "--updates", 80, 1, "batches of an epoch")

    def problem(self, args: Namespace) -> VideoProblem:
        from export.data.digits import load_digits
        from export.nets.video import VideoNetShape
        from export.training.video import VideoProblem

        shape = VideoNetShape(channels=args.channels, units=args.units, dropout=args.dropout)
        return VideoProblem(
            load_digits("train"),
            load_digits("develop"),
            shape,
            lanes=args.lanes,
            frames=args.frames,
            updates=args.updates,
        )

    def served(self, run: Run) -> Served:
        from export.data.digits import LABELS, SIZE
        from export.training.video import net_of
        from pipeline.contract import CodecSpec, HeadSpec, StepInput

        net = net_of(run)
        return Served(
            net=net,
            steps=StepInput("frames", "uint8", (SIZE, SIZE, 1)),
            codec=CodecSpec("video", settings={"frames": "encoded"}),
            head=HeadSpec("classify", output="logits", labels=LABELS),
            card=_card(run, sum(p.numel() for p in net.parameters())),
            about={},
        )

    def score(self, model: Path, about: Mapping[str, Any], *, baselines: bool = False) -> Scores:
        from export.data.digits import load_digits

        clips = held_out()
        found = _confusions(model, clips, None)
        figures = [
            Figure(f"{what} accuracy after {_frames(n)}, held out", found[n][i].accuracy, tolerance=2e-3)
            for n in reversed(PLACES)
            for i, what in enumerate(("digit", "direction"))
        ]
        lossy = _confusions(model, clips, QUALITY)[max(PLACES)]
        figures += [
            Figure(f"{what} accuracy after {_frames(max(PLACES))} of JPEG, held out", c.accuracy, tolerance=5e-3)
            for what, c in zip(("digit", "direction"), lossy)
        ]
        if baselines:
            figures += _baselines(clips)
        return Scores(load_digits("held_out").digest, tuple(figures))

    def export(
        self, run: Run, output: Path, command: str, settings: Mapping[str, Any], options: ExportOptions
    ) -> Exported:
        """Writes two confusion matrices and their tables too."""
        exported = super().export(run, output, command, settings, options)
        last = max(PLACES)
        both = _confusions(output, held_out(), None)[last]
        for what, picture, found in zip(("digit", "direction"), (DIGIT, DIRECTION), both):
            found.write_png(output / picture, f"{exported.contract.label}, {what} after {_frames(last)}, held out")
            found.append_to(output / "README.md", picture, f"{what} after {_frames(last)}")
        return exported


def held_out() -> Clips:
    """The clips that are scored: the held-out images in motion, one after the other, and again."""
    import numpy as np

    from export.data.digits import load_digits, moving

    data = load_digits("held_out")
    index = np.arange(CLIPS) % len(data.digits)
    return moving(data, index, max(PLACES), np.random.default_rng(SEED))


def _frames(count: int) -> str:
    return f"{count} frame{'s' * (count > 1)}"


def _confusions(model: Path, clips: Clips, quality: int | None) -> dict[int, tuple[Confusion, Confusion]]:
    """Of digits and of directions, after each of ``PLACES`` frames, sent as PNG or as JPEG of some quality."""
    from export.data.digits import DIRECTIONS, encoded
    from export.tasks.conversations import converse
    from export.training.confusion import Confusion

    records = [[encoded(clip[t], quality) for clip in clips.frames] for t in range(max(PLACES))]
    said = converse(model, records).argmax(2)
    return {
        n: (
            Confusion.of([str(digit) for digit in range(10)], clips.digits, said[n - 1] // len(DIRECTIONS)),
            Confusion.of(DIRECTIONS, clips.directions, said[n - 1] % len(DIRECTIONS)),
        )
        for n in PLACES
    }


def _baselines(clips: Clips) -> list[Figure]:
    """What a frame tells by logistic regression, and an image that stands still, as the data set has it; and chance."""
    need("score --baselines", "scikit-learn")
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from export.data.digits import DIRECTIONS, load_digits, moving

    train, test = load_digits("train"), load_digits("held_out")
    index = np.arange(3 * len(train.digits)) % len(train.digits)
    shown = moving(train, index, 1, np.random.default_rng(SEED))
    frame = LogisticRegression(max_iter=200).fit(_flat(shown.frames[:, 0]), shown.digits)
    still = LogisticRegression(max_iter=1000).fit(_flat(train.images), train.digits)
    name = "logistic regression on"
    return [
        Figure(
            f"digit accuracy, held out, {name} one frame",
            float(frame.score(_flat(clips.frames[:, 0]), clips.digits)),
            tolerance=1e-2,
            baseline=True,
        ),
        Figure(
            f"digit accuracy, held out, {name} the image itself, which does not move",
            float(still.score(_flat(test.images), test.digits)),
            tolerance=1e-2,
            baseline=True,
        ),
        Figure("direction accuracy, chance", 1 / len(DIRECTIONS), baseline=True),
    ]


def _flat(images: Any) -> Any:
    """``[N, ...]`` of any dtype -> float32 ``[N, pixels]`` from 0 to 1."""
    flat = images.reshape(len(images), -1).astype("float32")
    return flat / 255 if images.dtype == "uint8" else flat


def _card(run: Run, weights: int) -> CardText:
    from export.card import CardText
    from export.data.digits import LICENCE, NOISE, ROWS, SIZE, SPEEDS
    from export.training.video import JPEG

    settings, schedule, progress, described = run.settings, run.schedule, run.progress, run.described
    shape, best = settings["shape"], progress.curve[progress.best_epoch - 1]
    train, develop, held = (f"rows {first} to {last - 1}" for first, last in ROWS.values())
    return CardText(
        summary=(
            "Watches a handwritten digit move and tells after every frame which digit it is and which way it moves:"
            f" three convolutions over each frame of {SIZE} x {SIZE} pixels, the product of what it glances at now and"
            f" at the frame before, a GRU of {shape['units']} units, {weights:,} weights."
        ),
        data=(
            f"`sklearn.datasets.load_digits`, 8 x 8 pixels, set in motion: {SPEEDS[0]:g} to {SPEEDS[1]:g} pixels a"
            " frame into one of eight directions, around the edges of the frame, from a random place, with random"
            f" light, contrast and noise (up to {NOISE:g} of 255); {LICENCE}. To train on {train}, for development"
            f" {develop}, held out {held}, {CLIPS} clips (seed {SEED}). Where a digit stands says nothing of"
            " where it goes: after one frame the direction can only be guessed."
        ),
        training=(
            f"Back-propagation through clips of {settings['frames']} frames, {settings['lanes']} side by side, new ones"
            f" in every batch, {JPEG:.0%} of them through JPEG; {progress.epoch} epochs of {settings['updates']}"
            f" updates, AdamW {schedule.learning_rate:g} with half a cosine, dropout {shape['dropout']:g}, gradient"
            f" norm at most {schedule.clip_norm:g}, seed {schedule.seed}; {progress.cpu_seconds / 60:.1f} minutes of"
            f" processor time in {progress.seconds / 60:.1f} minutes, torch threads: {described['threads']}. The"
            " weights are those of the epoch with the least cross entropy on the development clips."
        ),
        metrics=tuple((f"{name}, development", f"{value:.4f}") for name, value in best.extras.items()),
        licence="Apache-2.0, as Eddy; the digits are under BSD-3-Clause (scikit-learn) and CC BY 4.0 (UCI).",
    )
