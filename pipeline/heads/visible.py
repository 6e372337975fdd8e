"""What of a generated text may be shown already: pure functions over bytes, for the streams where it is in question.

Two things hold text back. A token may be a part of a character only, and the text so far may end in what could become a
stop text. What is held is bounded: three bytes of a character, and one byte less than the longest stop text.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence
from typing import NamedTuple


class Shown(NamedTuple):
    """What one token gave."""

    text: bytes
    """UTF-8 that may be shown now."""
    held: bytes
    """UTF-8 that may be the beginning of a stop text."""
    carry: bytes
    """The beginning of a character."""
    stopped: bool
    """A stop text is complete: ``text`` is what came before it, and nothing is held."""


def show(held: bytes, carry: bytes, token: bytes, stops: Sequence[bytes]) -> Shown:
    """``held`` and ``carry`` as they were, then the bytes of one token."""
    characters, used = utf_8_decode(carry + token, "replace", False)
    rest = (carry + token)[used:]
    text = held + characters.encode()
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    if found:
        return Shown(text[: min(found)], b"", b"", True)
    keep = _beginning_of_stop(text, stops)
    return Shown(text[: len(text) - keep], text[len(text) - keep :], rest, False)


def flush(held: bytes, carry: bytes) -> bytes:
    """All that is held, when nothing more comes."""
    return held + utf_8_decode(carry, "replace", True)[0].encode()


def _beginning_of_stop(text: bytes, stops: Sequence[bytes]) -> int:
    """Length of the longest end of ``text`` that a stop text begins with."""
    longest = max(map(len, stops), default=0)
    for length in range(min(longest - 1, len(text)), 0, -1):
        end = text[-length:]
        if any(stop.startswith(end) for stop in stops):
            return length
    return 0
