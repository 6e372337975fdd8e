from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def shipped() -> Path:
    """The shipped character model."""
    return Path(__file__).parents[3] / "models" / "python-reference"


@pytest.fixture(autouse=True)
def _log_settings_stay_here() -> Iterator[None]:
    """Commands set up logging for their process, which here is pytest's."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
