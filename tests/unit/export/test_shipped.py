"""Every shipped model, scored again on its held-out data: its card says what it does, and a recipe makes it again."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path

import pytest

from export.arguments import PRECISIONS
from export.data.pages import versions
from export.tasks.base import read_figures
from services.cli import main

MODELS = Path(__file__).parents[3] / "models"
SHIPPED = sorted(f.parent for f in MODELS.glob("*/*/model.onnx"))


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda f: f"{f.parent.name}-{f.name}")
def test_it_scores_as_its_card_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored, card = read_figures(folder), (folder / "README.md").read_text(encoding="utf-8")
    for figure in scored.scores.figures:
        assert f"| {figure} |" in card, f"{figure.name} is {figure} in figures.json, and not so in the card"
    assert f"```sh\nmake models NAMES={folder.parent.name}\n```" in card
    for precision in PRECISIONS:
        assert re.search(rf"^\| {precision}( \(this file\))? \| \d+\.\d\d MB \| ", card, re.MULTILINE), precision
    code = main(["score", str(folder), "--json"])
    said = capsys.readouterr()
    if code == 2 and not os.environ.get("CI"):
        pytest.skip(f"no held-out data: {said.err}")
    assert code in (0, 1), said.err
    result = json.loads(said.out)
    assert not result["deviations"]
    assert code == (0 if result["same_data"] else 1), said.err
    assert result["figures"]
    # Text of the standard library is another in every Python, pages are in every Debian; else data are the same.
    others = (scored.task == "text" and scored.python != platform.python_version()) or (
        scored.task == "language" and scored.about["packages"] != versions()
    )
    assert result["same_data"] or others


def test_every_shipped_model_has_its_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    from export.rebuild import RECIPES, understood
    from export.rebuild import main as rebuild_main

    assert sorted(RECIPES) == sorted(f.name for f in MODELS.iterdir() if f.is_dir())
    assert rebuild_main(["no-such-model"]) == 2
    assert "no recipe for 'no-such-model'" in capsys.readouterr().err
    for folder in SHIPPED:
        (_, train), (_, export) = understood(folder.parent.name)
        assert export.checkpoint.parent == train.output
        assert export.output == folder.relative_to(MODELS.parent)
        card = (folder / "README.md").read_text(encoding="utf-8")
        rate = f"AdamW {train.learning_rate:g} "
        for said in (f"{train.epochs} epochs", rate, f"seed {train.seed};", f"torch threads: {train.threads}."):
            assert said in card, f"{folder}: the recipe would make {said!r} of its card, which does not say it"
    assert sum(f.stat().st_size for f in MODELS.rglob("*.onnx")) < 40_000_000
