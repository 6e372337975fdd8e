"""The net that hears: its energies are what a Fourier transform gives, and a stream may be cut anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.contract import CodecSpec, HeadSpec
from pipeline.model_file import load_graph

torch = pytest.importorskip("torch")

from export.exporter import export_module  # noqa: E402
from export.nets.speech import FFT, FRAME, HOP, RATE, STEP, STEP_S, LogMel, SpeechNet, SpeechNetShape  # noqa: E402

SHAPE = SpeechNetShape(outputs=5, mels=12, channels=16, layers=2, units=24, sounds=7)


@pytest.fixture
def net() -> SpeechNet:
    torch.manual_seed(3)
    return SpeechNet(SHAPE).eval()


def test_energies_are_those_of_the_fourier_transform() -> None:
    samples = np.random.default_rng(0).standard_normal(FRAME + 3 * HOP).astype(np.float32) * 0.1
    found = LogMel(40)(torch.from_numpy(samples)[None])[0].numpy()
    window = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(FRAME) + 0.5) / FRAME)
    hertz = np.fft.rfftfreq(FFT, 1 / RATE)
    mel = np.linspace(2595 * np.log10(1 + 60 / 700), 2595 * np.log10(1 + RATE / 2 / 700), 42)
    edges = 700 * (10 ** (mel / 2595) - 1)
    for t in range(4):
        energy = np.abs(np.fft.rfft(samples[t * HOP : t * HOP + FRAME] * window, FFT)) ** 2
        bands = [np.interp(hertz, edges[b : b + 3], [0, 1, 0]) @ energy for b in range(40)]
        np.testing.assert_allclose(found[:, t], (np.log(np.array(bands) + 1e-5) + 4) / 4, atol=1e-4)


@pytest.mark.parametrize("cuts", [(1,) * 30, (7, 1, 22), (30,)])
def test_a_stream_gives_what_the_whole_gives(net: SpeechNet, cuts: tuple[int, ...]) -> None:
    pcm = torch.randn(30, 3, STEP) * 0.1
    with torch.inference_mode():
        whole, *_ = net(pcm, *net.initial_state(3))
        states, rows = net.initial_state(3), []
        for piece in torch.split(pcm, cuts):
            row, *states = net(piece, *states)
            rows.append(row)
    assert whole.shape == (30, 3, 5)
    torch.testing.assert_close(torch.cat(rows), whole, atol=1e-5, rtol=0)


def test_it_looks_at_nothing_that_comes_later(net: SpeechNet) -> None:
    pcm = torch.randn(12, 1, STEP) * 0.1
    other = pcm.clone()
    other[8:] = 0
    with torch.inference_mode():
        a, b = (net(x, *net.initial_state(1))[0] for x in (pcm, other))
    torch.testing.assert_close(a[:8], b[:8])
    assert not torch.allclose(a[8:], b[8:])


def test_it_is_exported_with_a_time_axis_and_without_what_only_helps_training(net: SpeechNet, tmp_path: Path) -> None:
    head = HeadSpec("transcribe", output="logits", labels=("", " ", "a", "b", "c"), settings={"step_s": STEP_S})
    codec = CodecSpec("audio", settings={"rate": RATE})
    exported = export_module(net, tmp_path / "tiny/1", f"pcm:float32[{STEP}]", codec=codec, head=head)
    assert exported.contract.time_axis == 0
    assert [s.input for s in exported.contract.states] == list(SpeechNet.state_names)
    graph = load_graph(exported.file).graph
    kinds = {node.op_type for node in graph.node}
    assert "LSTM" in kinds
    assert not kinds & {"If", "Loop", "Scan"}
    assert not any("sounds" in weight.name for weight in graph.initializer)
