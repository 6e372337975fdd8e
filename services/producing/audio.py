"""``eddy produce audio``: sound files of every kind, or raw samples, as 16-bit mono PCM at the model's rate."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.errors import ConfigError, UserError
from services.producing.files import existing, keys_of
from services.producing.media import Timed, in_time, model_contract, need_av
from services.producing.send import send

RATE = 16000
SAMPLE_BYTES = 2
STDIN = "-"


def produce_audio(args: argparse.Namespace) -> int:
    """Raises UserError for what is no sound, TopicError, Unreachable."""
    streams = audio_streams(args)
    return send(args, lambda bar: in_time(streams, args.realtime, bar), None, quiet=args.files == [STDIN])


def audio_streams(args: argparse.Namespace) -> list[Iterator[Timed]]:
    """One for each file that the command line names. Raises UserError; what a file holds is found out on the way."""
    rate = _rate(args)
    if args.files == [STDIN]:
        if args.raw_rate is None or args.key is None:
            raise ConfigError("sound from stdin is raw: give --raw-rate, and --key for its stream")
        return [_stream(args.key.encode(), _raw(sys.stdin.buffer, args, rate), args, rate)]
    files = existing(args.files)
    if not files:
        raise ConfigError("no files: name some, or - for raw samples from stdin")
    if args.raw_rate is None:
        need_av("audio")
    keys = keys_of(files, args.key)
    return [_stream(key, _sound(file, args, rate), args, rate) for key, file in zip(keys, files)]


def _rate(args: argparse.Namespace) -> int:
    contract = model_contract(args.model, "audio")
    if contract is None:
        return args.rate or RATE
    rate = int(contract.codec.settings["rate"])
    if args.rate not in (None, rate):
        raise ConfigError(f"--rate {args.rate}: {contract.label} hears {rate} samples a second; leave one of them out")
    return rate


def _stream(key: bytes, sound: Iterator[bytes], args: argparse.Namespace, rate: int) -> Iterator[Timed]:
    """PCM of any sizes -> records of ``chunk_ms`` each, due when a microphone would have heard their last sample."""
    size = max(1, round(args.chunk_ms * rate / 1000)) * SAMPLE_BYTES
    silence = bytes(round(args.silence_ms * rate / 1000) * SAMPLE_BYTES)
    waiting, heard = b"", 0

    def record(data: bytes) -> Timed:
        nonlocal heard
        heard += len(data)
        return heard / SAMPLE_BYTES / rate, (key, data)

    for data in chain(sound, [silence]):
        waiting += data
        while len(waiting) >= size:
            yield record(waiting[:size])
            waiting = waiting[size:]
    if waiting:
        yield record(waiting)
    if args.end:
        yield heard / SAMPLE_BYTES / rate, (key, None)


def _sound(file: Path, args: argparse.Namespace, rate: int) -> Iterator[bytes]:
    """A file as PCM at ``rate``."""
    if args.raw_rate is not None:
        with file.open("rb") as source:
            yield from _raw(source, args, rate)
        return
    av = need_av("audio")
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
    try:
        with av.open(str(file)) as container:
            if not container.streams.audio:
                raise UserError(f"{file}: has no sound")
            for frame in container.decode(audio=0):
                yield from _pcm(resampler.resample(frame))
            yield from _pcm(resampler.resample(None))
    except av.FFmpegError as error:
        raise UserError(f"{file}: not a sound file that can be read ({error.strerror})") from None


def _raw(source: BinaryIO, args: argparse.Namespace, rate: int) -> Iterator[bytes]:
    """16-bit little-endian samples of ``raw_rate`` and ``raw_channels`` as PCM at ``rate``."""
    frame_bytes = SAMPLE_BYTES * args.raw_channels
    if (args.raw_rate, args.raw_channels) == (rate, 1):
        while data := source.read1(65_536):  # type: ignore[attr-defined]  # both are buffered readers
            yield data
        return
    av = need_av("audio")
    layout = {1: "mono", 2: "stereo"}.get(args.raw_channels, f"{args.raw_channels}c")
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
    rest = b""
    while data := source.read1(65_536):  # type: ignore[attr-defined]
        data = rest + data
        used = len(data) - len(data) % frame_bytes
        rest = data[used:]
        if used:
            frame = av.AudioFrame.from_ndarray(np.frombuffer(data[:used], "<i2")[None], format="s16", layout=layout)
            frame.sample_rate = args.raw_rate
            yield from _pcm(resampler.resample(frame))
    yield from _pcm(resampler.resample(None))


def _pcm(frames: list[Any]) -> Iterator[bytes]:
    for frame in frames:
        yield frame.to_ndarray().astype("<i2", copy=False).tobytes()
