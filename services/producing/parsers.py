"""The flags of `eddy produce audio` and `eddy produce video`. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable

AUDIO_EXAMPLES = """  eddy produce audio speech hello.wav meeting.flac --rate 16000
  eddy produce audio speech *.wav --model models/speech --realtime --chunk-ms 40 --end
  arecord -f S16_LE -r 48000 -c 2 -t raw | eddy produce audio speech - --raw-rate 48000 --raw-channels 2 --key me"""
VIDEO_EXAMPLES = """  eddy produce video frames clip.mp4 --fps 5 --size 320x240
  eddy produce video frames http://127.0.0.1:8080/camera.mjpg --limit 100
  eddy produce video frames pictures/ --key cat --realtime --fps 10"""


def add_audio_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind `eddy produce audio`, but for the flags that every kind has."""
    add = parser.add_argument
    add("topic")
    add("files", nargs="*", metavar="FILE", help="sound of any format and rate; - is raw samples from stdin")
    add("--key", metavar="KEY", help="of the stream, for one file [the file's name]")
    add("--rate", type=_whole(1000), metavar="HZ", help="samples a second that are written [the model's, else 16000]")
    add("--model", metavar="DIR", help="write what this model hears")
    add("--chunk-ms", type=_positive, default=100.0, metavar="MS", help="sound in one record [100]")
    # More than the head transcribe waits for (0.6 s) before it calls an utterance final.
    add("--silence-ms", type=_whole(0), default=1000, metavar="MS", help="of silence behind each file [1000]")
    add("--raw-rate", type=_whole(1), metavar="HZ", help="files are raw 16-bit little-endian samples of this rate")
    add("--raw-channels", type=_whole(1), default=1, metavar="N", help="and so many channels [1]")
    _add_common(parser)


def add_video_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind `eddy produce video`, but for the flags that every kind has."""
    add = parser.add_argument
    add("topic")
    add("source", metavar="FILE|URL|DIR", help="a video, a network stream, or a folder of images")
    add("--key", metavar="KEY", help="of the stream [the source's name]")
    add("--fps", type=_positive, metavar="N", help="at most so many frames a second [as many as there are]")
    add("--size", type=_size, metavar="WxH", help="of frames, pixels [as they are]")
    add("--grey", action="store_true", help="without colours")
    add("--format", choices=("jpeg", "png", "webp", "raw"), help="of a record [jpeg; images of a folder as they are]")
    add("--quality", type=_whole(1), default=90, metavar="N", help="of JPEG and WebP, to 100 [90]")
    add("--model", metavar="DIR", help="what the frames are for; raw ones get its size and colours")
    add("--limit", type=_whole(1), metavar="N", help="end after so many frames")
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--realtime", action="store_true", help="as fast as it was recorded, all files at once")
    parser.add_argument("--end", action="store_true", help="end each stream after its last record")


def _whole(low: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"{value} is less than {low}")
        return value

    return whole_number


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _size(text: str) -> tuple[int, int]:
    width, x, height = text.partition("x")
    if not x or not width.isdecimal() or not height.isdecimal() or 0 in (int(width), int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, as in 320x240")
    return int(width), int(height)
