"""`eddy export` and `eddy train` as they are typed: what they print, and the one line they end with otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from export.language_model import build
from pipeline.beside import Beside
from pipeline.heads import make_head
from pipeline.model_file import load_graph, read_contract
from services.cli import main

torch = pytest.importorskip("torch")

from tests.unit.export import modules as m  # noqa: E402

MODULE = "tests.unit.export.modules"


def fails(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Runs the command, which must end with exit code 2 and one line; returns that line."""
    assert main([str(w) for w in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("eddy: ")
    assert error.count("\n") == 1
    return error


def test_module_and_checkpoint_become_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(5)
    module = m.Cell()
    torch.save({"epoch": 3, "state_dict": module.state_dict()}, tmp_path / "weights.pt")
    out = tmp_path / "models" / "cell" / "4"
    words = [
        "export",
        f"{MODULE}:build",
        "--checkpoint",
        tmp_path / "weights.pt",
        "--steps",
        "float32[8]",
        "--output",
        out,
    ]
    assert main([*map(str, words), "--licence", "MIT", "--summary", "A cell."]) == 0
    printed = capsys.readouterr().out
    assert "PyTorch against onnxruntime" in printed
    assert f"next: eddy run --model {out}" in printed
    assert "MIT" in (out / "README.md").read_text()
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    x = np.ones((1, 8), np.float32)
    with torch.inference_mode():
        expected = module.eval()(torch.from_numpy(x), module.initial_state(1))[0].numpy()
    found = session.run(["output"], {"steps": x, "h": np.zeros((1, 16), np.float32)})[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert main([*map(str, words), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == "cell/4"
    assert result["parity"][0]["largest"] < 1e-5


def test_settings_and_labels_reach_the_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letters.json").write_text(json.dumps(list("abcdefg")))
    (tmp_path / "labels.txt").write_text("so\nlala\nnot, at all\n")
    out = tmp_path / "models" / "words" / "1"
    words = ["export", f"{MODULE}:Tokens", "--steps", "tokens:int64", "--output", out, "--codec", "text"]
    words += ["--codec-setting", "unit=characters", "--codec-setting", f"vocabulary=@{tmp_path / 'letters.json'}"]
    words += ["--head", "classify", "--labels", f"@{tmp_path / 'labels.txt'}", "--head-setting", "top=2"]
    assert main([*map(str, words), "--output-names", "score"]) == 0
    contract = read_contract(load_graph(out / "model.onnx"), "words")
    assert contract.codec.settings == {"unit": "characters", "vocabulary": list("abcdefg")}
    assert contract.head.labels == ("so", "lala", "not, at all")
    assert contract.head.settings == {"top": 2}
    assert [o.name for o in contract.outputs] == ["score"]


def test_a_language_model_comes_to_lie_beside_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.txt").write_text("\na\nb\n")
    build(["abba", "baba"], 3).save(tmp_path / "words.lm")
    out = tmp_path / "models" / "words" / "1"
    words = ["export", f"{MODULE}:Tokens", "--steps", "tokens:int64", "--output", out, "--language-model"]
    heard = ["--labels", f"@{tmp_path / 'labels.txt'}", "--head-setting", "step_s=0.04", "--head-setting", "beam=8"]
    assert main([*map(str, [*words, tmp_path / "words.lm", "--head", "transcribe", *heard])]) == 0
    contract = read_contract(load_graph(out / "model.onnx"), "words")
    assert contract.head.labels == ("", "a", "b")
    assert make_head(contract, Beside(out)).memory_bytes == contract.head.memory_bytes
    assert (out / "lm.bin").read_bytes() == (tmp_path / "words.lm").read_bytes()
    assert "is for the head transcribe" in fails(capsys, *words, tmp_path / "words.lm")
    asked = [*words, tmp_path / "none.lm", "--head", "transcribe", *heard]
    assert f"--language-model {tmp_path / 'none.lm'}: cannot be read" in fails(capsys, *asked)
    asked = [*words, tmp_path / "labels.txt", "--head", "transcribe", *heard]
    assert "setting 'language_model': no language model" in fails(capsys, *asked)


def test_what_is_asked_wrongly_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--output", tmp_path / "m" / "1"]
    steps = ["--steps", "float32[8]"]
    assert "give --steps, as in --steps float32[64]" in fails(capsys, "export", f"{MODULE}:build", *out)
    assert "nothing to export" in fails(capsys, "export", *out)
    assert "--steps is for a module of your own" in fails(capsys, "export", "--checkpoint", "x.pt", *steps, *out)
    assert "expected PACKAGE.MODULE:NAME" in fails(capsys, "export", "mymodule", *steps, *out)
    assert "no module 'nowhere.at_all'" in fails(capsys, "export", "nowhere.at_all:build", *steps, *out)
    assert "did you mean 'build'?" in fails(capsys, "export", f"{MODULE}:biuld", *steps, *out)
    assert "is a int: expected a torch.nn.Module" in fails(capsys, "export", f"{MODULE}:NOT_A_MODULE", *steps, *out)
    assert "called without arguments" in fails(capsys, "export", f"{MODULE}:needs_argument", *steps, *out)
    assert "made a dict" in fails(capsys, "export", "builtins:dict", *steps, *out)
    assert "expected KEY=VALUE" in fails(capsys, "export", f"{MODULE}:build", *steps, *out, "--head-setting", "top")
    assert "cannot be read" in fails(
        capsys, "export", f"{MODULE}:build", *steps, *out, "--codec-setting", "vocabulary=@none.json"
    )


def test_modules_that_fail_to_import_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "breaks.py").write_text("raise ValueError('as it\\nmust')\n")
    out = ["--output", "m/1", "--steps", "float32[8]"]
    assert "importing needs_more failed: No module named 'a_package_that_is_not_there'; install" in fails(
        capsys, "export", "needs_more:build", *out
    )
    assert "importing breaks failed: ValueError: as it" in fails(capsys, "export", "breaks:build", *out)


def test_checkpoints_that_do_not_fit_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "weights.pt"
    words = [
        "export",
        f"{MODULE}:build",
        "--steps",
        "float32[8]",
        "--output",
        tmp_path / "m" / "1",
        "--checkpoint",
        file,
    ]
    assert f"no checkpoint at {file}" in fails(capsys, *words)
    file.write_bytes(b"not a checkpoint")
    assert "not a checkpoint of weights" in fails(capsys, *words)
    torch.save(m.Cell(), file)
    assert "torch.save(module.state_dict(), FILE)" in fails(capsys, *words)
    torch.save([1, 2], file)
    assert "holds no weights" in fails(capsys, *words)
    weights = m.Cell().state_dict()
    torch.save({k: v for k, v in weights.items() if k != "cell.bias_hh"}, file)
    assert "no weight 'cell.bias_hh' (1 missing)" in fails(capsys, *words)
    torch.save({**weights, "other.weight": torch.zeros(3)}, file)
    assert "the module has no weight 'other.weight'" in fails(capsys, *words)
    torch.save({**weights, "cell.bias_hh": torch.zeros(3)}, file)
    assert "weight 'cell.bias_hh' has shape [3], the module's has [48]" in fails(capsys, *words)
    torch.save(weights, file)
    assert "not a checkpoint of `eddy train`" in fails(
        capsys, "export", "--checkpoint", file, "--output", tmp_path / "m" / "1"
    )
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("words", [["train", "text"], ["export", "a:b", "--steps", "int64", "--output", "m/1"]])
def test_without_torch_the_extra_is_named(tmp_path: Path, words: list[str]) -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda n, *a: None if n == 'torch' else find(n, *a); sys.modules['torch'] = None;"
        "from services.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", code, *words], check=False, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert run.returncode == 2
    assert run.stderr.startswith(f"eddy: eddy {words[0]} needs torch: ")
    assert run.stderr.endswith("[export]'\n")
    helped = subprocess.run(
        [sys.executable, "-c", code, words[0], "--help"], check=False, capture_output=True, text=True, env=environment
    )
    assert helped.returncode == 0
    assert "examples:" in helped.stdout
