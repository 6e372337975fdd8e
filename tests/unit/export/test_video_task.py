"""Watching digits move: a small net learns the direction from two frames, and is exported and scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from export.data.digits import LABELS  # noqa: E402
from export.nets.video import VideoNet, VideoNetShape  # noqa: E402
from export.tasks import video  # noqa: E402
from export.tasks.base import read_figures  # noqa: E402
from pipeline.model_file import load_graph, read_contract  # noqa: E402
from services.cli import main  # noqa: E402

SMALL = ["--epochs=2", "--updates=40", "--frames=5", "--threads=1", "--learning-rate=0.004"]


def test_frames_may_come_one_by_one() -> None:
    torch.manual_seed(0)
    net = VideoNet(VideoNetShape(channels=4, units=12)).eval()
    frames = torch.randint(0, 256, (6, 2, 24, 24, 1), dtype=torch.uint8)
    with torch.inference_mode():
        whole, *after = net(frames, *net.initial_state(2))
        states, pieces = net.initial_state(2), []
        for piece in torch.split(frames, [1, 2, 3]):
            logits, *states = net(piece, *states)
            pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces), whole)
    for a, b in zip(states, after, strict=True):
        torch.testing.assert_close(a, b)


def test_light_and_contrast_change_nothing() -> None:
    torch.manual_seed(0)
    net = VideoNet(VideoNetShape()).eval()
    frames = torch.randint(0, 100, (3, 2, 24, 24, 1), dtype=torch.uint8)
    with torch.inference_mode():
        dark, *_ = net(frames, *net.initial_state(2))
        bright, *_ = net(frames * 2 + 30, *net.initial_state(2))
    torch.testing.assert_close(dark, bright, atol=2e-3, rtol=0)


def test_trained_exported_and_scored_by_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(video, "CLIPS", 120)  # in place of 1,080
    assert main(["train", "video", *SMALL, "--output", "run"]) == 0
    assert main(["export", "--checkpoint", "run/checkpoint.pt", "--output", "moves/1"]) == 0
    folder = tmp_path / "moves" / "1"
    contract = read_contract(load_graph(folder / "model.onnx"), "moves")
    assert (contract.codec.kind, contract.head.kind, contract.time_axis) == ("video", "classify", 0)
    assert contract.head.labels == LABELS
    found = {f.name: f.value for f in read_figures(folder).scores.figures}
    assert found["direction accuracy after 8 frames, held out"] > 0.3, "chance is 0.125"
    assert found["direction accuracy after 1 frame, held out"] < 0.25, "it can only be guessed"
    assert found["digit accuracy after 8 frames, held out"] > 0.25, "chance is 0.1"
    assert found["digit accuracy, held out, logistic regression on the image itself, which does not move"] > 0.85
    card = (folder / "README.md").read_text()
    assert "## Classes, direction after 8 frames" in card
    assert (folder / "confusion-digit.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(["score", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same_data"]
