"""Models that hear and see: what the exporter asks for, and that what it writes can be served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from export import export_module  # noqa: E402
from pipeline.codecs import make_codec  # noqa: E402
from pipeline.contract import CodecSpec  # noqa: E402
from pipeline.errors import ConfigError, ContractError  # noqa: E402
from tests.pictures import noise, picture  # noqa: E402


class Meter(torch.nn.Module):  # type: ignore[misc]
    """A running mean of the steps' levels, of any shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full(shape, 1 / int(np.prod(shape))))

    def initial_state(self, batch: int) -> torch.Tensor:
        return torch.zeros(batch, 1)

    def forward(self, steps: torch.Tensor, level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        level = 0.9 * level + 0.1 * (steps * self.weight).flatten(1).sum(1, keepdim=True)
        return level, level


def test_a_model_that_hears(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give --codec-setting rate=16000, say"):
        export_module(Meter(160), tmp_path / "m" / "1", "float32[160]", codec="audio")
    codec = CodecSpec("audio", settings={"rate": 8000, "rates": []})
    with pytest.raises(ContractError, match=r"needs one step input of float32\[hop\]"):
        export_module(Meter(4, 4), tmp_path / "m" / "1", "float32[4,4]", codec=codec)
    exported = export_module(Meter(160), tmp_path / "m" / "1", "float32[160]", codec=codec)
    hearing = make_codec(exported.contract)
    assert hearing.memory_bytes == exported.contract.codec.memory_bytes
    memory = np.zeros((1, hearing.memory_bytes), np.uint8)
    steps = hearing.decode([bytes(700)], np.array([0]), memory)
    assert steps.values[0].shape == (2, 160)


class Loud(Meter):
    """Notices only what is louder than half of full scale."""

    def forward(self, steps: torch.Tensor, level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().forward(torch.relu(steps.float() - 16384), level)


def test_whole_samples_are_tried_over_all_their_range(tmp_path: Path) -> None:
    """Else this model's state would seem to be unused."""
    codec = CodecSpec("audio", settings={"rate": 8000})
    export_module(Loud(16), tmp_path / "m" / "1", "int16[16]", codec=codec)


def test_a_model_that_sees(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[3, 8, 8\] has its channels first: give --codec-setting layout=CHW"):
        export_module(Meter(3, 8, 8), tmp_path / "m" / "1", "float32[3,8,8]", codec="video")
    codec = CodecSpec("video", settings={"layout": "CHW", "resize": "crop"})
    exported = export_module(Meter(3, 8, 8), tmp_path / "m" / "1", "float32[3,8,8]", codec=codec)
    seeing = make_codec(exported.contract)
    steps = seeing.decode([picture(noise(30, 20, 3), "JPEG")], np.array([0]), np.zeros((1, 0), np.uint8))
    assert steps.values[0].shape == (1, 3, 8, 8)
    with pytest.raises(ContractError, match="setting 'resize' is 'squeeze'"):
        export_module(
            Meter(8, 8), tmp_path / "m" / "2", "float32[8,8]", codec=CodecSpec("video", settings={"resize": "squeeze"})
        )
