"""Where a demo's model comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ModelError
from services.demos.base import shipped_model
from services.demos.run import run_demo
from services.demos.text import TextDemo


def test_an_installed_package_takes_the_models_of_the_clone_that_we_are_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert shipped_model("mine") == Path("models/mine")
    assert shipped_model("python-reference") is not None


def test_elsewhere_the_model_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TextDemo, "model", "unshipped")
    with pytest.raises(ModelError, match="'unshipped' is not here: run the demo in a clone's folder, or give --model"):
        run_demo(TextDemo(40), None)
