"""What a demo is: streams that come from somewhere, and what is shown of what the model says of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pipeline.contract import Contract
from services.screen import Screen


def shipped_model(name: str) -> Path | None:
    """Folder of a shipped model: in the clone that this code is run from, or in the one that we are in; None: in none.

    An installed package has no models: they are the clone's.
    """
    places = (Path(__file__).parents[2] / "models" / name, Path("models") / name)
    return next((place for place in places if place.exists()), None)


@dataclass(frozen=True, slots=True)
class Sent:
    """A record that the demo produces, ``at_s`` seconds after its start: live sources have their pace."""

    key: str
    value: bytes | None
    headers: Mapping[str, str] = field(default_factory=dict)
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Came:
    """An output record that became visible."""

    key: str
    value: bytes
    headers: Mapping[str, bytes]
    timestamp_ms: int
    """Of the input record that it answers."""


class Demo(ABC):
    """See the module. Made before anything starts, so that what is missing is said at once."""

    name: ClassVar[str]
    about: ClassVar[str]
    """One line for the list of demos."""
    model: ClassVar[str]
    """Name of the shipped model."""
    head: ClassVar[str]
    """The head that its models have."""
    topics: ClassVar[tuple[str, str]]
    waits: ClassVar[str] = "record to its answer"
    """What the latencies of the closing line are."""
    generates: ClassVar[bool] = False
    """Whether ``show`` tells when a stream has said its last word; else all is said once all records are done."""

    @abstractmethod
    def streams(self) -> Sequence[str]:
        """Their keys, in the order of their lines."""

    @abstractmethod
    def records(self, contract: Contract) -> Sequence[Sent]:
        """All that is sent, in the order of ``at_s``. Raises ContractError for a model that cannot serve it."""

    @abstractmethod
    def show(self, came: Came, screen: Screen) -> bool:
        """Puts it on the screen; True: the stream's last word."""

    def sent(self, record: Sent, screen: Screen) -> None:  # noqa: B027  # most show nothing then
        """It goes out now; some demos show what they send."""

    def latency_s(self, came: Came, now_s: float) -> float:
        """What the closing line counts; ``now_s`` since the epoch."""
        return now_s - came.timestamp_ms / 1e3

    def summary(self) -> str:
        """How the model did, one line at the end."""
        return ""


def percent(share: float) -> str:
    """A probability for people."""
    return f"{100 * share:.0f}%"
