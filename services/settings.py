"""The settings of ``eddy run``: the pipeline's own, and where the process listens and how it logs.

Every field of the schema becomes a flag here, so that the schema stays the only list of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config, load, setting


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """See the module."""

    http_host: str = setting("127.0.0.1", "address of the health and metrics pages; 0.0.0.0 is every interface")
    http_port: int = setting(9808, "port of the health and metrics pages; 0 is any free one", low=0)
    log_format: str = setting("text", "log lines for people, or one JSON object a line", choices=("text", "json"))
    log_level: str = setting("info", "least important log line written", choices=("debug", "info", "warning", "error"))


def add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for each field, unset unless given: environment and file stand behind it."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of these settings (keys with _)")
    hints, defaults = typing.get_type_hints(RunConfig), RunConfig()
    for field in dataclasses.fields(RunConfig):
        if typing.get_origin(hints[field.name]) is dict:
            continue  # nested: a matter for the file
        flag = f"--{field.name.replace('_', '-')}"
        if hints[field.name] is bool:
            parser.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=None, help=_explain(field, defaults)
            )
        else:
            parser.add_argument(flag, metavar=_metavar(field, hints[field.name]), help=_explain(field, defaults))


def load_settings(args: argparse.Namespace) -> RunConfig:
    """Flags over ``EDDY_*`` environment over ``--config``. Raises ConfigError."""
    names = {field.name for field in dataclasses.fields(RunConfig)}
    flags = {name: value for name, value in vars(args).items() if name in names}
    return load(RunConfig, flags, os.environ, args.config)


def _explain(field: dataclasses.Field[Any], defaults: RunConfig) -> str:
    value = getattr(defaults, field.name)
    default = (
        ",".join(value) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else str(value)
    )
    choices = "|".join(field.metadata["choices"])
    text = field.metadata["doc"] + (f" ({choices})" if choices else "") + (f" [{default}]" if default else "")
    return str(text).replace("%", "%%")


def _metavar(field: dataclasses.Field[Any], kind: Any) -> str:
    if field.metadata["choices"]:
        return "WORD"
    return {int: "N", float: "X", str: field.name.rsplit("_", 1)[-1].upper()}.get(kind, "A,B")
