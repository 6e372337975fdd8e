"""How an adoption can end other than well, and what a single run can end with."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import ConfigError, ModelError


class Refused(ModelError):
    """The model cannot be served right; the message is the reason."""


class Unclear(ConfigError):
    """No run can tell. ``flags`` are what to add to the command, each complete; the message has them too."""

    def __init__(self, questions: Sequence[tuple[str, str]]) -> None:
        self.flags = [flag for _, flag in questions]
        asked = "; ".join(f"{what}: give {flag}" for what, flag in questions)
        super().__init__(asked)


class Fails(Exception):
    """onnxruntime does not run the graph on this feed; the message is its first line."""
