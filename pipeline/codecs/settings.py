"""Reading what a contract sets for a codec or a head: each value checked, and named when it is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pipeline.beside import EXPECTED, NOTHING_BESIDE, Beside, names_file
from pipeline.contract import Contract
from pipeline.errors import ContractError


class Settings:
    """The settings of the contract's codec or head.

    ``take`` each of them once, then ``finish``, which refuses the ones that nobody took: a setting that is spelled
    wrong must not be ignored.
    """

    def __init__(self, contract: Contract, part: Literal["codec", "head"], beside: Beside = NOTHING_BESIDE) -> None:
        spec = contract.codec if part == "codec" else contract.head
        self._where = f"contract of {contract.label}: {part} {spec.kind}"
        self._values: Mapping[str, Any] = spec.settings
        self._beside = beside
        self._taken: list[str] = []

    def error(self, message: str) -> ContractError:
        """An error to raise that names the contract and the codec or head."""
        return ContractError(f"{self._where}: {message}")

    def take(self, name: str, default: Any, expected: str, fits: Callable[[Any], bool]) -> Any:
        """The value, or ``default`` where the contract has none. Raises ContractError saying what was ``expected``."""
        self._taken.append(name)
        value = self._values.get(name, default)
        if not fits(value):
            shown = "is missing" if name not in self._values else f"is {_shorten(value)}"
            raise self.error(f"setting {name!r} {shown}: expected {expected}")
        return value

    def integer(self, name: str, default: int | None, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``; required where ``default`` is None."""
        value: int = self.take(
            name, default, f"a whole number from {low} to {high}", lambda v: is_integer(v) and low <= v <= high
        )
        return value

    def file(self, name: str) -> bytes | None:
        """The content of the file beside the model that the setting names; None where it is null or not set.

        Raises ContractError when it cannot be read, or is another file than the contract means.
        """
        value = self.take(name, None, EXPECTED, lambda v: v is None or names_file(v))
        return None if value is None else self._beside.read(value, f"{self._where}: setting {name!r}")

    def finish(self) -> None:
        """Raises ContractError for a setting that was not taken."""
        for name in self._values:
            if name not in self._taken:
                known = ", ".join(self._taken) or "none"
                raise self.error(f"unknown setting {name!r} (there are: {known})")


def is_integer(value: Any) -> bool:
    """Whether it is a whole number as JSON has them: True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: Any) -> bool:
    """Whether it is a string that UTF-8 can write: JSON allows halves of surrogate pairs."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _shorten(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
