"""Sound, film and a camera that tests send."""

from __future__ import annotations

import os
import socket
import threading
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from export.data.footage import street
from pipeline.errors import ConfigError


def tone(rate: int, channels: int, seconds: float = 1.0) -> NDArray[np.int16]:
    """440 Hz, int16 ``[n, channels]``."""
    samples = np.rint(10000 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)).astype("<i2")
    return np.repeat(samples[:, None], channels, 1)


def wav_file(path: Path, rate: int, channels: int, seconds: float = 1.0) -> Path:
    """The tone, as the standard library writes it."""
    with wave.open(str(path), "wb") as out:
        out.setparams((channels, 2, rate, 0, "NONE", ""))
        out.writeframes(tone(rate, channels, seconds).tobytes())
    return path


def film_or_skip() -> Path:
    """Real footage. In CI it must be there."""
    try:
        return street()
    except ConfigError as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no footage: {reason}")


@contextmanager
def broadcast() -> Iterator[str]:
    """The address of an MPEG stream over UDP, a grey that grows lighter and starts again; it is sent all the time."""
    av = pytest.importorskip("av")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        url = f"udp://127.0.0.1:{free.getsockname()[1]}"
    over = threading.Event()

    def send() -> None:
        with av.open(f"{url}?pkt_size=1316", "w", format="mpegts") as out:
            stream = out.add_stream("mpeg2video", rate=25)
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 5
            number = 0
            while not over.wait(0.01):
                level = np.full((48, 64, 3), number % 50 * 5, np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(level, format="rgb24")))
                number += 1

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield url
    finally:
        over.set()
        thread.join()


class _Camera(BaseHTTPRequestHandler):
    """Motion JPEG, as network cameras have it."""

    pictures: tuple[bytes, ...] = ()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for image in self.pictures:
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
            self.wfile.write(head.encode() + image + b"\r\n")
        self.wfile.write(b"--frame--\r\n")

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@contextmanager
def camera(*pictures: bytes) -> Iterator[str]:
    """The address of a camera that shows these JPEGs and is gone."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Camera", (_Camera,), {"pictures": pictures}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/camera.mjpg"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
