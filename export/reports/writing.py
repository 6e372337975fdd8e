"""Tables and pictures of the reports."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_table(folder: Path, name: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """``name.csv`` and ``name.md`` in ``folder``, and the latter on standard output."""
    lines = [[str(cell) for cell in row] for row in rows]
    write_numbers(folder, name, header, lines)
    marked = [f"| {' | '.join(row)} |" for row in ([*header], *lines)]
    marked.insert(1, f"|{'|'.join('---' for _ in header)}|")
    text = "\n".join(marked) + "\n"
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    print(text, flush=True)


def write_numbers(folder: Path, name: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """``name.csv`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_picture(folder: Path, name: str, figure: Figure) -> None:
    """``name.png`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=100)
