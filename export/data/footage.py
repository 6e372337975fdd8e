"""Real footage, for the road from a camera to a topic: what decodes it, not what learns from it."""

from __future__ import annotations

from pathlib import Path

from export.data.cache import debian
from pipeline.errors import ConfigError

PACKAGES = ("opencv-doc",)
_FOLDER = "usr/share/doc/opencv-doc/examples/data"


def street() -> Path:
    """A street with people, ``vtest.avi``: 768 x 576 pixels, 10 frames a second, 79.5 s. Raises ConfigError."""
    file = debian(PACKAGES[0]) / _FOLDER / "vtest.avi"
    if not file.is_file():
        raise ConfigError(f"{file}: not in Debian's {PACKAGES[0]}; expected a film of a street")
    return file
