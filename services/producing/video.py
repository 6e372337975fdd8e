"""``eddy produce video``: a file, a network stream or a folder of images, as one encoded frame a record, or raw."""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.columns import AnyArray
from pipeline.errors import ConfigError, UserError
from services.producing.media import Timed, in_time, model_contract, need_av
from services.producing.send import send

FORMATS = ("jpeg", "png", "webp", "raw")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FPS = 25.0
"""Of a folder of images, and of a source that does not say."""
RAW_RECORD_BYTES = 524_288
"""A raw frame that is larger is cut into records of so many bytes."""
NETWORK_S = 10
"""A network stream that is silent for so long has ended."""


def produce_video(args: argparse.Namespace) -> int:
    """Raises UserError for what is no video, TopicError, Unreachable."""
    frames = video_stream(args)
    # A network stream comes in its own time.
    return send(args, lambda bar: in_time([frames], args.realtime and not _network(args.source), bar), None)


def video_stream(args: argparse.Namespace) -> Iterator[Timed]:
    """What the command line names. Raises UserError; what a file holds is found out on the way."""
    if args.model is not None:
        _as_the_model(args)
    path = Path(args.source)
    if _network(args.source):
        url = urlsplit(args.source)
        name = url.netloc + url.path
    else:
        if not path.exists():
            raise UserError(f"no file or folder {args.source}; a network stream begins with http:// or rtsp://, say")
        name = path.stem
    if not _network(args.source) and path.is_dir():
        frames = _folder(path, args)
    else:
        need_av("video")
        frames = _decoded(args)
    return _records((args.key or name).encode(), frames, args)


def _network(source: str) -> bool:
    url = urlsplit(source)
    return bool(url.scheme and url.netloc)


def _as_the_model(args: argparse.Namespace) -> None:
    """Raw frames have the model's size and colours; encoded ones it turns into them itself."""
    contract = model_contract(args.model, "video")
    if contract is None:
        return
    settings, shape = contract.codec.settings, contract.steps[0].shape
    raw = settings.get("frames") == "raw"
    if raw != (args.format == "raw"):
        what = "raw frames: give --format raw" if raw else "encoded frames: leave --format raw out"
        raise ConfigError(f"--model {args.model}: takes {what}")
    if not raw:
        return
    height, width, channels = (*shape, 1) if len(shape) == 2 else shape
    if settings.get("layout") == "CHW" and len(shape) == 3:
        channels, height, width = shape
    if channels == 4:
        raise ConfigError(f"--model {args.model}: takes raw frames with transparency, and video has none")
    args.size, args.grey = (width, height), channels == 1


def _records(key: bytes, frames: Iterator[tuple[float, bytes]], args: argparse.Namespace) -> Iterator[Timed]:
    """At most ``fps`` frames a second and ``limit`` in all; then the stream's end, where it is asked for."""
    sent, due = 0, 0.0
    for at, frame in frames:
        if args.fps is not None and at < sent / args.fps:
            continue
        due = at
        for start in range(0, len(frame), RAW_RECORD_BYTES if args.format == "raw" else len(frame)):
            piece = frame[start : start + RAW_RECORD_BYTES] if args.format == "raw" else frame
            yield at, (key, piece)
        sent += 1
        if args.limit is not None and sent >= args.limit:
            break
    if args.end:
        yield due, (key, None)


# ---- where frames come from: seconds since the first, and the frame's bytes


def _decoded(args: argparse.Namespace) -> Iterator[tuple[float, bytes]]:
    av, network = need_av("video"), _network(args.source)
    options = {"rw_timeout": str(NETWORK_S * 1_000_000)} if network else {}
    number = 0
    try:
        with av.open(args.source, options=options, timeout=NETWORK_S if network else None) as container:
            if not container.streams.video:
                raise UserError(f"{args.source}: has no pictures")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = float(stream.average_rate or 0) or FPS
            first, began = None, time.monotonic()
            for frame in container.decode(stream):
                told: float | None = time.monotonic() - began if network else frame.time
                at = number / rate if told is None else told
                first = at if first is None else first
                yield at - first, _encoded(_sized(frame, args), args)
                number += 1
    except av.FFmpegError as error:
        if not network or not number:
            raise UserError(f"{args.source}: cannot be read as video ({error.strerror})") from None
        # A camera has no other way to end than to be gone.
        print(f"{args.source}: ended after {number} frames ({error.strerror})", file=sys.stderr)


def _sized(frame: Any, args: argparse.Namespace) -> AnyArray:
    width, height = args.size or (frame.width, frame.height)
    pixels: AnyArray = frame.to_ndarray(width=width, height=height, format="gray" if args.grey else "rgb24")
    return pixels


def _folder(folder: Path, args: argparse.Namespace) -> Iterator[tuple[float, bytes]]:
    """Images in the order of their names; as they are, unless they shall be something else."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{folder}: has no {', '.join(SUFFIXES)}")
    as_they_are = args.size is None and not args.grey and args.format is None
    for number, file in enumerate(files):
        at = number / (args.fps or FPS)
        if as_they_are:
            if not (image_bytes := file.read_bytes()):
                raise UserError(f"{file}: is empty")
            yield at, image_bytes
            continue
        try:
            with Image.open(file) as image:
                plain = image.convert("L" if args.grey else "RGB")
                pixels = np.asarray(plain.resize(args.size) if args.size is not None else plain)
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"{file}: cannot be read as an image ({error})") from None
        yield at, _encoded(pixels, args)


def _encoded(pixels: AnyArray, args: argparse.Namespace) -> bytes:
    """uint8 ``[H, W, 3]`` or ``[H, W]``."""
    if args.format == "raw":
        return pixels.tobytes()
    out = io.BytesIO()
    kind = args.format or "jpeg"
    options = {} if kind == "png" else {"quality": args.quality}
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()
