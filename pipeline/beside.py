"""Files that belong to a model and lie beside its ``model.onnx``: a tokenizer, a language model.

A setting of the contract's codec or head names each with its sha256, so a file that was changed, or taken from another
model, is refused: ``{"file": "tokenizer.json", "sha256": "9f2c..."}``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import ContractError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
EXPECTED = 'a file beside the model, {"file": NAME, "sha256": 64 hexadecimal digits}, or null'


@dataclass(frozen=True)
class Beside:
    """Where such files are."""

    folder: Path | None = None
    """The model's own; None: nowhere."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Name -> path of those that are somewhere else: an export has not written its folder yet."""

    def read(self, named: Mapping[str, Any], where: str) -> bytes:
        """The bytes of the file that a setting names (see ``entry``). Raises ContractError beginning with ``where``."""
        name, wanted = named["file"], named["sha256"]
        path = self.files.get(name) or (None if self.folder is None else self.folder / name)
        if path is None:
            raise ContractError(f"{where}: needs the file {name!r} from beside model.onnx, and no folder was given")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ContractError(
                f"{where}: {path} cannot be read ({error.strerror}); it belongs to the model and lies beside model.onnx"
            ) from None
        found = hashlib.sha256(content).hexdigest()
        if found != wanted:
            raise ContractError(
                f"{where}: {path} is not the file that the model was exported with (its sha256 is {found[:12]}..., the"
                f" contract says {wanted[:12]}...); put that one back, or export the model again"
            )
        return content


NOTHING_BESIDE = Beside()


def entry(name: str, content: bytes) -> dict[str, str]:
    """What stands in a setting for the file ``name`` beside ``model.onnx``."""
    return {"file": name, "sha256": hashlib.sha256(content).hexdigest()}


def names_file(value: Any) -> bool:
    """Whether a setting's value names a file: a plain name, no path."""
    return (
        isinstance(value, Mapping)
        and set(value) == {"file", "sha256"}
        and all(isinstance(v, str) for v in value.values())
        and _NAME.fullmatch(value["file"]) is not None
        and _DIGEST.fullmatch(value["sha256"]) is not None
    )
