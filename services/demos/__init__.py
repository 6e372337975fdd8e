"""``eddy demo``: every application of a recurrent network, live, from the shipped models. ``run.py`` drives them."""

from __future__ import annotations

from pipeline.errors import ConfigError
from services.demos.base import Demo
from services.demos.language import LanguageDemo
from services.demos.sentiment import SentimentDemo
from services.demos.speech import SpeechDemo
from services.demos.text import TextDemo
from services.demos.video import VideoDemo


def make_demo(name: str, steps: int) -> Demo:
    """``steps``: to generate a stream, where the demo generates. Raises ConfigError, and what its data lacks."""
    if steps < 1:
        raise ConfigError(f"--steps is {steps}: must be at least 1")
    if name == TextDemo.name:
        return TextDemo(steps)
    others: tuple[type[LanguageDemo | SentimentDemo | SpeechDemo | VideoDemo], ...] = (
        LanguageDemo,
        SentimentDemo,
        SpeechDemo,
        VideoDemo,
    )
    (made,) = (demo() for demo in others if demo.name == name)
    return made
