"""What a generation is asked to do: the contract's settings, and the headers of the prompt's record over them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.codecs.settings import Settings, is_integer, is_text
from pipeline.codecs.utf8 import REPLACEMENT
from pipeline.columns import Headers
from pipeline.errors import RecordError

STEPS_MAX = 2**31 - 1
TEMPERATURE_MAX = 100.0
SEED_MAX = 2**64 - 1
STOPS_MAX = 4
STOP_BYTES_MAX = 32
"""The stop texts of a generation are in its stream's row, so there is an end to them."""

STOP_HEADER = "eddy-stop"
_INTEGER = re.compile(rb"[0-9]{1,20}")
_NUMBER = re.compile(rb"[0-9]{1,20}(\.[0-9]{0,20})?")


@dataclass(frozen=True, slots=True)
class Request:
    """See the module; every value is within its bounds."""

    max_steps: int
    """Tokens to generate at most; 0: the prompt only moves the stream on."""
    temperature: float
    """0: always the likeliest token."""
    top_k: int
    """0: no limit."""
    top_p: float
    """1: no limit."""
    seed: int
    stop: tuple[bytes, ...]
    """UTF-8. The generation ends before the first of these texts."""

    @staticmethod
    def of_settings(settings: Settings) -> Request:
        """What the contract says, with Eddy's defaults for the rest. Raises ContractError."""
        number = f"a number from 0 to {TEMPERATURE_MAX:g}"
        share = "a number above 0, at most 1"
        return Request(
            settings.integer("max_steps", 256, 0, STEPS_MAX),
            float(settings.take("temperature", 1.0, number, lambda v: _is_number(v) and 0 <= v <= TEMPERATURE_MAX)),
            settings.integer("top_k", 0, 0, STEPS_MAX),
            float(settings.take("top_p", 1.0, share, lambda v: _is_number(v) and 0 < v <= 1)),
            settings.integer("seed", 0, 0, SEED_MAX),
            tuple(text.encode() for text in settings.take("stop", [], _STOPS, _are_stops)),
        )

    def with_headers(self, headers: Headers) -> Request:
        """What a record's headers ask for, over these. Raises RecordError (``header``) naming header and value.

        Headers of other names are others' affair.
        """
        asked: dict[str, Any] = {}
        stops: list[bytes] = []
        for name, value in headers:
            if name == STOP_HEADER:
                stops.append(_stop(value, len(stops)))
            elif name in _HEADERS:
                field = _HEADERS[name]
                if field in asked:
                    raise RecordError("header", f"header {name} is given twice")
                asked[field] = _value(name, field, value)
        if stops:
            asked["stop"] = tuple(stops)
        return replace(self, **asked) if asked else self


_HEADERS = {
    "eddy-max-steps": "max_steps",
    "eddy-temperature": "temperature",
    "eddy-top-k": "top_k",
    "eddy-top-p": "top_p",
    "eddy-seed": "seed",
}
_INTEGERS = {"max_steps": STEPS_MAX, "top_k": STEPS_MAX, "seed": SEED_MAX}
_STOPS = f"at most {STOPS_MAX} texts of 1 to {STOP_BYTES_MAX} bytes of UTF-8, without U+FFFD"


def _value(name: str, field: str, value: bytes) -> int | float:
    # Kafka allows a header without value.
    text = value or b""
    if field in _INTEGERS:
        if _INTEGER.fullmatch(text) and int(text) <= _INTEGERS[field]:
            return int(text)
        raise _refused(name, value, f"a whole number from 0 to {_INTEGERS[field]}")
    number = float(text) if _NUMBER.fullmatch(text) else -1.0
    if field == "temperature":
        if 0 <= number <= TEMPERATURE_MAX:
            return number
        raise _refused(name, value, f"a number from 0 to {TEMPERATURE_MAX:g}")
    if 0 < number <= 1:
        return number
    raise _refused(name, value, "a number above 0, at most 1")


def _stop(value: bytes, before: int) -> bytes:
    try:
        text = (value or b"").decode()
    except UnicodeDecodeError:
        raise _refused(STOP_HEADER, value, "UTF-8") from None
    if before >= STOPS_MAX or not _is_stop(text):
        raise _refused(STOP_HEADER, value, _STOPS)
    return value


def _refused(name: str, value: bytes, expected: str) -> RecordError:
    shown = repr(value) if not value or len(value) <= 64 else f"{value[:64]!r}... ({len(value)} bytes)"
    return RecordError("header", f"header {name} is {shown}: expected {expected}")


def _is_number(value: Any) -> bool:
    return is_integer(value) or isinstance(value, float)


def _is_stop(text: str) -> bool:
    # U+FFFD stands for what has no text of its own, so it is nothing that a model can say.
    return REPLACEMENT not in text and 0 < len(text.encode()) <= STOP_BYTES_MAX


def _are_stops(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) <= STOPS_MAX
        and all(is_text(v) and _is_stop(v) for v in value)
    )
