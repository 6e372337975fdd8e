"""`eddy train speech` on the real recordings, small; and the shipped models against their cards."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from export.data.prompts import load_prompts  # noqa: E402
from export.exporter import ExportOptions, export_module  # noqa: E402
from export.tasks.hearing import Listener, ends, text_of  # noqa: E402
from export.tasks.speech import LANGUAGE_MODEL, SpeechTask  # noqa: E402
from export.training.checkpoint import read_run  # noqa: E402
from export.training.speech import greedy_text, net_of  # noqa: E402
from services.cli import main  # noqa: E402

MODELS = Path(__file__).parents[3] / "models"
TINY = ["--clips", "40", "--epoch-seconds", "40", "--epochs", "2", "--layers", "1", "--units", "32", "--threads", "1"]


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    """By hand a machine without apt may skip; CI may not."""
    if not os.environ.get("CI") and shutil.which("apt-get") is None:
        pytest.skip("no apt-get on this machine to fetch recordings with")


@pytest.mark.parametrize("data", ["prompts", "synthesis"])
def test_a_tiny_one_is_trained_and_served(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "speech", "--data", data, *TINY, "--output", str(tmp_path / "run")]) == 0
    assert "character errors per character" in capsys.readouterr().out
    run, task = read_run(tmp_path / "run/checkpoint.pt"), SpeechTask()
    served = task.served(run)
    assert list(served.beside) == ([LANGUAGE_MODEL] if data == "prompts" else [])
    options = ExportOptions(beside=served.beside)
    folder = tmp_path / "tiny/1"
    export_module(served.net, folder, served.steps, codec=served.codec, head=served.head, options=options)
    listener, net = Listener(folder), net_of(run)
    prompt = load_prompts().develop[0]
    with torch.inference_mode():
        wanted = greedy_text(net, np.pad(prompt.pcm, (0, 8000)))
    (said,) = listener.transcribe([listener.logits(np.pad(prompt.pcm, (0, 8000)))], listener.greedy())
    assert text_of(said) == wanted


def test_the_shipped_model_writes_down_a_prompt_and_finds_its_end() -> None:
    listener = Listener(MODELS / "speech/1")
    prompt = next(p for p in load_prompts().held_out if p.name == "auth-incorrect")
    (said,) = listener.transcribe([listener.logits(prompt.pcm)])
    assert "password" in text_of(said)
    found = ends(listener, [prompt.pcm] * 2, 8000)
    assert found.found == 1
    assert found.late_s == pytest.approx(0, abs=0.3)


def test_the_data_package_has_what_was_said_of_it() -> None:
    prompts = load_prompts()
    assert (len(prompts.all), prompts.silent, len(prompts.held_out)) == (551, 17, 58)
    assert sum(p.seconds for p in prompts.held_out if p.name == "demo-instruct") == pytest.approx(73.3, abs=0.1)
