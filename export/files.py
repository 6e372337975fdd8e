"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(file: Path, content: bytes) -> None:
    """Whoever reads the file meanwhile, or after a kill, finds the old content or the new one."""
    growing = file.with_name(f"{file.name}.tmp")
    growing.write_bytes(content)
    os.replace(growing, file)
