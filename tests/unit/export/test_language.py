"""Telling languages apart: a small net learns it from real pages, and is exported, scored and served as bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from export.data.pages import LANGUAGES, load_pages, streams  # noqa: E402
from export.nets.language import LanguageNet, LanguageNetShape  # noqa: E402
from export.tasks import language  # noqa: E402
from export.tasks.base import read_figures  # noqa: E402
from export.tasks.conversations import converse  # noqa: E402
from export.training.language import LanguageProblem, Windows  # noqa: E402
from services.cli import main  # noqa: E402

SMALL = ["--epochs=2", "--updates=12", "--units=32", "--lanes=32", "--window=48", "--threads=1", "--learning-rate=0.02"]


@pytest.mark.parametrize("kind", ["mingru", "gru"])
def test_a_stream_may_be_cut_anywhere(kind: str) -> None:
    torch.manual_seed(0)
    net = LanguageNet(LanguageNetShape(5, kind=kind, units=12, grams=16, embedding=6)).eval()
    tokens = torch.randint(0, 256, (40, 3))
    with torch.inference_mode():
        whole, *after = net(tokens, *net.initial_state(3))
        states, pieces = net.initial_state(3), []
        for piece in torch.split(tokens, [1, 2, 17, 20]):
            logits, *states = net(piece, *states)
            pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces), whole)
    for a, b in zip(states, after, strict=True):
        torch.testing.assert_close(a, b)


def test_windows_are_of_all_languages_and_go_on() -> None:
    pages = load_pages(["develop"])["develop"]
    problem = LanguageProblem(pages, pages, LanguageNetShape(len(LANGUAGES)), lanes=42, window=16, updates=12)
    windows = list(problem.batches(3, 0))
    assert len(windows) == len(problem.batches(3, 0)) == 12
    for given, labels, _ in windows:
        assert given.shape == (16, 42)
        assert sorted(labels.tolist()) == sorted([*range(21)] * 2), "every language equally often"
    assert [on for *_, on in windows] == [False, False, False, False, True, True] * 2
    text = bytes(torch.cat([w[0][:, 7] for w in windows[3:6]]).tolist())
    code = list(LANGUAGES)[windows[3][1][7]]
    assert any(text in page.text.encode() for page in pages if page.language == code)
    for (a, *_), (b, *_) in zip(windows, Windows(problem, 3, 0)):
        assert torch.equal(a, b), "a function of epoch and seed"


def test_trained_exported_and_scored_by_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(language, "EACH", 10)  # streams of each language, in place of a hundred
    assert main(["train", "language", *SMALL, "--output", "run"]) == 0
    assert main(["export", "--checkpoint", "run/checkpoint.pt", "--output", "tongues/1"]) == 0
    folder = tmp_path / "tongues" / "1"
    scored, card = read_figures(folder), (folder / "README.md").read_text()
    found = {f.name: f.value for f in scored.scores.figures}
    own = [found[f"accuracy after {n} characters, held out"] for n in (10, 20, 50, 100)]
    assert own[0] < own[3], "the more it reads, the more it knows"
    assert own[3] > 0.25, "chance is 0.05"
    for name in ("lingua", "py3langid"):
        other = [found[f"accuracy after {n} characters, held out, {name}"] for n in (10, 20, 50, 100)]
        assert other[0] > 0.4
        assert other[3] > 0.85, "a library that is told the languages knows them after a line"
    assert "| da (Danish) |" in card
    assert (folder / "confusion.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(["score", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same_data"]

    sample = streams(load_pages(["held_out"])["held_out"], 2, 60, 1)
    whole = [text.encode() for text, _ in sample]
    cut = converse(folder, [[r[:7] for r in whole], [r[7:31] for r in whole], [r[31:] for r in whole]])
    np.testing.assert_allclose(cut[-1], converse(folder, [whole])[-1], atol=1e-4)
