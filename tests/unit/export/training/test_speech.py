"""Training a tiny net that hears chords: it learns them, and what it learns from follows from the seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from export.data.distort import Distortion  # noqa: E402
from export.edits import edits  # noqa: E402
from export.nets.speech import RATE, STEP, SpeechNetShape  # noqa: E402
from export.training import speech  # noqa: E402
from export.training.checkpoint import read_run  # noqa: E402
from export.training.loop import fit  # noqa: E402
from export.training.schedule import Schedule  # noqa: E402
from export.training.speech import Clip, Recipe, Sounds, SpeechProblem, ctc, greedy_text, mask, net_of  # noqa: E402

HERTZ = {"a": (300, 1100, 2300), "b": (600, 1500, 2900), "c": (800, 1900, 3500)}
LEXICON = {"a": ("eI",), "b": ("b", "i:"), "c": ("s", "i:"), "bca": ("b", "i:", "s", "i:", "eI")}
SHAPE = SpeechNetShape(mels=40, channels=24, layers=1, units=32, dropout=0.0)


def clip(text: str, seed: int) -> Clip:
    """A chord a letter, 0.25 s each, with a gap."""
    rng = np.random.default_rng(seed)
    parts = []
    for letter in text:
        t = np.arange(int(0.25 * RATE)) / RATE
        parts += [sum(3000 * np.sin(2 * np.pi * h * t) for h in HERTZ[letter]), np.zeros(int(0.1 * RATE))]
    sound = np.concatenate(parts) + rng.standard_normal(sum(map(len, parts)))
    return Clip(sound.astype(np.int16), text)


def problem(epochs: int = 12, seconds: float = 60.0) -> SpeechProblem:
    words = ["a", "b", "c", "ab", "ba", "cc", "bca", "ac"]
    sounds = Sounds(
        human=[clip(w, i) for i, w in enumerate(words)],
        synthetic=[clip(w, 10 + i) for i, w in enumerate(reversed(words))],
        develop=[clip("ca", 30), clip("b", 31), clip("abc", 32)],
        source="tones",
        licence="none",
    )
    torch.manual_seed(0)
    recipe = Recipe(seconds=seconds, join=0.3, longest_s=3.0, distortion=Distortion(tempo=0.03, colour_db=2))
    return SpeechProblem(sounds, LEXICON, SHAPE, recipe, "tones", epochs)


def test_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "_BATCH_S", 3.0)  # many small updates: there is little to hear
    monkeypatch.setattr(speech, "_BATCH_MIN", 4)
    progress = fit(problem(seconds=100.0), Schedule(epochs=12, learning_rate=5e-3, ema=0.9), tmp_path / "run")
    assert progress.best_score < 0.5
    assert progress.curve[-1].train < 0.3 * progress.curve[0].train
    net = net_of(read_run(tmp_path / "run/checkpoint.pt"))
    with torch.inference_mode():
        wrong = sum(edits(greedy_text(net, c.pcm), c.text) for c in problem().sounds.develop)
    assert wrong / 6 == pytest.approx(progress.best_score)


def test_an_epoch_is_a_function_of_seed_and_number() -> None:
    a, b, c = (list(problem(seconds=10).batches(epoch, 5)) for epoch in (3, 3, 4))
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert torch.equal(x.pcm, y.pcm)
        assert (x.characters, x.sounds) == (y.characters, y.sounds)
    assert [x.characters for x in a] != [x.characters for x in c]
    assert a[0].pcm.shape[1] % STEP == 0
    assert all(int(x.steps.max()) * STEP == x.pcm.shape[1] for x in a)


def test_short_clips_come_first() -> None:
    def longest(epoch: int) -> int:
        return max(len(c) for heap in problem(epochs=20).batches(epoch, 0) for c in heap.characters)

    assert longest(0) < longest(19)


def test_the_loss_is_nats_per_label_and_a_clip_too_short_counts_nothing() -> None:
    logits = torch.zeros(4, 2, 3)
    # Four steps of three equal labels: a label can be said in 10 of 81 ways (repeats, blanks around).
    steps = torch.tensor([4, 1])
    assert float(ctc(logits, steps, [[1], [1, 1]])) == pytest.approx(np.log(81 / 10) / 3, rel=1e-5)


def test_masks_hide_some_of_the_bands_and_of_the_time() -> None:
    torch.manual_seed(1)
    mels = mask(torch.ones(3, 40, 300), torch.tensor([100, 100, 50]))
    hidden = (mels == 0).float().mean(dim=(1, 2))
    assert all(0 < share < 0.6 for share in hidden.tolist())
    assert torch.all(mels[2, :, 160:].sum(0) > 0)
