"""One encoded image (JPEG, PNG, WebP) to pixels of a fixed size. Runs in any thread; keeps nothing.

What a header announces is checked before anything is decoded, so an image of any size costs no memory. What Pillow
cannot decode is a RecordError that says why: nothing that a record holds may stop a worker.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.columns import U8
from pipeline.errors import RecordError

FORMATS = ("JPEG", "PNG", "WEBP")
PIXELS_MAX = 89_000_000
"""Largest bound on an image that can be set; Pillow itself warns a little above."""
GAP = 2.0
"""An image is decoded at twice the size at least, where its format offers smaller ones (JPEG), then resized well."""
EMPTY, IMAGE, SIZE, ANIMATED = "empty", "image", "image-size", "animated"
"""Reasons of dead letters."""

Resize = Literal["stretch", "fit", "crop", "none"]
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, slots=True)
class Target:
    """What images become. ``resize``: ``stretch`` to the size, ``fit`` the whole image into it, ``crop`` what is over,
    or ``none``: another size is refused. ``background``: behind what is transparent, and beside what was fitted."""

    height: int
    width: int
    channels: int
    resize: Resize
    background: tuple[int, ...]
    pixels_max: int


def decode(value: bytes, target: Target) -> U8:
    """uint8 ``[height, width, channels]``; channels are grey, RGB or RGBA.

    Raises RecordError: ``empty``, ``image`` (cannot be decoded), ``image-size`` (more pixels than the target allows, or
    another size where it may not be changed), ``animated`` (a record is one frame).
    """
    if not value:
        raise RecordError(EMPTY, "a record without bytes, and a frame has some")
    try:
        _check_size(*_announced(value), target)
        with Image.open(io.BytesIO(value), formats=FORMATS) as image:
            _check_size(*image.size, target)
            # A phone's JPEG may hold smaller versions of itself (MPO): the first is the image.
            frames = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
            if frames != 1:
                raise RecordError(ANIMATED, f"an animated {image.format} of {frames} frames: a record is one frame")
            return _pixels(image, target)
    except (RecordError, MemoryError):  # memory that is short is not the record's fault
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RecordError(SIZE, f"{error}; max_pixels is {target.pixels_max}") from None
    except UnidentifiedImageError:
        begins = value[:8].hex(" ")
        raise RecordError(IMAGE, f"no JPEG, PNG or WebP: {len(value)} bytes that begin with {begins}") from None
    except Exception as error:  # noqa: BLE001  # every format of Pillow's raises what it likes, with no common base
        raise RecordError(IMAGE, f"an image that cannot be decoded: {str(error) or type(error).__name__}") from None


def _announced(value: bytes) -> tuple[int, int]:
    """Width and height as PNG and WebP have them at a fixed place; 1, 1 for others.

    Pillow makes room for a WebP's canvas before its size can be asked for.
    """
    if value[:8] == b"\x89PNG\r\n\x1a\n" and len(value) >= 24:
        return int.from_bytes(value[16:20], "big"), int.from_bytes(value[20:24], "big")
    if value[:4] == b"RIFF" and value[8:12] == b"WEBP" and len(value) >= 30:
        kind = value[12:16]
        if kind == b"VP8X":
            return int.from_bytes(value[24:27], "little") + 1, int.from_bytes(value[27:30], "little") + 1
        if kind == b"VP8L":
            bits = int.from_bytes(value[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if kind == b"VP8 ":
            width, height = (int.from_bytes(value[at : at + 2], "little") & 0x3FFF for at in (26, 28))
            return width, height
    return 1, 1


def _check_size(width: int, height: int, target: Target) -> None:
    if width * height > target.pixels_max:
        raise RecordError(SIZE, f"an image of {width} x {height} pixels, max_pixels is {target.pixels_max}")


def _pixels(image: Image.Image, target: Target) -> U8:
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    wide, high = (target.height, target.width) if turned else (target.width, target.height)
    if target.resize != "none":
        image.draft(None, (int(wide * GAP), int(high * GAP)))
    image.load()
    upright = ImageOps.exif_transpose(_plain(image))
    sized = _resized(upright, target)
    mode = MODES[target.channels]
    if sized.mode == "RGBA" and mode != "RGBA":
        sized = Image.alpha_composite(Image.new("RGBA", sized.size, _colour(target.background, 255)), sized)
    return np.asarray(sized.convert(mode), np.uint8).reshape(target.height, target.width, target.channels)


def _plain(image: Image.Image) -> Image.Image:
    """The image as 8 bits of grey, RGB or RGBA."""
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow's own conversion would clip
        grey = np.asarray(image)
        high = np.clip(grey >> 8, 0, 255).astype(np.uint8)
        plain = Image.fromarray(high)
        plain.info.update({k: v for k, v in image.info.items() if k == "exif"})
        return plain
    if image.mode in ("LA", "PA", "La", "RGBa", "RGBA") or "transparency" in image.info:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _resized(image: Image.Image, target: Target) -> Image.Image:
    size, given = (target.width, target.height), image.size
    if given == size:
        return image
    if target.resize == "none":
        raise RecordError(SIZE, f"an image of {given[0]} x {given[1]} pixels, the model takes {size[0]} x {size[1]}")
    box: tuple[float, float, float, float] | None = None
    within = size
    if target.resize == "fit":
        ratio = min(size[0] / given[0], size[1] / given[1])
        within = (max(1, round(given[0] * ratio)), max(1, round(given[1] * ratio)))
    elif target.resize == "crop":
        ratio = max(size[0] / given[0], size[1] / given[1])
        wide, high = size[0] / ratio, size[1] / ratio
        left, top = (given[0] - wide) / 2, (given[1] - high) / 2
        box = (left, top, left + wide, top + high)
    resized = image.resize(within, Image.Resampling.BILINEAR, box, reducing_gap=GAP)
    if within == size:
        return resized
    # The border has the background's colours; one channel of it where the image is grey.
    if resized.mode == "L" and len(set(target.background[:3])) > 1:
        resized = resized.convert("RGB")
    canvas = Image.new(resized.mode, size, _border(resized.mode, target.background))
    canvas.paste(resized, ((size[0] - within[0]) // 2, (size[1] - within[1]) // 2))
    return canvas


def _border(mode: str, background: Sequence[int]) -> int | tuple[int, ...]:
    return background[0] if mode == "L" else _colour(background, 255)[: len(mode)]


def _colour(background: Sequence[int], alpha: int) -> tuple[int, ...]:
    """RGBA of a background of one, three or four channels."""
    if len(background) == 1:
        return (background[0],) * 3 + (alpha,)
    return cast(tuple[int, ...], (*background[:3], background[3] if len(background) == 4 else alpha))
