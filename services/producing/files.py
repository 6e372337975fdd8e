"""Files that a command line names, and the streams that they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import ConfigError, UserError


def existing(names: Sequence[str]) -> list[Path]:
    """Raises UserError for one that is not there."""
    files = [Path(name) for name in names]
    for file in files:
        if not file.exists() or file.is_dir():
            raise UserError(f"no file {file}")
    return files


def keys_of(files: Sequence[Path], key: str | None) -> list[bytes]:
    """A stream's key for each file: its name without suffix, its whole path where another has the same name.

    Raises ConfigError for one ``key`` of several files: their streams would be mixed.
    """
    if key is not None:
        if len(files) > 1:
            raise ConfigError(f"--key {key} for {len(files)} files: each is a stream of its own; leave it out")
        return [key.encode()]
    stems = Counter(file.stem for file in files)
    return [(file.stem if stems[file.stem] == 1 else str(file)).encode() for file in files]
