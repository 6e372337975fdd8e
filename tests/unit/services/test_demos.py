"""Where a demo's model comes from, and when a demo is over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import EddyError, ModelError
from pipeline.metrics import Metrics
from services.demos.base import shipped_model
from services.demos.run import all_done, run_demo
from services.demos.text import TextDemo
from services.http import Pages


def test_an_installed_package_takes_the_models_of_the_clone_that_we_are_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert shipped_model("mine") == Path("models/mine")
    assert shipped_model("python-reference") is not None


def test_elsewhere_the_model_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TextDemo, "model", "unshipped")
    with pytest.raises(ModelError, match="'unshipped' is not here: run the demo in a clone's folder, or give --model"):
        run_demo(TextDemo(40), None)


async def test_a_demo_is_over_when_all_is_committed_and_all_of_it_was_read() -> None:
    metrics = Metrics("m", "1")
    with Pages("127.0.0.1", 0, metrics.registry, lambda: True, lambda: True) as pages:
        assert not await all_done(pages.url, sent=3, seen=0)
        outputs = np.full(2, 0.01)
        metrics.commit(parts=1, outputs=2, snapshots=1, snapshot_bytes=9, latency_s=outputs, records_s=np.full(3, 0.01))
        assert not await all_done(pages.url, sent=4, seen=2), "a record is not done yet"
        assert not await all_done(pages.url, sent=3, seen=1), "an answer was not read yet"
        assert await all_done(pages.url, sent=3, seen=2)
        metrics.dead_letters("utf-8")
        with pytest.raises(EddyError, match="1 records became dead letters"):
            await all_done(pages.url, sent=3, seen=2)
