"""Head ``generate``: a record is a prompt, and the model goes on from it, token by token, until something ends it.

A record with at least one step is a prompt. ``answer`` draws the first token from the outputs of its last step; then
the stream feeds itself (S5): ``feed`` gives the token drawn, ``fed`` draws the next. The last token drawn is shown and
not fed. What becomes visible goes out as UTF-8 in pieces, with the header ``eddy-step``: the index of the first
generated step in the piece. The last piece, maybe empty, has ``eddy-finish``: ``end`` (the model drew its end token),
``stop`` (a stop text came; it is not shown), ``length`` (as many tokens as asked for) or ``interrupt`` (another record
came meanwhile, where records do not wait).

All of a generation is in its stream's row, all zero when none runs: 226 bytes, 362 where tokens are a tokenizer's. A
draw is a function of seed, key, offset of the prompt and step: it is the same wherever and beside whomever the stream
runs.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.beside import NOTHING_BESIDE, Beside
from pipeline.codecs.settings import Settings
from pipeline.codecs.text import token_dtype
from pipeline.columns import I64, U8, AnyArray, Bools, Headers, Records
from pipeline.contract import Contract
from pipeline.errors import Broken, RecordError
from pipeline.heads.base import NOTHING, Answered, Finished, Head
from pipeline.heads.output import only_output
from pipeline.heads.pieces import FINISH, STEP, merge_pieces
from pipeline.heads.request import STOP_BYTES_MAX, STOPS_MAX, Request
from pipeline.heads.sampling import draw, uniform
from pipeline.heads.visible import flush, show
from pipeline.heads.vocabulary import Tokens

ROW = np.dtype(
    [
        ("active", "u1"),
        ("stops", "u1"),
        ("held_bytes", "u1"),
        ("carry_bytes", "u1"),
        ("step", "<i4"),  # tokens drawn so far
        ("token", "<i4"),  # the last of them
        ("max_steps", "<i4"),
        ("top_k", "<i4"),
        ("temperature", "<f4"),
        ("top_p", "<f4"),
        ("seed", "<u8"),
        ("stream", "<u8"),  # a hash of the key
        ("offset", "<i8"),  # of the prompt's record
        ("timestamp", "<i8"),
        ("carry", "u1", (3,)),
        ("held", "u1", (STOP_BYTES_MAX - 1,)),
        ("stop_bytes", "u1", (STOPS_MAX,)),
        ("stop", "u1", (STOPS_MAX, STOP_BYTES_MAX)),
    ]
)
TOKEN_ROW = np.dtype([*((name, ROW[name]) for name in ROW.names or ()), ("steps", "<i4", (3 + STOP_BYTES_MAX - 1,))])
"""Where a token may be several characters, or a part of one: the step of each byte that is held, then of the carry."""


def _at(name: str) -> slice:
    """Where a field's bytes are in a row."""
    kind, begin = ROW.fields[name][:2]  # type: ignore[index]  # it has fields
    return slice(begin, begin + kind.itemsize)


_TOKEN, _CARRY, _HELD, _STOP = _at("token"), _at("carry"), _at("held"), _at("stop")


class GenerateHead(Head):
    """See the module.

    Settings, the defaults of what a record asks for in headers ``eddy-max-steps``, ``eddy-temperature`` and so on:
    ``{"max_steps": 256, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0, "stop": []}``; and ``"end_token"``,
    which is null unless the model has one. Tokens of a tokenizer come with ``flush`` "record", as a prompt is all of
    its text; there the end token may be given by its name. Raises ContractError for a wrong setting, or unless the
    codec is ``text`` and the output has a logit for every token.
    """

    memory_bytes = ROW.itemsize
    keeps = "last"
    choices = "outputs"
    generates = True

    def __init__(self, contract: Contract, beside: Beside = NOTHING_BESIDE) -> None:
        settings = Settings(contract, "head", beside)
        if contract.codec.kind != "text":
            raise settings.error(f"needs the codec text, which says what tokens are; it has {contract.codec.kind!r}")
        output = only_output(contract, settings)
        self._default = Request.of_settings(settings)
        tokens = Tokens.of(contract, beside, settings, output)
        settings.finish()
        self._texts, self._unit = tokens.texts, tokens.unit
        self._end = -1 if tokens.end is None else tokens.end
        self._dtype = token_dtype(contract)
        self._whole, self._holds = tokens.whole(), tokens.holds()
        self._row = TOKEN_ROW if self._unit == "tokens" else ROW
        self.memory_bytes = self._row.itemsize
        self._template = self._row_of(self._default)
        self.reads = (output.name,)

    def refuse(self, headers: list[Headers] | None) -> dict[int, RecordError]:
        refused = {}
        for i, given in enumerate(headers or ()):
            if given:
                try:
                    self._default.with_headers(given)
                except RecordError as error:
                    refused[i] = error
        return refused

    def answer(self, finished: Finished, memory: U8) -> Answered:
        """First tokens of the prompts, and the last pieces of generations that they cut short. Raises Broken for a
        prompt that did not wait for the generation before it, unless it interrupts."""
        cut = self._cut_short(finished, memory)
        begun = self._begin(finished, memory)
        return begun if cut is None else _side_by_side(cut, begun, finished)

    def _cut_short(self, finished: Finished, memory: U8) -> Answered | None:
        """One by one: what is held of generations that end here; None where there are none."""
        comes = (finished.counts > 0) | finished.ended
        index = np.flatnonzero(comes & (memory[finished.slots, 0] != 0))
        if not len(index):
            return None
        if not self.interrupts:
            raise Broken("a prompt was applied to a stream that is still generating")
        raw = memory[finished.slots[index]]
        rows = self._rows(raw)
        texts: list[bytes | None] = []
        extra: list[Headers] = []
        for i in range(len(index)):
            step, held, carry = int(rows["step"][i]), *_waiting(raw[i], rows[i : i + 1])
            steps = [step]
            if held or carry:
                steps = self._steps_of(rows[i : i + 1], held, carry, step)
            texts.append(flush(held, carry))
            extra.append(((STEP, b"%d" % steps[0]), (FINISH, b"interrupt")))
        offsets, timestamps = rows["offset"].copy(), rows["timestamp"].copy()
        memory[finished.slots[index]] = 0
        return Answered(index, texts, extra, offsets, timestamps)

    def _begin(self, finished: Finished, memory: U8) -> Answered:
        index = np.flatnonzero(finished.counts)
        raw = np.tile(self._template, (len(index), 1))
        if finished.headers is not None:
            for j, i in enumerate(index.tolist()):
                if finished.headers[i]:
                    raw[j] = self._row_of(self._default.with_headers(finished.headers[i]))
        asked = self._rows(raw)["max_steps"] > 0
        index, raw = index[asked], raw[asked]
        if not len(index):
            return NOTHING
        slots = finished.slots[index]
        rows = self._rows(raw)
        rows["active"] = 1
        rows["offset"] = finished.offsets[index]
        rows["timestamp"] = finished.timestamps[index]
        rows["stream"] = [stream_number(finished.keys[i]) for i in index.tolist()]
        shown = self._next(raw, rows, finished.outputs[0][index])
        memory[slots] = raw
        if np.count_nonzero(raw[:, 0]) != np.count_nonzero(memory[np.unique(slots), 0]):
            raise Broken("two prompts of one stream were applied at once")
        return Answered(index[shown.index], shown.values, shown.extra)

    def active(self, slots: I64, memory: U8) -> Bools:
        generating: Bools = memory[slots, 0] != 0
        return generating

    def feed(self, slots: I64, memory: U8) -> tuple[AnyArray, ...]:
        tokens = np.ascontiguousarray(memory[slots, _TOKEN]).view("<i4")[:, 0]
        return (tokens.astype(self._dtype),)

    def fed(self, slots: I64, keys: list[bytes], outputs: tuple[AnyArray, ...], memory: U8) -> Answered:
        """Raises Broken for a stream that is not generating."""
        raw = memory[slots]
        if not raw[:, 0].all():
            raise Broken("a step was generated for a stream that is not generating")
        rows = self._rows(raw)
        offsets, timestamps = rows["offset"].copy(), rows["timestamp"].copy()
        shown = self._next(raw, rows, outputs[0])
        memory[slots] = raw
        shown.offsets, shown.timestamps = offsets[shown.index], timestamps[shown.index]
        return shown

    def merge(self, outputs: Records) -> Records:
        """Consecutive pieces of one generation become one."""
        return merge_pieces(outputs)

    def _next(self, raw: U8, rows: NDArray[Any], logits: AnyArray) -> Answered:
        """Draws a token for each row ``[B]`` and says what became visible, by row; changes ``raw`` in place."""
        step = rows["step"].copy()
        u = uniform(rows["seed"], rows["stream"], rows["offset"], step)
        tokens = draw(logits, rows["temperature"], rows["top_k"], rows["top_p"], u)
        rows["token"] = tokens
        rows["step"] = step + 1
        last = step + 1 >= rows["max_steps"]

        # Most tokens are shown as they are; the others, one by one, are those that end a generation, are a part of a
        # character, or may belong to a stop text.
        special = (tokens == self._end) | ~self._whole[tokens] | (rows["held_bytes"] > 0) | (rows["carry_bytes"] > 0)
        if rows["stops"].any():
            special |= self._holds[rows["stop"][:, :, 0], tokens[:, None]].any(axis=1)
        over = last.copy()
        texts: list[bytes | None] = [self._texts[t] for t in tokens.tolist()]
        extra: list[Headers] = [((STEP, b"%d" % s),) for s in step.tolist()]
        for i in np.flatnonzero(last & ~special).tolist():
            extra[i] = (*extra[i], (FINISH, b"length"))
        for i in np.flatnonzero(special).tolist():
            texts[i], extra[i], over[i] = self._show(
                raw[i], rows[i : i + 1], int(tokens[i]), int(step[i]), bool(last[i])
            )
        raw[over] = 0

        index = np.arange(len(rows))
        hidden = [i for i, text in enumerate(texts) if text is None]
        if hidden:
            index = np.delete(index, hidden)
            texts, extra = [texts[i] for i in index.tolist()], [extra[i] for i in index.tolist()]
        return Answered(index, texts, extra)

    def _show(
        self, raw: U8, row: NDArray[Any], token: int, step: int, last: bool
    ) -> tuple[bytes | None, Headers, bool]:
        """One row, one token -> its piece (None: nothing to see), the piece's headers, whether that was the last."""
        held, carry = _waiting(raw, row)
        steps = self._steps_of(row, held, carry, step)
        if self._unit == "tokens":
            steps += [*([step] * len(self._texts[token])), step]
        first = (STEP, b"%d" % steps[0])
        if token == self._end:
            return flush(held, carry), (first, (FINISH, b"end")), True
        shown = show(held, carry, self._texts[token], _stops_of(raw, row))
        if shown.stopped:
            return shown.text, (first, (FINISH, b"stop")), True
        if last:
            return shown.text + flush(shown.held, shown.carry), (first, (FINISH, b"length")), True
        row["held_bytes"], row["carry_bytes"] = len(shown.held), len(shown.carry)
        raw[_HELD] = _padded(shown.held, STOP_BYTES_MAX - 1)
        raw[_CARRY] = _padded(shown.carry, 3)
        if self._unit == "tokens":
            waiting = len(shown.held) + len(shown.carry)
            row["steps"][0] = 0
            row["steps"][0, :waiting] = steps[len(steps) - 1 - waiting : -1]
        return shown.text or None, (first,), False

    def _steps_of(self, row: NDArray[Any], held: bytes, carry: bytes, step: int) -> list[int]:
        """The steps of what waits, the first one first: of each byte where tokens are a tokenizer's, else of the first
        alone. ``step``: that of the next token."""
        if self._unit == "tokens":
            of_bytes: list[int] = row["steps"][0, : len(held) + len(carry)].tolist()
            return of_bytes
        count = len(held.decode()) if self._unit == "characters" else len(held)
        return [step - count - len(carry)]

    def _row_of(self, request: Request) -> U8:
        """The row of a generation that is yet to begin, ``uint8 [memory_bytes]``."""
        raw: U8 = np.zeros(self._row.itemsize, np.uint8)
        row = self._rows(raw[None])
        row["max_steps"], row["temperature"] = request.max_steps, request.temperature
        row["top_k"], row["top_p"], row["seed"] = request.top_k, request.top_p, request.seed
        row["stops"] = len(request.stop)
        for j, stop in enumerate(request.stop):
            row["stop_bytes"][0, j] = len(stop)
            row["stop"][0, j] = _padded(stop, STOP_BYTES_MAX)
        return raw

    def _rows(self, raw: U8) -> NDArray[Any]:
        """``uint8 [B, memory_bytes]``, contiguous -> the same bytes as ``ROW [B]``."""
        rows: NDArray[Any] = raw.view(self._row)[:, 0]
        return rows


def stream_number(key: bytes) -> int:
    """64 bits of a key, for the draws."""
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little")


def _waiting(raw: U8, row: NDArray[Any]) -> tuple[bytes, bytes]:
    """Of one row: text that may belong to a stop text, and the first bytes of a character."""
    held = raw[_HELD][: int(row["held_bytes"][0])].tobytes()
    return held, raw[_CARRY][: int(row["carry_bytes"][0])].tobytes()


def _side_by_side(cut: Answered, begun: Answered, finished: Finished) -> Answered:
    """A record's last piece of what it cuts short comes before its own first one."""
    index = np.concatenate([cut.index, begun.index])
    order = index.argsort(kind="stable").tolist()
    texts = [*cut.values, *begun.values]
    extra = [*(cut.extra or ()), *(begun.extra or ())]
    cut_offsets, cut_timestamps = cut.offsets, cut.timestamps
    assert cut_offsets is not None
    assert cut_timestamps is not None
    offsets = np.concatenate([cut_offsets, finished.offsets[begun.index]])
    timestamps = np.concatenate([cut_timestamps, finished.timestamps[begun.index]])
    return Answered(
        index[order], [texts[j] for j in order], [extra[j] for j in order], offsets[order], timestamps[order]
    )


def _stops_of(raw: U8, row: NDArray[Any]) -> list[bytes]:
    texts = raw[_STOP].tobytes()
    lengths = row["stop_bytes"][0, : int(row["stops"][0])].tolist()
    return [texts[j * STOP_BYTES_MAX : j * STOP_BYTES_MAX + n] for j, n in enumerate(lengths)]


def _padded(text: bytes, width: int) -> U8:
    padded: U8 = np.frombuffer(text.ljust(width, b"\0"), np.uint8)
    return padded
