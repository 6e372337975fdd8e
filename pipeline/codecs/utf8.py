"""Bytes cut anywhere to whole characters: the rest of one waits, and what can never become UTF-8 is named."""

from __future__ import annotations

from codecs import utf_8_decode

from pipeline.errors import RecordError

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""Stands for bytes that are no UTF-8, and for tokens that have no text."""


def whole_characters(held: bytes, value: bytes) -> tuple[str, bytes, int]:
    """``held`` (the beginning of a character) and a record -> its characters, what is unfinished, where that begins.

    The place counts bytes from the beginning of ``held``. Raises RecordError ``utf-8``.
    """
    data = held + value
    try:
        text, used = utf_8_decode(data, "strict", False)
    except UnicodeDecodeError as error:
        raise _invalid(data, error.start, error.reason, held) from None
    rest = data[used:]
    if b"\xed\xa0" <= rest <= b"\xed\xbf":
        # Python's decoder waits for the third byte of a surrogate, which is none of UTF-8 whatever it is.
        raise _invalid(data, used, "invalid continuation byte", held)
    return text, rest, used


def dropped(held: bytes) -> str:
    """For a message: what went with a record that failed."""
    return f"; dropped with it: bytes {held.hex(' ')}, held from an earlier record" if held else ""


def _invalid(data: bytes, at: int, why: str, held: bytes) -> RecordError:
    # Four bytes: what is wrong may be any byte of a character.
    shown = data[at : at + 4].hex(" ")
    where = f"position {at - len(held)} of the record" if at >= len(held) else "position 0 of the record and before"
    return RecordError("utf-8", f"no UTF-8 at {where}: bytes {shown} ({why}){dropped(held)}")
