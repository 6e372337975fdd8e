"""Digits in motion: where they are, where they go, and that one frame does not tell."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest

pytest.importorskip("sklearn")

from PIL import Image
from sklearn.linear_model import LogisticRegression

from export.data.digits import DIRECTIONS, LABELS, SIZE, Digits, encoded, load_digits, moving


def square() -> Digits:
    """One image: a bright block, so that its middle can be found."""
    image = np.zeros((1, 8, 8), np.float32)
    image[0, 3:5, 3:5] = 1
    return Digits(image, np.array([3]))


def middle(frame: np.ndarray) -> np.ndarray:
    """Place of a bright block on a frame without edges, ``[y, x]`` in pixels."""
    light = frame[..., 0].astype(float)
    turns = np.exp(2j * np.pi * np.arange(SIZE) / SIZE)
    angles = [np.angle(turns @ light.sum(axis=1 - axis)) for axis in (0, 1)]
    return np.array(angles) * SIZE / (2 * np.pi)


def test_splits_are_rows_in_order() -> None:
    parts = [load_digits(split) for split in ("train", "develop", "held_out")]
    assert [len(p.digits) for p in parts] == [1257, 180, 360]
    assert len({p.digest for p in parts}) == 3
    assert all(p.images.min() >= 0 and p.images.max() == 1 for p in parts)


def test_a_clip_goes_where_its_label_says() -> None:
    clips = moving(square(), np.zeros(64, np.int64), 6, np.random.default_rng(0), strength=0)
    assert set(clips.directions.tolist()) == set(range(8))
    for frames, direction, label in zip(clips.frames, clips.directions, clips.labels):
        places = np.array([middle(f) for f in frames])
        steps = (np.diff(places, axis=0) + SIZE / 2) % SIZE - SIZE / 2
        down, right = steps.mean(axis=0)
        words = ("down" if down > 0.3 else "up" if down < -0.3 else "", "right" if right > 0.3 else "left")
        wanted = DIRECTIONS[direction]
        assert wanted == (" ".join(w for w in words if w) if abs(right) > 0.3 else words[0])
        assert 0.9 < np.hypot(down, right) < 3.1, "between one and three pixels a frame"
        assert LABELS[label] == f"3 {wanted}"


def test_one_frame_does_not_tell_the_direction() -> None:
    data = load_digits("train")
    random = np.random.default_rng(1)
    clips = moving(data, np.arange(1200), 2, random, strength=0)
    first = clips.frames[:, 0].reshape(1200, -1) / 255
    guess = LogisticRegression(max_iter=100).fit(first[:800], clips.directions[:800])
    assert guess.score(first[800:], clips.directions[800:]) < 0.19, "chance is 0.125; 400 clips, so 0.19 is 4 sigma off"


def test_the_same_seed_gives_the_same_clips() -> None:
    data, index = load_digits("develop"), np.arange(20)
    a, b, c = (moving(data, index, 4, np.random.default_rng(seed), jpeg=0.5) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.frames, b.frames)
    assert (a.frames != c.frames).any()
    assert a.frames.shape == (20, 4, SIZE, SIZE, 1)
    assert a.frames.dtype == np.uint8


def test_single_clips_go_everywhere() -> None:
    seen = {int(moving(square(), np.zeros(1, np.int64), 1, np.random.default_rng(i)).directions[0]) for i in range(60)}
    assert seen == set(range(8))


@pytest.mark.parametrize(("quality", "kind"), [(None, "PNG"), (80, "JPEG")])
def test_frames_as_images(quality: int | None, kind: str) -> None:
    frame = moving(load_digits("develop"), np.arange(1), 1, np.random.default_rng(0)).frames[0, 0]
    image = Image.open(BytesIO(encoded(frame, quality)))
    assert (image.format, image.size, image.mode) == (kind, (SIZE, SIZE), "L")
    apart = np.abs(np.asarray(image).astype(int) - frame[..., 0]).max()
    assert apart == 0 if quality is None else 0 < apart < 80
