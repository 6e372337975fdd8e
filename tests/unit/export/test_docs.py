"""The examples of the README and of docs/exporting.md, as a newcomer would run them."""

from __future__ import annotations

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from export.reports import REPORTS
from pipeline.beside import Beside
from pipeline.contract import Contract
from pipeline.errors import ContractError
from pipeline.heads import make_head
from pipeline.model_file import load_graph, read_contract
from services.cli import build_parser

ROOT = Path(__file__).parents[3]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def export_by_command(page: str, folder: Path) -> Contract:
    """Writes the page's module down under the name it gives, and runs the page's `eddy export`."""
    module = next(b for b in blocks(page, "python") if "def initial_state" in b)
    name = re.search(r"# (\w+\.py)", module)
    assert name is not None
    (folder / name[1]).write_text(module)
    shell = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    command = shlex.split(next(line for line in shell if line.startswith("eddy export")))
    if "--checkpoint" in command:
        save = f"import torch, {name[1][:-3]} as m; torch.save(m.Detector().state_dict(), 'weights.pt')"
        subprocess.run([sys.executable, "-c", save], cwd=folder, check=True)
    subprocess.run([sys.executable, "-m", "services", *command[1:]], cwd=folder, check=True, capture_output=True)
    return read_contract(load_graph(folder / "models" / "detector" / "1" / "model.onnx"), page)


@pytest.mark.parametrize("page", ["README.md", "docs/exporting.md"])
def test_the_command_exports_the_module_shown(tmp_path: Path, page: str) -> None:
    pytest.importorskip("torch")
    contract = export_by_command(page, tmp_path)
    assert (contract.time_axis, contract.batch_axis) == (0, 1)
    assert contract.head.labels == ("quiet", "alarm")


def test_the_call_does_what_the_command_does(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    page = "docs/exporting.md"
    by_command = export_by_command(page, tmp_path)
    file = tmp_path / "models" / "detector" / "1" / "model.onnx"
    file.unlink()
    call = next(b for b in blocks(page, "python") if "export_module(" in b)
    subprocess.run([sys.executable, "-c", call], cwd=tmp_path, check=True)
    assert read_contract(load_graph(file), page) == by_command


def test_the_transcribing_model_is_exported_with_its_language_model(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "lines.txt").write_text("so be it\nbe it so\n")
    call = next(b for b in blocks("docs/exporting.md", "python") if "language_model" in b)
    module = """
import torch


class Speech(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = torch.nn.LSTM(240, 8)

    def initial_state(self, batch):
        return torch.zeros(1, batch, 8), torch.zeros(1, batch, 8)

    def forward(self, steps, h, c):
        y, (h, c) = self.cell(steps, (h, c))
        return y, h, c
"""
    subprocess.run([sys.executable, "-c", module + call], cwd=tmp_path, check=True)
    file = tmp_path / "models" / "speech" / "1" / "model.onnx"
    contract = read_contract(load_graph(file), "speech")
    assert contract.head.labels == ("", *" beiost")
    assert make_head(contract, Beside(file.parent)).memory_bytes == contract.head.memory_bytes
    with pytest.raises(ContractError, match=r"needs the file 'lm\.bin' from beside"):
        make_head(contract)


def test_the_guide_shows_what_its_commands_measured() -> None:
    """Its tables are the reports', its pictures are there, and its commands are ones that can be given."""
    guide, measured = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8"), ROOT / "docs" / "measured"
    tables = sorted(measured.glob("*.md"))
    assert len(tables) >= 6
    for table in tables:
        assert table.read_text(encoding="utf-8") in guide, f"{table.name} is not in the guide as it was measured"
        header, *lines = csv.reader(table.with_suffix(".csv").read_text().splitlines())
        assert f"| {' | '.join(header)} |" in guide
        assert all(f"| {' | '.join(line)} |" in guide for line in lines)
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", guide)
    assert sorted(pictures) == sorted(f"measured/{f.name}" for f in measured.glob("*.png"))
    assert all(0 < (ROOT / "docs" / picture).stat().st_size < 150_000 for picture in pictures)
    commands = re.findall(r"^(eddy .+)$", guide, re.MULTILINE) + re.findall(r"`(eddy demo .+?)`", guide)
    for command in commands:
        build_parser().parse_args(shlex.split(command)[1:])
    asked = {c.split()[-1] for c in commands if "--report" in c}
    assert asked == set(REPORTS)
