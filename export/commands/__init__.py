"""The commands `eddy train`, `eddy export` and `eddy score`. Nothing here needs torch until a command runs."""

from __future__ import annotations

from export.commands.export import add_export_parser
from export.commands.score import add_score_parser
from export.commands.train import add_train_parser

__all__ = ["add_export_parser", "add_score_parser", "add_train_parser"]
