"""The example of docs/exporting.md, as a newcomer would run it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.model_file import load_graph, read_contract

DOCS = Path(__file__).parents[3] / "docs" / "exporting.md"


def test_the_example_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    text = DOCS.read_text(encoding="utf-8")
    module, call = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "counter.py").write_text(module)
    save = "import torch, counter; torch.save(counter.Detector().state_dict(), 'weights.pt')"
    subprocess.run([sys.executable, "-c", save], cwd=tmp_path, check=True)
    shell = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)[0].replace("\\\n", " ")
    export = shlex.split(shell.splitlines()[0])
    subprocess.run([sys.executable, "-m", "services", *export[1:]], cwd=tmp_path, check=True, capture_output=True)
    file = tmp_path / "models" / "detector" / "1" / "model.onnx"
    by_command = read_contract(load_graph(file), "detector")
    file.unlink()
    subprocess.run([sys.executable, "-c", call], cwd=tmp_path, check=True)
    assert read_contract(load_graph(file), "detector") == by_command
    assert (by_command.time_axis, by_command.batch_axis) == (0, 1)
    assert by_command.head.labels == ("quiet", "alarm")
