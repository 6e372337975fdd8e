"""Codec ``video``: frames to steps of pixels.

``encoded``: a record is one JPEG, PNG or WebP, one step; images of any size, orientation and colours become what the
model takes. Decoding them is dear, so it happens before their poll and on threads. ``raw``: uint8 ``[H, W, C]`` of the
model's own size, in RGB, cut anywhere; an unfinished frame waits in the row, and is dropped when its stream ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from pipeline.beside import NOTHING_BESIDE, Beside
from pipeline.codecs.base import AheadCodec, Codec, Steps
from pipeline.codecs.images import MODES, PIXELS_MAX, Resize, Target, decode
from pipeline.codecs.settings import Settings, is_integer
from pipeline.columns import I64, U8, AnyArray
from pipeline.contract import Contract
from pipeline.errors import RecordError

RESIZES = ("stretch", "fit", "crop", "none")
WAITING_BYTES = 4
"""Of the row: how many bytes of a raw frame wait, little-endian."""
RAW_BYTES_MAX = 2**22
"""A raw frame waits in every row, and a row is in every snapshot."""


def video_codec(contract: Contract, beside: Beside = NOTHING_BESIDE) -> Codec:
    """The codec that the contract's setting ``frames`` asks for. Settings, all with defaults::

        {"frames": "encoded",      or "raw"
         "layout": "HWC",          or "CHW"; a shape of two dimensions is [H, W]
         "channels": "RGB",        or "BGR", where there are three
         "scale": 1/255,           of float steps: pixel * scale, minus mean, over std
         "mean": 0, "std": 1,      numbers, or one per channel
         "resize": "stretch",      encoded: "fit" (with a border), "crop" or "none", too
         "background": 0,          encoded: 0 to 255, or one per channel: behind transparency, and the border
         "max_pixels": 16777216}   encoded: larger images are dead letters

    The model has one step input of uint8, float32 or float16, with 1, 3 or 4 channels: grey, RGB, RGB and alpha.
    Raises ContractError for anything else.
    """
    settings = Settings(contract, "codec", beside)
    pixels = Pixels(contract, settings)
    frames = settings.take("frames", "encoded", "'encoded' or 'raw'", lambda v: v in ("encoded", "raw"))
    codec: Codec = EncodedFrames(pixels, settings) if frames == "encoded" else RawFrames(pixels, settings)
    settings.finish()
    return codec


class Pixels:
    """How the model wants its pixels."""

    def __init__(self, contract: Contract, settings: Settings) -> None:
        layout = settings.take("layout", "HWC", "'HWC' or 'CHW'", lambda v: v in ("HWC", "CHW"))
        self.step = step = contract.steps[0]
        shape = (*step.shape, 1) if len(step.shape) == 2 else step.shape
        self._planes = layout == "CHW" and len(step.shape) == 3
        self.size = (shape[1], shape[2], shape[0]) if self._planes else tuple(shape)
        """H, W, C."""
        fits = len(shape) == 3 and self.size[2] in MODES and step.dtype in ("uint8", "float32", "float16")
        if len(contract.steps) != 1 or not fits:
            found = ", ".join(f"{s.name} {s.dtype}{list(s.shape)}" for s in contract.steps)
            dims = "[C,H,W]" if layout == "CHW" else "[H,W,C]"
            raise settings.error(
                f"needs one step input of uint8{dims} or float32{dims}, with C 1, 3 or 4, or without C; the model has"
                f" {found} (setting 'layout' is {layout!r})"
            )
        channels = self.size[2]
        order = settings.take("channels", "RGB", "'RGB' or 'BGR'", lambda v: v in ("RGB", "BGR"))
        if order == "BGR" and channels != 3:
            raise settings.error(f"setting 'channels' is 'BGR', and the model has {channels} of them")
        self._flipped = order == "BGR"
        self._dtype = np.dtype(step.dtype)
        whole = self._dtype == np.uint8
        number = f"a number, or {channels} of them"
        scale = settings.take("scale", 1 if whole else 1 / 255, "a number above 0", lambda v: _are_numbers(v, 0, 0))
        mean = settings.take("mean", 0, number, lambda v: _are_numbers(v, channels))
        std = settings.take("std", 1, f"{number}, above 0", lambda v: _are_numbers(v, channels, 0))
        self._scaled = not whole
        if whole and (scale, mean, std) != (1, 0, 1):
            raise settings.error("settings 'scale', 'mean' and 'std' are for float steps, the model takes uint8")
        spread = np.broadcast_to(np.float64(std), (channels,))
        self._factor = (scale / spread).astype(np.float32)
        self._shift = (np.float64(mean) / spread).astype(np.float32)

    def steps(self, pixels: U8) -> AnyArray:
        """uint8 ``[n, H, W, C]`` -> ``[n, *shape]`` of the step input."""
        ordered: AnyArray = pixels[..., ::-1] if self._flipped else pixels
        if self._scaled:
            ordered = (ordered * self._factor - self._shift).astype(self._dtype, copy=False)
        if self._planes:
            ordered = ordered.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(ordered).reshape(len(pixels), *self.step.shape)


class EncodedFrames(AheadCodec):
    """A record is one image, and one step. Fails as ``images.decode`` says."""

    step_bytes = 2**31
    """As many bytes as a record may have: every record is one step."""

    def __init__(self, pixels: Pixels, settings: Settings) -> None:
        height, width, channels = pixels.size
        resize = settings.take("resize", "stretch", f"one of {', '.join(RESIZES)}", lambda v: v in RESIZES)
        levels = f"a whole number from 0 to 255, or {channels} of them"
        background = settings.take("background", 0, levels, lambda v: _are_levels(v, channels))
        pixels_max = settings.integer("max_pixels", 2**24, 1, PIXELS_MAX)
        border = tuple(background) if isinstance(background, list) else (background,)
        self._step, self._pixels = pixels.step, pixels
        self._target = Target(height, width, channels, cast(Resize, resize), border, pixels_max)

    def ahead(self, value: bytes) -> AnyArray:
        """The record's step, ``[*shape]`` in its input's dtype."""
        step: AnyArray = self._pixels.steps(decode(value, self._target)[None])[0]
        return step

    def ahead_bytes(self, value_bytes: int) -> int:
        return self._step.nbytes

    def decode_ahead(
        self, values: list[bytes], slots: I64, memory: U8, ahead: Sequence[AnyArray | RecordError | None]
    ) -> Steps:
        decoded = [self.attempt(value) if done is None else done for value, done in zip(values, ahead)]
        failed = {i: d for i, d in enumerate(decoded) if isinstance(d, RecordError)}
        good = [d for d in decoded if isinstance(d, np.ndarray)]
        counts = np.ones(len(decoded), np.int64)
        counts[list(failed)] = 0
        steps = np.stack(good) if good else np.empty((0, *self._step.shape), self._step.dtype)
        return Steps((steps,), counts, failed)


class RawFrames(Codec):
    """uint8 ``[H, W, C]``, cut anywhere. Never fails. The row: how many bytes wait (uint32), and the bytes."""

    def __init__(self, pixels: Pixels, settings: Settings) -> None:
        self._pixels = pixels
        self.step_bytes = math.prod(pixels.size)
        if self.step_bytes > RAW_BYTES_MAX:
            raise settings.error(
                f"a raw frame of {self.step_bytes} bytes would wait in every stream's row, {RAW_BYTES_MAX} at most do;"
                " send encoded frames, or smaller ones"
            )
        self.memory_bytes = WAITING_BYTES + self.step_bytes - 1

    def decode(self, values: list[bytes], slots: I64, memory: U8) -> Steps:
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        touched, where = np.unique(slots, return_inverse=True)
        waiting = memory[touched, :WAITING_BYTES].view("<u4")[:, 0]
        if not waiting.any() and not (lengths % self.step_bytes).any():
            return Steps((self._steps(values),), lengths // self.step_bytes)
        rows = np.ascontiguousarray(memory[touched])
        rest = [row[WAITING_BYTES : WAITING_BYTES + n].tobytes() for row, n in zip(rows, waiting.tolist())]
        counts = np.zeros(len(values), np.int64)
        pieces: list[bytes] = []
        for i, (value, at) in enumerate(zip(values, where.tolist())):
            data = rest[at] + value
            n = counts[i] = len(data) // self.step_bytes
            pieces.append(data[: n * self.step_bytes])
            rest[at] = data[n * self.step_bytes :]
        rows[:, WAITING_BYTES:] = 0
        rows[:, :WAITING_BYTES] = np.array([len(r) for r in rest], "<u4")[:, None].view(np.uint8)
        for row, waits in zip(rows, rest):
            row[WAITING_BYTES : WAITING_BYTES + len(waits)] = np.frombuffer(waits, np.uint8)
        memory[touched] = rows
        return Steps((self._steps(pieces),), counts)

    def _steps(self, pieces: list[bytes]) -> AnyArray:
        return self._pixels.steps(np.frombuffer(b"".join(pieces), np.uint8).reshape(-1, *self._pixels.size))


def _are_numbers(value: Any, channels: int, above: float = -math.inf) -> bool:
    """A number, or a list of ``channels`` of them, each finite and larger than ``above``."""
    given = value if isinstance(value, list) and len(value) == channels else [value]
    return all((is_integer(v) or isinstance(v, float)) and math.isfinite(v) and v > above for v in given)


def _are_levels(value: Any, channels: int) -> bool:
    given = value if isinstance(value, list) and len(value) == channels else [value]
    return all(is_integer(v) and 0 <= v <= 255 for v in given)
