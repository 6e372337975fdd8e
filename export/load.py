"""A user's module by its name, ``package.module:name``, and the weights of its checkpoint."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.probe import first_line
from pipeline.errors import ModelError

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Under which key a training script's checkpoint may hold the weights."""


def load_module(name: str) -> nn.Module:
    """What ``package.module:name`` gives: a module, or a function or class that makes one without arguments.

    The working directory is searched last, so that nothing in it hides an installed package. Raises ModelError.
    """
    path, colon, attribute = name.partition(":")
    if not colon or not path or not attribute:
        raise ModelError(f"module {name!r}: expected PACKAGE.MODULE:NAME, as in mypackage.mymodule:build")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and (path == error.name or path.startswith(f"{error.name}.")):
            raise ModelError(f"no module {path!r} in {here} or among the installed packages") from None
        raise ModelError(f"importing {path} failed: {first_line(error)}; install what it needs") from None
    except Exception as error:  # noqa: BLE001 - it is the user's code
        raise ModelError(f"importing {path} failed: {type(error).__name__}: {first_line(error)}") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found), 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ModelError(f"{path} has no {part!r}{hint}")
        found = getattr(found, part)
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise ModelError(
                f"{name} is a {type(found).__name__}: expected a torch.nn.Module, or a function that makes one"
            )
        try:
            found = found()
        except Exception as error:  # noqa: BLE001 - it is the user's code
            raise ModelError(
                f"{name}() failed: {type(error).__name__}: {first_line(error)}; it is called without arguments"
            ) from None
    if not isinstance(found, nn.Module):
        raise ModelError(f"{name}() made a {type(found).__name__}: expected a torch.nn.Module")
    return found


def read_checkpoint(file: Path) -> Any:
    """What `torch.save` wrote, tensors and plain values only. Raises ModelError."""
    if not file.is_file():
        raise ModelError(f"no checkpoint at {file}; train first, or correct --checkpoint")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - unpickling bad bytes raises whatever the bytes say
        raise ModelError(
            f"{file}: not a checkpoint of weights ({first_line(error)}); write one with"
            " torch.save(module.state_dict(), FILE)"
        ) from None


def load_weights(module: nn.Module, file: Path) -> None:
    """Puts the checkpoint's weights into the module. Raises ModelError naming the first thing that does not fit."""
    saved = read_checkpoint(file)
    for key in WRAPPERS:
        if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
            saved = saved[key]
            break
    if not isinstance(saved, Mapping) or not all(isinstance(v, Tensor) for v in saved.values()):
        raise ModelError(f"{file}: holds no weights; write them with torch.save(module.state_dict(), FILE)")
    wanted = module.state_dict()
    missing, extra = [k for k in wanted if k not in saved], [k for k in saved if k not in wanted]
    if missing:
        raise ModelError(f"{file}: no weight {missing[0]!r} ({len(missing)} missing): made by another module?")
    if extra:
        raise ModelError(
            f"{file}: the module has no weight {extra[0]!r} ({len(extra)} left over): made by another module?"
        )
    for key, tensor in wanted.items():
        if saved[key].shape != tensor.shape:
            raise ModelError(
                f"{file}: weight {key!r} has shape {list(saved[key].shape)}, the module's has {list(tensor.shape)}"
            )
    module.load_state_dict(saved)
