"""The reports in small: they write what the guide shows, and the numbers say what they are said to say."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from export.data.topics import Corpus  # noqa: E402
from export.nets.stack import StackShape  # noqa: E402
from export.reports import REPORTS, activation, gradients, length, units  # noqa: E402
from export.reports.texts import TextStudy  # noqa: E402
from export.training.copying import CopyNet, CopyProblem, CopyShape  # noqa: E402
from export.training.schedule import Schedule  # noqa: E402
from services.cli import main  # noqa: E402


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return list(csv.DictReader(lines))


def test_the_report_of_gradients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = Schedule(epochs=1, learning_rate=1e-2)
    study = gradients.Study(units=12, seeds=2, picture_length=30, lengths=(2, 4), batch=8, updates=3, schedule=schedule)
    gradients.report(tmp_path, study)
    assert (tmp_path / "gradients.png").read_bytes().startswith(b"\x89PNG")
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for row in rows(tmp_path / "gradients.csv"):
        first.setdefault(row["net"], float(row["norm, geometric mean"]))
        last[row["net"]] = float(row["norm, geometric mean"])
    assert first["Elman, sigmoid"] < 1e-9 * last["Elman, sigmoid"]
    assert first["LSTM, gates begin open"] > 0.1 * last["LSTM, gates begin open"]
    assert first["Elman, tanh, orthogonal start"] > 1e3 * first["Elman, tanh"]
    assert first["Elman, linear, 1.1 x orthogonal"] > 5 * last["Elman, linear, 1.1 x orthogonal"]
    table = rows(tmp_path / "accuracy.csv")
    assert [r["net"] for r in table] == [c.name for c in gradients.candidates(12)]
    assert list(table[0]) == ["net", "2 steps", "4 steps"]
    printed = capsys.readouterr().out
    assert all((tmp_path / f"{name}.md").read_text() in printed for name in ("accuracy", "clipping"))
    assert len((tmp_path / "clipping.md").read_text().splitlines()) == 5


def test_the_norms_are_those_of_the_derivative() -> None:
    """Against the derivative by differences: a change of h at one step changes the loss that much."""
    candidate = gradients.Candidate("GRU", gradients.candidates(5)[6].stack)
    shape = CopyShape(4, items=1, batch=2)
    norms = gradients.gradient_norms(candidate, shape, seed=3)
    net: CopyNet = gradients.build(candidate, shape, 3).double()
    given, kept = shape.draw(np.random.default_rng([3]), shape.batch)
    given = given.double()
    for t in (1, 4):
        _, h = net(given[:t], *(s.double() for s in net.initial_state(2)))
        found = []
        for i in range(h.numel()):
            losses = []
            for change in (1e-5, -1e-5):
                moved = h.detach().clone().reshape(-1)
                moved[i] += change
                logits, _ = net(given[t:], moved.reshape(h.shape))
                losses.append(float(CopyProblem.nats(logits[-1:], kept).detach()))
            found.append((losses[0] - losses[1]) / 2e-5)
        assert norms[t - 1] == pytest.approx(float(np.linalg.norm(found)), rel=1e-3)


def test_windows_cut_the_error_and_not_the_state() -> None:
    shape = CopyShape(length=6, items=1, symbols=4, batch=3)
    torch.manual_seed(0)
    problem = CopyProblem(shape, CopyNet(StackShape(shape.inputs, "gru", layers=1, units=5), shape.symbols))
    given, kept = shape.draw(np.random.default_rng(1), 3)
    reach = []
    for window in (0, 4):
        given = given.detach().requires_grad_()
        answers = problem.answers(given, window)
        torch.testing.assert_close(answers, problem.answers(given))
        (slope,) = torch.autograd.grad(problem.nats(answers, kept), given)
        reach.append([bool(s) for s in slope.flatten(1).any(1)])
    assert reach == [[True] * 8, [False] * 4 + [True] * 4]


def test_copying_asks_for_what_was_shown() -> None:
    shape = CopyShape(length=3, items=2, symbols=4, batch=5)
    given, kept = shape.draw(np.random.default_rng(1), 5)
    assert given.shape == (7, 5, 6)
    assert torch.equal(given[:2].argmax(-1), kept)
    assert given[2:5].argmax(-1).unique().tolist() == [4]
    assert given[5:].argmax(-1).unique().tolist() == [5]


def test_reports_are_asked_for_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "name a task (text" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--report", "nothing"])
    assert {"gradients", "units", "length", "activation"} == set(REPORTS)


@pytest.fixture
def study() -> TextStudy:
    text = "".join(f"verse {i % 10}: row, row, row your boat\n" for i in range(60))
    corpus = Corpus("rows", "rows", "none", text, text[:300], text[:100])
    return TextStudy(corpus, epochs=1, lanes=4, window=20, embedding=4, measure_s=0.01)


def test_the_report_of_units(tmp_path: Path, study: TextStudy) -> None:
    units.report(tmp_path, study, units=(4, 8), layers=(1, 2))
    table = rows(tmp_path / "units.csv")
    assert [(r["layers"], r["connected"], r["units"]) for r in table] == [
        ("1", "-", "4"),
        ("1", "-", "8"),
        *(("2", c, n) for c in ("stacked", "dense") for n in ("4", "8")),
    ]
    weights = [int(r["weights"].replace(",", "")) for r in table]
    assert weights[4] > weights[2] > weights[0]
    assert all(0 < float(r["bits per character"]) < 8 for r in table)
    assert all(int(r["steps/s served"].replace(",", "")) > 0 for r in table)
    assert (tmp_path / "units.png").read_bytes().startswith(b"\x89PNG")
    checkpoints = {f: f.stat().st_mtime_ns for f in tmp_path.glob("runs/*/checkpoint.pt")}
    assert len(checkpoints) == 6
    units.report(tmp_path, study, units=(4, 8), layers=(1, 2))
    assert checkpoints == {f: f.stat().st_mtime_ns for f in tmp_path.glob("runs/*/checkpoint.pt")}


def test_the_report_of_length(tmp_path: Path, study: TextStudy) -> None:
    schedule = Schedule(epochs=6, learning_rate=1e-2)
    memory = gradients.Study(units=16, seeds=1, lengths=(2, 6), batch=32, updates=25, schedule=schedule)
    length.report(tmp_path, memory, study, units=8, lengths=(1, 8), tokens=16)
    table = {r["net (asked after 8 steps)"]: r for r in rows(tmp_path / "truncation.csv")}
    linear = table["minGRU, gates begin open"]
    assert linear["window of 8"].startswith("1.00")
    for what in ("training", "serving"):
        rates = rows(tmp_path / f"{what}-speed.csv")
        assert [r[f"steps in one call, {what}"] for r in rates] == ["1", "8"]
        assert all(float(r["minGRU, steps/s"].replace(",", "")) > 0 for r in rates)
    assert (tmp_path / "length.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_of_activation(tmp_path: Path, study: TextStudy) -> None:
    activation.report(tmp_path, study, units=8)
    table = rows(tmp_path / "activation.csv")
    assert {r["activation"] for r in table} == {"sigmoid", "tanh", "relu", "identity"}
    assert all(float(r["gradient norm, last epoch"]) > 0 for r in table)
    assert (tmp_path / "activation.png").read_bytes().startswith(b"\x89PNG")
    activation.report(tmp_path / "wild", replace(study, learning_rate=1e25), units=8)
    assert "diverged" in {r["bits per character"] for r in rows(tmp_path / "wild" / "activation.csv")}
