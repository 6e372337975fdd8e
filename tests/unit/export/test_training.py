"""Training a text net: it learns, it resumes, and what it ships scores as its card says."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export.data.topics import UNKNOWN, Alphabet, load_corpus, text_file
from export.tasks.base import Figure, deviations
from export.tasks.text import score_model
from pipeline.errors import ConfigError, ModelError

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from export.nets.text import TextNetShape  # noqa: E402
from export.training.checkpoint import read_run  # noqa: E402
from export.training.loop import fit  # noqa: E402
from export.training.schedule import Schedule  # noqa: E402
from export.training.text import TextProblem, net_of, score_torch  # noqa: E402
from services.cli import main  # noqa: E402

SHIPPED = Path(__file__).parents[3] / "models" / "python-reference" / "1"
TINY = ["--units", "24", "--layers", "1", "--embedding", "8", "--lanes", "4", "--window", "20", "--threads", "1"]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A text that a tiny net learns within seconds."""
    file = tmp_path / "book.txt"
    file.write_text("".join(f"verse {i % 10}: row, row, row your böat\n" for i in range(120)), encoding="utf-8")
    return file


@pytest.mark.parametrize("kind", ["lstm", "gru", "elman", "mingru"])
def test_it_learns(tmp_path: Path, book: Path, kind: str) -> None:
    corpus = text_file(book)
    alphabet = Alphabet.of(corpus.train)
    shape = TextNetShape(kind, alphabet.size, layers=2, units=32, embedding=8)
    problem = TextProblem(corpus, alphabet, shape, lanes=4, window=25)
    progress = fit(problem, Schedule(epochs=6, learning_rate=1e-2), tmp_path / "run")
    first, last = progress.curve[0], progress.curve[-1]
    assert last.train < 0.7 * first.train
    assert progress.best_score < 2.5
    assert last.gradient_max >= last.gradient > 0
    net = net_of(read_run(tmp_path / "run" / "checkpoint.pt"))
    assert score_torch(net, alphabet, corpus.develop) == pytest.approx(progress.best_score)
    with (tmp_path / "run" / "loss.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0][:4] == ["epoch", "seconds", "train (bits per character)", "development (bits per character)"]
    assert rows[0][4:] == ["gradient norm, mean", "gradient norm, largest"]
    assert [float(r[2]) for r in rows[1:]] == pytest.approx([p.train for p in progress.curve], abs=1e-4)
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, book: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "services",
        "train",
        "text",
        "--data",
        str(book),
        "--epochs",
        "8",
        *TINY,
        "--output",
    ]
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    process = subprocess.Popen([*command, str(broken)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 2/8"):
            process.send_signal(signal.SIGKILL)
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL
    again = subprocess.run([*command, str(broken)], stderr=subprocess.PIPE, text=True, check=True).stderr
    assert "epoch 1/8" not in again
    assert "epoch 2/8" not in again
    assert "epoch 8/8" in again
    subprocess.run([*command, str(whole)], stderr=subprocess.PIPE, check=True)
    one, other = (net_of(read_run(f / "checkpoint.pt")).state_dict() for f in (broken, whole))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_other_settings_do_not_resume(tmp_path: Path, book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["train", "text", "--data", str(book), "--output", str(tmp_path / "run"), *TINY, "--epochs", "1"]
    assert main([*run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epochs"] == 1
    assert main([*run, "--seed", "1"]) == 2
    assert "belongs to another run (schedule seed differs)" in capsys.readouterr().err
    assert main([*run, "--seed", "1", "--fresh"]) == 0


@pytest.mark.parametrize("unit", [["bytes"], ["tokens", "--vocabulary", "280"]], ids=["bytes", "tokens"])
def test_from_text_to_a_served_model(
    tmp_path: Path, book: Path, unit: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["train", "text", "--data", str(book), "--output", str(tmp_path / "run"), *TINY, "--epochs", "2"]
    assert main([*run, "--net", "gru", "--unit", *unit]) == 0
    folder = tmp_path / "models" / "boat" / "1"
    assert main(["export", "--checkpoint", str(tmp_path / "run" / "checkpoint.pt"), "--output", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "PyTorch against onnxruntime" in out
    card = (folder / "README.md").read_text()
    held_out = text_file(book).held_out
    assert f"| {score_model(folder / 'model.onnx', held_out):.4f} |" in card
    assert "1 GRU layer of 24 units" in card
    assert main(["score", str(folder), "--baselines", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [f["baseline"] for f in result["figures"]] == [False, True]
    assert result["deviations"] == []
    for figure in result["figures"]:
        assert figure["value"] == pytest.approx(figure["claimed"])
        assert f"| {figure['value']:.4f} |" in card


def test_a_figure_that_is_not_as_claimed_fails(tmp_path: Path, book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["train", "text", "--data", str(book), "--output", str(tmp_path / "run"), *TINY, "--epochs", "1"]
    folder = tmp_path / "m" / "1"
    assert main(run) == 0
    assert main(["export", "--checkpoint", str(tmp_path / "run" / "checkpoint.pt"), "--output", str(folder)]) == 0
    claimed = json.loads((folder / "figures.json").read_text())
    claimed["figures"][0]["value"] -= 0.01
    (folder / "figures.json").write_text(json.dumps(claimed))
    capsys.readouterr()
    assert main(["score", str(folder)]) == 1
    assert "0.002 allowed" in capsys.readouterr().err
    book.write_text(book.read_text(encoding="utf-8") + "more and more", encoding="utf-8")
    assert main(["score", str(folder)]) == 1, "figures that nothing was compared with must not pass"
    assert "nothing was compared" in capsys.readouterr().err
    (folder / "figures.json").write_text('{"task": "text"}')
    assert main(["score", str(folder)]) == 2
    assert "export the model again" in capsys.readouterr().err
    assert main(["score", str(tmp_path)]) == 2
    assert "no figures.json" in capsys.readouterr().err


def test_deviations_are_found() -> None:
    claimed = [Figure("a", 1.0, tolerance=0.1), Figure("b", 2.0, tolerance=0.1), Figure("c", 3.0, baseline=True)]
    assert deviations(claimed, [Figure("a", 1.05), Figure("b", 2.0)]) == []
    assert "b: 2.0000 claimed, 2.2000 found" in deviations(claimed, [Figure("a", 1.0), Figure("b", 2.2)])[0]
    assert "b: 2.0000 claimed, nan found" in deviations(claimed, [Figure("a", 1.0), Figure("b", float("nan"))])[0]
    assert "not scored any more" in deviations(claimed, [Figure("a", 1.0)])[0]
    assert "not claimed" in deviations(claimed, [Figure("a", 1.0), Figure("b", 2.0), Figure("d", 1.0)])[0]


def test_scoring_and_help_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['matplotlib'] = None;"
        "from services.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "score", str(SHIPPED), "--json"], check=False, capture_output=True, text=True
    )
    assert run.stdout, run.stderr
    told = json.loads(run.stdout)
    assert any("bits per character" in figure["name"] for figure in told["figures"])
    # Python's reference topics are part of Python: of another one there is nothing to compare.
    assert run.returncode == (0 if told["same_data"] else 1), run.stderr
    started = "import sys, services.cli; print([m for m in ('torch', 'numpy', 'onnxruntime') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", started], check=True, capture_output=True).stdout == b"[]\n"


def test_a_text_that_changed_is_not_scored(tmp_path: Path, book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["train", "text", "--data", str(book), "--output", str(tmp_path / "run"), *TINY, "--epochs", "1"]
    assert main(run) == 0
    book.write_text(book.read_text(encoding="utf-8") + "more", encoding="utf-8")
    assert (
        main(["export", "--checkpoint", str(tmp_path / "run" / "checkpoint.pt"), "--output", str(tmp_path / "m/1")])
        == 2
    )
    assert "train again" in capsys.readouterr().err


def test_training_that_diverges_says_so(tmp_path: Path, book: Path) -> None:
    corpus = text_file(book)
    alphabet = Alphabet.of(corpus.train)
    shape = TextNetShape("elman", alphabet.size, layers=1, units=16, embedding=8)
    problem = TextProblem(corpus, alphabet, shape, lanes=4)
    with pytest.raises(ModelError, match="lower --learning-rate"):
        fit(problem, Schedule(epochs=3, learning_rate=1e30), tmp_path / "run")


def test_unknown_characters_have_a_token() -> None:
    alphabet = Alphabet.of("aaaabbbbc")
    assert alphabet.characters == ("a", "b", UNKNOWN)
    assert alphabet.encode("abc€\U0001f600").tolist() == [0, 1, 2, 2, 2]
    assert alphabet.hidden_bits("abc") == pytest.approx(np.log2(0x110000))
    assert Alphabet(None).encode("ä").tolist() == [0xC3, 0xA4]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"\xff\xfe" * 1000, r"not UTF-8 \(byte 0\)"), (b"short", "5 characters are too few")],
)
def test_texts_that_cannot_be_used(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_corpus(str(file))


def test_too_many_lanes_say_so(book: Path) -> None:
    corpus = text_file(book)
    with pytest.raises(ConfigError, match="fewer --lanes"):
        TextProblem(corpus, Alphabet(None), TextNetShape(units=4), lanes=10_000)
