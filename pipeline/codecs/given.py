"""What a stream is given once, in a record's headers: the constants that are its own (a speaker, a language, a rate).

The values wait in the stream's row, before the codec's memory: so they are in its snapshot, and a takeover has them. A
stream keeps the first it is given. What it is given depends on its records alone, in their order: replayed, they give
it the same.
"""

from __future__ import annotations

import json

import numpy as np

from pipeline.columns import I64, U8, AnyArray, Headers
from pipeline.contract import Constant, Contract
from pipeline.errors import RecordError

REASON = "constant"


class Given:
    """See the module. A row is ``uint8 [contract.given_bytes]``: whether it is set, then the values side by side."""

    def __init__(self, contract: Contract) -> None:
        self._constants = contract.stream_constants
        self._defaults = [c.array().tobytes() if c.value else None for c in self._constants]

    def take(self, headers: list[Headers] | None, slots: I64, rows: U8) -> dict[int, RecordError]:
        """Reads ``headers[i]`` into ``rows[slots[i]]``, in order; returns the records that cannot be served, by index.

        Per record only where one has headers, or its stream has nothing yet.
        """
        new = rows[slots, 0] == 0
        if headers is None and not new.any():
            return {}
        failed: dict[int, RecordError] = {}
        for i in range(len(slots)) if headers is not None else np.flatnonzero(new).tolist():
            try:
                self._take_one(headers[i] if headers is not None else (), rows[slots[i]])
            except RecordError as error:
                failed[i] = error
        return failed

    def _take_one(self, headers: Headers, row: U8) -> None:
        named = dict(headers)
        mine = [named.get(c.header or "") for c in self._constants]
        if row[0] and not any(text is not None for text in mine):
            return
        values = []
        at = 1
        for c, text, default in zip(self._constants, mine, self._defaults):
            held = row[at : at + c.nbytes].tobytes() if row[0] else None
            at += c.nbytes
            value = held if text is None else _read(c, text)
            if held is not None and value != held:
                raise RecordError(
                    REASON,
                    f"header {c.header} changes {c.name} of a stream that has one; end the stream, begin a new one",
                )
            value = default if value is None else value
            if value is None:
                raise RecordError(
                    REASON, f"no header {c.header}: the model needs {c.name} of a stream in its first record"
                )
            values.append(value)
        row[1:] = np.frombuffer(b"".join(values), np.uint8)
        row[0] = 1

    def columns(self, slots: I64, rows: U8) -> list[AnyArray]:
        """The constants of these streams as the graph takes them: their shape with B at their batch axis."""
        found = []
        at = 1
        for c in self._constants:
            raw = np.ascontiguousarray(rows[slots, at : at + c.nbytes])
            at += c.nbytes
            values: AnyArray = raw != 0 if c.dtype == "bool" else raw.view(np.dtype(c.dtype))
            if c.batch_axis is None:
                found.append(values.reshape(c.shape))
                continue
            rest = [d for i, d in enumerate(c.shape) if i != c.batch_axis]
            found.append(np.ascontiguousarray(np.moveaxis(values.reshape(len(slots), *rest), 0, c.batch_axis)))
        return found


def _read(constant: Constant, text: bytes) -> bytes:
    """``16000`` or ``0.5,0.25`` -> the bytes of the value. Raises RecordError."""
    try:
        words = text.decode().strip().strip("[]")
        value = np.array(json.loads(f"[{words}]"))
        if value.dtype.kind not in "biuf":
            raise ValueError("no numbers")
        with np.errstate(over="ignore", invalid="ignore"):  # what does not fit is told below
            cast = value.astype(constant.dtype)
        if not np.isfinite(value).all() or not np.isfinite(cast).all():
            raise ValueError("not finite")
        whole = not constant.dtype.startswith("float")
        if (whole and not np.array_equal(cast, value)) or cast.size * cast.itemsize != constant.nbytes:
            raise ValueError(f"not of {constant.dtype}{list(constant.shape)}")
    except (ValueError, OverflowError, RecursionError) as error:  # brackets in brackets, as deep as a header is long
        shown = text[:40].decode(errors="replace")
        raise RecordError(
            REASON,
            f"header {constant.header} is {shown!r} ({error}): expected {constant.dtype}{list(constant.shape)} as"
            " numbers with commas between",
        ) from None
    return cast.tobytes()
