"""What the demo shows on a terminal and in a log."""

from __future__ import annotations

import io
import re

from services.screen import Screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


TEXT = "the quick brown fox jumps over the lazy dog and then it goes to sleep below the old oak tree\n  until morning"


def shown(out: io.StringIO, *, piece: int) -> str:
    screen = Screen(out)
    screen.open(["a", "other"])
    for i in range(0, len(TEXT), piece):
        screen.grow([("a", TEXT[i : i + piece]), ("other", "x")])
    screen.end("a")
    screen.end("other")
    screen.close()
    return out.getvalue()


def test_a_log_gets_whole_lines_and_all_of_the_text() -> None:
    for piece in (1, 7, 1000):
        lines = shown(io.StringIO(), piece=piece).splitlines()
        mine = [line.removeprefix("a     | ") for line in lines if line.startswith("a     | ")]
        assert " ".join(" ".join(mine).split()) == " ".join(TEXT.split())
        assert all(len(line) <= 56 for line in mine)
        assert all(line.startswith(("a     | ", "other | ")) for line in lines)


def test_a_terminal_ends_with_the_texts_whole() -> None:
    everything = shown(Terminal(), piece=5)
    last = everything.rsplit("\x1b[J", 1)[1]
    assert " ".join(re.sub(r"^a     \| ", "", last.split("other |")[0]).split()) == " ".join(TEXT.split())
    # Each redraw climbs as many lines as it writes.
    for frame in everything.split("\x1b[2A")[1:-1]:
        assert frame.count("\n") == 2


def test_waiting_is_said_once_in_a_log_and_timed() -> None:
    out = io.StringIO()
    screen = Screen(out)
    for done in (0, 1, 2, 3):
        screen.progress("fetching", done, 3)
    assert re.fullmatch(r"fetching \.\.\.\nfetching: \d+\.\d s\n", out.getvalue())
    terminal = Terminal()
    Screen(terminal).progress("fetching", 1, 4)
    assert "fetching ... 25%" in terminal.getvalue()


def test_a_log_keeps_every_line_and_a_terminal_the_last() -> None:
    out, terminal = io.StringIO(), Terminal()
    for to in (out, terminal):
        screen = Screen(to)
        screen.open(["a", "b"])
        screen.put("a", "hel")
        screen.line("a", "hello", "0.0-0.4 s")
        screen.line("a", "again", "0.9-1.4 s")
        screen.close()
    assert out.getvalue().splitlines() == ["a | 0.0-0.4 s | hello", "a | 0.9-1.4 s | again"]
    assert terminal.getvalue().rsplit("\x1b[J", 1)[1].splitlines()[0] == "a | 0.9-1.4 s | again"


def test_a_mark_stands_before_the_text_it_is_of() -> None:
    out = io.StringIO()
    screen = Screen(out)
    screen.open(["a"])
    screen.grow([("a", "ein ")])
    screen.mark("a", "de 61%")
    screen.grow([("a", "Satz")])
    screen.mark("a", "de 97%")
    screen.end("a")
    assert out.getvalue() == "a | de 97% | ein Satz\n"
