"""Published packages that carry stateful ONNX files: installed without their dependencies, into the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from export.data.cache import cache_folder


def package(*requirements: str) -> Path:
    """The folder with these packages. What cannot be had is a failure in CI, and by hand a skip with its reason."""
    place = cache_folder() / "packages" / "+".join(requirements)[:120]
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, *requirements],
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        if done.returncode:
            reason = f"pip cannot bring {' '.join(requirements)}: {done.stderr.strip().splitlines()[-1:]}"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        whole = Path(shutil.copytree(folder, f"{folder}.whole"))
        try:
            whole.rename(place)  # whole or not at all, also where two tests bring it at once
        except OSError:
            shutil.rmtree(whole)
    return place


def model(requirement: str, path: str) -> Path:
    """One file of a package."""
    file = package(requirement) / path
    assert file.is_file(), f"{requirement} has no {path}"
    return file
