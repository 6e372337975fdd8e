"""Training a text net: it learns, it resumes, and what it ships scores as its card says."""

from __future__ import annotations

import csv
import json
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export.text import UNKNOWN, Alphabet, load_corpus, python_topics, text_file
from pipeline.errors import ConfigError, ModelError

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from export.nets import TextNetShape  # noqa: E402
from export.rebuild import RECIPES  # noqa: E402
from export.rebuild import main as rebuild_main  # noqa: E402
from export.textmodel import score_model  # noqa: E402
from export.training import Schedule, load_text_net, score_torch, train_text  # noqa: E402
from services.cli import main  # noqa: E402

SHIPPED = Path(__file__).parents[3] / "models" / "python-reference" / "1"
TINY = ["--units", "24", "--layers", "1", "--embedding", "8", "--lanes", "4", "--window", "20", "--threads", "1"]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A text that a tiny net learns within seconds."""
    file = tmp_path / "book.txt"
    file.write_text("".join(f"verse {i % 10}: row, row, row your böat\n" for i in range(120)), encoding="utf-8")
    return file


@pytest.mark.parametrize("kind", ["lstm", "gru", "elman"])
def test_it_learns(tmp_path: Path, book: Path, kind: str) -> None:
    corpus = text_file(book)
    alphabet = Alphabet.of(corpus.train)
    shape = TextNetShape(kind, alphabet.size, layers=2, units=32, embedding=8)
    progress = train_text(
        corpus, alphabet, shape, Schedule(epochs=6, lanes=4, window=25, learning_rate=1e-2), tmp_path / "run"
    )
    first, last = progress.curve[0], progress.curve[-1]
    assert last[2] < 0.7 * first[2]
    assert progress.best_bits < 2.5
    net, _ = load_text_net(tmp_path / "run" / "checkpoint.pt")
    assert score_torch(net, alphabet, corpus.develop) == pytest.approx(progress.best_bits)
    with (tmp_path / "run" / "loss.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["epoch", "seconds", "train (bits per character)", "development (bits per character)"]
    assert [float(r[2]) for r in rows[1:]] == pytest.approx([r[2] for r in progress.curve], abs=1e-4)
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
    one, other = (load_text_net(f / "checkpoint.pt")[0].state_dict() for f in (broken, whole))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_other_settings_do_not_resume(tmp_path: Path, book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["train", "text", "--data", str(book), "--output", str(tmp_path / "run"), *TINY, "--epochs", "1"]
    assert main([*run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epochs"] == 1
    assert main([*run, "--seed", "1"]) == 2
    assert "belongs to another run (schedule differs)" in capsys.readouterr().err
    assert main([*run, "--seed", "1", "--fresh"]) == 0


def test_from_text_to_a_served_model(tmp_path: Path, book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["train", "text", "--data", str(book), "--output", str(tmp_path / "run"), *TINY, "--epochs", "2"]
    assert main([*run, "--unit", "bytes", "--net", "gru"]) == 0
    folder = tmp_path / "models" / "boat" / "1"
    assert main(["export", "--checkpoint", str(tmp_path / "run" / "checkpoint.pt"), "--output", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "PyTorch against onnxruntime" in out
    card = (folder / "README.md").read_text()
    held_out = text_file(book).held_out
    assert f"| {score_model(folder / 'model.onnx', held_out):.4f} |" in card
    assert "1 GRU layer of 24 units" in card


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
    with pytest.raises(ModelError, match="lower --learning-rate"):
        train_text(corpus, alphabet, shape, Schedule(epochs=3, lanes=4, learning_rate=1e30), tmp_path / "run")


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


def test_too_many_lanes_say_so(tmp_path: Path, book: Path) -> None:
    corpus = text_file(book)
    with pytest.raises(ConfigError, match="fewer --lanes"):
        train_text(corpus, Alphabet(None), TextNetShape(units=4), Schedule(lanes=10_000), tmp_path / "run")


def test_every_shipped_model_has_its_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    models = SHIPPED.parents[1]
    assert sorted(RECIPES) == sorted(f.name for f in models.iterdir() if f.is_dir())
    for name in RECIPES:
        assert "```sh\nmake models\n```" in (models / name / "1" / "README.md").read_text()
    assert rebuild_main(["no-such-model"]) == 2
    assert "no recipe for 'no-such-model'" in capsys.readouterr().err


def test_the_shipped_model_scores_as_its_card_says() -> None:
    card = (SHIPPED / "README.md").read_text()
    claimed = re.search(r"bits per character, held out \(onnxruntime.*\| ([\d.]+) \|", card)
    python = re.search(r"reference topics of Python ([\d.]+)", card)
    assert claimed is not None
    assert python is not None
    score = score_model(SHIPPED / "model.onnx", python_topics().held_out)
    assert score < 2.3
    if python[1] == platform.python_version():
        assert score == pytest.approx(float(claimed[1]), abs=2e-3)
    assert (SHIPPED / "model.onnx").stat().st_size < 8_000_000
