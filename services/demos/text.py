"""``eddy demo text``: a few prompts, and the text that each stream generates, as it arrives."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.contract import Contract
from services.demos.base import Came, Demo, Sent
from services.screen import Screen

PROMPTS = {
    "for": "The for statement is used to",
    "class": "A class definition",
    "lambda": "Lambda expressions",
    "import": "The import system",
    "string": "String literals can",
    "try": "If an exception occurs in the try clause,",
    "list": "The items of a list are",
    "yield": "When a generator function is called,",
}
"""Without a space at the end, which is a token of its own where tokens are parts of words."""
TEMPERATURE = 0.5


class TextDemo(Demo):
    """See the module."""

    name = "text"
    about = "prompts in, generated text out, as it is made"
    model = "python-reference"
    head = "generate"
    topics = ("prompts", "texts")
    waits = "prompt to first piece, then piece to piece"
    generates = True

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._last: dict[str, float] = {}

    def streams(self) -> Sequence[str]:
        return list(PROMPTS)

    def records(self, contract: Contract) -> Sequence[Sent]:
        settings = {"eddy-max-steps": str(self._steps), "eddy-temperature": str(TEMPERATURE)}
        return [
            Sent(key, prompt.encode(), {**settings, "eddy-seed": str(number)})
            for number, (key, prompt) in enumerate(PROMPTS.items())
        ]

    def sent(self, record: Sent, screen: Screen) -> None:
        screen.grow([(record.key, PROMPTS[record.key])])

    def show(self, came: Came, screen: Screen) -> bool:
        screen.grow([(came.key, came.value.decode())])
        return "eddy-finish" in came.headers

    def latency_s(self, came: Came, now_s: float) -> float:
        since = self._last.get(came.key, came.timestamp_ms / 1e3)
        self._last[came.key] = now_s
        return now_s - since
