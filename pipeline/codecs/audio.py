"""Codec ``audio``: sound, cut anywhere, to steps of ``hop`` samples.

A stream is 16-bit little-endian mono PCM at the contract's rate. What is less than a hop, and half a sample, waits in
the row. A stream may begin with a WAV header (whole, or cut itself): then its samples are turned into that PCM first,
from 8, 16, 24 or 32-bit integers or 32 or 64-bit floats, from up to eight channels (their mean) and from every rate of
``rates``; what cannot be turned is a dead letter, record by record, until the file ends. Headers in the middle of a
stream (a file behind a file) are seen where the file before says that it ends; it is heard to its end first.

A null record ends the stream: the samples that wait then are the beginning of a last step that ends in silence. Half a
sample is dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.beside import NOTHING_BESIDE, Beside
from pipeline.codecs.base import Codec, Steps
from pipeline.codecs.resample import Position, Resampler
from pipeline.codecs.settings import Settings, is_integer
from pipeline.codecs.wav import HELD_MAX, Format, Place, Wave
from pipeline.columns import I64, U8, AnyArray
from pipeline.contract import Contract
from pipeline.errors import RecordError

RATE_MIN, RATE_MAX = 1000, 384_000
COMMON_RATES = (8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000)
POLL_STEPS = 512
"""A record of a WAV file may take 0.1 ms of the event loop, and a megabyte to be resampled 50 ms."""
SAMPLE_BYTES = 2
FULL_SCALE = 32768.0


class AudioCodec(Codec):
    """See the module. Settings::

        {"rate": 16000,            samples a second of the model's steps; required
         "overlap": 0,             samples of the step before that each step begins with (zeros: the first)
         "rates": [8000, ...]}     rates that WAV headers may say beside it; [] keeps no memory for them

    The model has one step input of float32, float16 (scaled to [-1, 1)) or int16; its shape has ``overlap + hop``
    samples in one dimension, the others are 1. Raises ContractError for anything else.
    """

    poll_steps = POLL_STEPS

    def __init__(self, contract: Contract, beside: Beside = NOTHING_BESIDE) -> None:
        settings = Settings(contract, "codec", beside)
        self._rate = settings.integer("rate", None, RATE_MIN, RATE_MAX)
        step = contract.steps[0]
        samples = max(step.shape, default=1)
        of_samples = step.dtype in ("float32", "float16", "int16") and samples == math.prod(step.shape)
        if len(contract.steps) != 1 or not of_samples:
            found = ", ".join(f"{s.name} {s.dtype}{list(s.shape)}" for s in contract.steps)
            raise settings.error(f"needs one step input of float32[hop] or int16[hop], the model has {found}")
        overlap = settings.integer("overlap", 0, 0, samples - 1)
        rates = settings.take(
            "rates", list(COMMON_RATES), f"a list of whole numbers from {RATE_MIN} to {RATE_MAX}", _are_rates
        )
        settings.finish()
        self._shape, self._dtype = step.shape, np.dtype(step.dtype)
        self._overlap = overlap * SAMPLE_BYTES
        self._hop = (samples - overlap) * SAMPLE_BYTES
        self.step_bytes = self._hop
        self.step_s = (samples - overlap) / self._rate
        try:
            self._resamplers = {rate: Resampler(rate, self._rate) for rate in rates if rate != self._rate}
        except ValueError as error:
            raise settings.error(f"setting 'rates': {error}") from None
        self._row = _row_dtype(
            self._overlap + self._hop - 1, max((r.memory for r in self._resamplers.values()), default=0)
        )
        self.memory_bytes = self._row.itemsize

    def decode(self, values: list[bytes], slots: I64, memory: U8) -> Steps:
        """Fails a WAV file that is none (reason ``wav``) and one that cannot be turned (``audio-format``).

        What fails takes with it what waited for it: less than a hop.
        """
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        touched, where = np.unique(slots, return_inverse=True)
        rows = np.ascontiguousarray(memory[touched]).view(self._row)[:, 0]
        raw = rows["place"] == Place.RAW
        if raw.all() and not self._overlap and not rows["waiting"].any() and not (lengths % self._hop).any():
            return Steps((self._steps(values),), lengths // self._hop)
        rests = self._rests(rows)
        sounds = [None if plain else self._load(row) for row, plain in zip(rows, raw.tolist())]
        counts = np.zeros(len(values), np.int64)
        pieces: list[bytes] = []
        failed: dict[int, RecordError] = {}
        for i, (value, at) in enumerate(zip(values, where.tolist())):
            sound = sounds[at]
            try:
                data = rests[at] + (value if sound is None else self._pcm(sound, value))
            except RecordError as error:
                failed[i], rests[at] = error, bytes(self._overlap)
                continue
            n = (len(data) - self._overlap) // self._hop
            if n:
                counts[i] = n
                pieces.append(data[: self._overlap + n * self._hop])
                data = data[n * self._hop :]
            rests[at] = data
        self._keep(rows, rests)
        for row, sound in zip(rows, sounds):
            if sound is not None:
                self._save(row, sound)
        memory[touched] = rows.view(np.uint8).reshape(len(rows), self.memory_bytes)
        return Steps((self._steps(pieces),), counts, failed)

    def end(self, slots: I64, memory: U8) -> Steps:
        """What waits, filled up with silence: a step of each stream in which a sample waits, seldom more."""
        rows = np.ascontiguousarray(memory[slots]).view(self._row)[:, 0]
        counts = np.zeros(len(slots), np.int64)
        pieces: list[bytes] = []
        for i, (row, waiting) in enumerate(zip(rows, self._rests(rows))):
            rest = waiting if row["place"] == Place.RAW else waiting + self._last(self._load(row))
            samples = (len(rest) - self._overlap) // SAMPLE_BYTES
            n = counts[i] = -(-samples * SAMPLE_BYTES // self._hop)
            if n:
                size = self._overlap + n * self._hop
                pieces.append(rest[: self._overlap + samples * SAMPLE_BYTES].ljust(size, b"\0"))
        return Steps((self._steps(pieces),), counts)

    def _last(self, sound: _Sound) -> bytes:
        """What is still to be heard of a stream that ends: it may have looked like the beginning of a file so far."""
        return sound.wave.held if sound.wave.place is Place.START else self._tail(sound)

    def _tail(self, sound: _Sound) -> bytes:
        """The samples that the resampler has still to give of its file."""
        if not sound.rate:
            return b""
        resampler = self._resamplers[sound.rate]
        out, _ = resampler.run(sound.kept[: resampler.memory], sound.position, np.zeros(resampler.reach, np.int16))
        return out.tobytes()

    def _steps(self, pieces: list[bytes]) -> AnyArray:
        """Each piece is ``overlap`` samples and whole hops -> ``[n_steps, *shape]``."""
        samples: AnyArray
        if self._overlap:
            whole = (self._overlap + self._hop) // SAMPLE_BYTES
            windows = [sliding_window_view(np.frombuffer(p, "<i2"), whole)[:: self._hop // 2] for p in pieces]
            samples = np.concatenate(windows) if windows else np.empty((0, whole), np.int16)
        else:
            samples = np.frombuffer(b"".join(pieces), "<i2")
        steps = samples.reshape(-1, *self._shape).astype(self._dtype)
        if self._dtype != np.int16:
            steps /= self._dtype.type(FULL_SCALE)
        return steps

    # ---- a stream that is, or may be, a WAV file

    def _pcm(self, sound: _Sound, value: bytes) -> bytes:
        """The record's samples as PCM at the contract's rate. Raises RecordError."""
        try:
            pieces = sound.wave.feed(value)
        except RecordError:
            sound.wave = Wave()
            sound.forget()
            raise
        out: list[bytes] = []
        problem: str | None = None
        for form, data in pieces:
            if form is not None and sound.rate not in (0, form.rate):  # of a file before this one
                out.append(self._tail(sound))
                sound.forget()
            if form is None or (form.rate == self._rate and form.plain):
                out.append(data)
            elif (problem := self._problem(form)) is None:
                out.append(self._converted(sound, form, data).tobytes())
        if problem is not None:
            sound.forget()
            raise RecordError("audio-format", problem)
        return b"".join(out)

    def _problem(self, form: Format) -> str | None:
        """Why samples of this format cannot be turned into the contract's, and what to do."""
        why = form.problem()
        if why is None and form.rate != self._rate and form.rate not in self._resamplers:
            known = ", ".join(map(str, self._resamplers)) or "no other"
            why = f"{form.rate} samples a second, the model hears {self._rate} (and {known} turned into it)"
        return None if why is None else f"a WAV file with {why}; eddy produce audio converts it"

    def _converted(self, sound: _Sound, form: Format, data: bytes) -> AnyArray:
        """int16 ``[n]``, at the contract's rate."""
        mono = form.mono(data)
        if form.rate == self._rate:
            return mono
        resampler = self._resamplers[form.rate]
        sound.rate = form.rate
        out, kept = resampler.run(sound.kept[: resampler.memory], sound.position, mono)
        sound.kept[: resampler.memory] = kept
        return out

    # ---- the row

    def _rests(self, rows: Any) -> list[bytes]:
        """Of each row the overlap and what waits for a step, PCM."""
        blob, width = rows["rest"].tobytes(), rows["rest"].shape[1]
        ends = (rows["waiting"].astype(np.int64) + self._overlap).tolist()
        return [blob[i * width : i * width + n] for i, n in enumerate(ends)]

    def _keep(self, rows: Any, rests: list[bytes]) -> None:
        width = rows["rest"].shape[1]
        blob = b"".join([rest.ljust(width, b"\0") for rest in rests])
        rows["rest"] = np.frombuffer(blob, np.uint8).reshape(len(rows), width)
        rows["waiting"] = np.fromiter(map(len, rests), np.int64, len(rests)) - self._overlap

    @staticmethod
    def _load(row: Any) -> _Sound:
        form = Format(int(row["tag"]), int(row["channels"]), int(row["rate"]), int(row["width"]))
        held = row["held"][: int(row["n_held"])].tobytes()
        wave = Wave(Place(int(row["place"])), form, int(row["left"]), bool(row["padded"]), held)
        position = Position(int(row["behind"]), int(row["phase"]))
        return _Sound(wave, int(row["kept_rate"]), position, row["kept"].copy())

    @staticmethod
    def _save(row: Any, sound: _Sound) -> None:
        wave, form = sound.wave, sound.wave.format
        row["place"], row["left"], row["padded"] = wave.place, wave.left, wave.padded
        row["tag"], row["channels"], row["rate"], row["width"] = form.tag, form.channels, form.rate, form.width
        row["n_held"], row["held"] = len(wave.held), 0
        row["held"][: len(wave.held)] = np.frombuffer(wave.held, np.uint8)
        row["kept_rate"], row["kept"] = sound.rate, sound.kept
        row["behind"], row["phase"] = sound.position.behind, sound.position.phase


@dataclass(slots=True)
class _Sound:
    """What is kept of a stream that is, or may be, a WAV file."""

    wave: Wave
    rate: int
    """The rate of ``kept``."""
    position: Position
    kept: AnyArray
    """The resampler's samples."""

    def forget(self) -> None:
        """What comes next is not resampled together with what came before."""
        self.rate, self.position = 0, Position()
        self.kept[:] = 0


def _row_dtype(rest: int, kept: int) -> np.dtype[Any]:
    return np.dtype(
        [
            *(("place", "u1"), ("padded", "u1"), ("tag", "<u2"), ("channels", "<u2"), ("width", "<u2")),
            *(("rate", "<u4"), ("left", "<u4"), ("n_held", "u1"), ("held", "u1", (HELD_MAX,))),
            *(("waiting", "<u4"), ("rest", "u1", (rest,))),
            *(("kept_rate", "<u4"), ("behind", "<u2"), ("phase", "<u4"), ("kept", "<i2", (kept,))),
        ]
    )


def _are_rates(value: Any) -> bool:
    return isinstance(value, list) and all(is_integer(v) and RATE_MIN <= v <= RATE_MAX for v in value)
