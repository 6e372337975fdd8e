"""What docs/guide.md shows, measured: each report is a command, `eddy train --report NAME`.

Nothing here needs torch until one runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True)
class Report:
    """A study that writes pictures (PNG), their numbers (CSV) and tables (Markdown) into a folder."""

    name: str
    help: str

    def run(self, folder: Path) -> None:
        """Measures and writes. What was trained before in ``folder`` is not trained again."""
        made: Callable[[Path], None] = import_module(f"export.reports.{self.name}").report
        made(folder)


REPORTS: Mapping[str, Report] = MappingProxyType(
    {
        r.name: r
        for r in (
            Report("gradients", "how far the error reaches back, and what a net can remember"),
            Report("units", "units, layers and connections: what they gain and cost"),
            Report("length", "long sequences: truncation, a linear recurrence, running along time"),
            Report("activation", "activations of Elman's network"),
        )
    }
)
"""Every report by its name; a module of that name here has ``report(folder)``."""
