"""What the demo shows: what it waits for, then a growing line for each stream (without a terminal: ``key | text``)."""

from __future__ import annotations

import asyncio
import shutil
import textwrap
import time
from collections.abc import Sequence
from typing import TextIO

from services.values import escape

TICK_S = 0.1
LINE_CHARACTERS = 56
CLEAR = "\r\x1b[K"


class Screen:
    """A terminal is redrawn in place; anything else gets whole lines."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._waiting: tuple[str, float] | None = None
        self._texts: dict[str, str] = {}
        self._marks: dict[str, str] = {}
        """What stands before a stream's text."""
        self._said: dict[str, int] = {}
        """How much of a stream's text is out already, in lines."""
        self._width = 0

    def say(self, line: str) -> None:
        self._write(f"{CLEAR if self._live else ''}{line}\n")

    # ---- waiting

    def progress(self, what: str, done: int, total: int) -> None:
        """The form of ``services.jars.Progress``; any thread may call it."""
        if self._waiting is None or self._waiting[0] != what:
            self._waiting = (what, time.monotonic())
            if not self._live:
                self._write(f"{what} ...\n")
        since = self._waiting[1]
        share = f" {100 * done // total}%" if total > 1 else ""
        if done >= total:
            self._waiting = None
            self.say(f"{what}: {time.monotonic() - since:.1f} s")
        elif self._live:
            self._write(f"{CLEAR}{what} ...{share} {time.monotonic() - since:.1f} s")

    async def tick(self) -> None:
        """Keeps a clock running beside what is waited for; until cancelled."""
        while self._live:
            if self._waiting is not None:
                what, since = self._waiting
                if time.monotonic() - since > TICK_S:
                    self._write(f"{CLEAR}{what} ... {time.monotonic() - since:.1f} s")
            await asyncio.sleep(TICK_S)

    # ---- streams

    def open(self, keys: Sequence[str]) -> None:
        """Room for these streams."""
        self._texts = dict.fromkeys(keys, "")
        self._marks = dict.fromkeys(keys, "")
        self._said = dict.fromkeys(keys, 0)
        self._width = max(map(len, keys))
        if self._live:
            self._write("\n" * len(keys))

    def grow(self, pieces: Sequence[tuple[str, str]]) -> None:
        """Text that arrived, by key."""
        for key, text in pieces:
            self._texts[key] += text
        if not self._live:
            for key, _ in pieces:
                self._say_rest(key, LINE_CHARACTERS)
            return
        self._draw()

    def put(self, key: str, text: str) -> None:
        """Its text is this now; in a log nothing is said of it, as it may change again."""
        self._texts[key] = text
        if self._live:
            self._draw()

    def line(self, key: str, text: str, mark: str = "") -> None:
        """A line that stays: in a log one more, on a terminal in place of the one before."""
        self._marks[key] = mark
        self.put(key, text)
        if not self._live:
            self._write(f"{self._label(key)}{_flat(text)}\n")

    def mark(self, key: str, mark: str) -> None:
        """What is known of its text so far."""
        self._marks[key] = mark
        if self._live:
            self._draw()

    def end(self, key: str) -> None:
        """Nothing more of this stream comes."""
        if not self._live:
            self._say_rest(key, 1)

    def close(self) -> None:
        """On a terminal, the texts whole in place of their last stretch."""
        if self._live:
            width = max(40, shutil.get_terminal_size().columns)
            self._write(f"\x1b[{len(self._texts)}A\x1b[J")
            for key, text in self._texts.items():
                label = self._label(key)
                self._write(
                    textwrap.fill(_flat(text), width, initial_indent=label, subsequent_indent=" " * len(label)) + "\n"
                )

    def _draw(self) -> None:
        columns = shutil.get_terminal_size().columns
        lines = []
        for key, text in self._texts.items():
            label = self._label(key)
            lines.append(f"{CLEAR}{label}{_flat(text)[-max(20, columns - len(label) - 1) :]}\n")
        self._write(f"\x1b[{len(lines)}A{''.join(lines)}")

    def _label(self, key: str) -> str:
        mark = f"{self._marks[key]} | " if self._marks[key] else ""
        return f"{key:<{self._width}} | {mark}"

    def _say_rest(self, key: str, least: int) -> None:
        """What is not said yet, in lines that end between words, once there are ``least`` characters."""
        while len(rest := self._texts[key][self._said[key] :]) >= least:
            cut = len(rest) if least == 1 and len(rest) <= LINE_CHARACTERS else _between_words(rest, LINE_CHARACTERS)
            self._write(f"{self._label(key)}{_flat(rest[:cut])}\n")
            self._said[key] += cut

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _flat(text: str) -> str:
    """On one line: the model has learnt indentation, too."""
    return escape(" ".join(text.split()))


def _between_words(text: str, most: int) -> int:
    """Where to cut: behind the last space within ``most`` characters, or there."""
    return text.rfind(" ", 1, most) + 1 or most
