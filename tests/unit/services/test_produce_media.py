"""What `eddy produce audio` and `video` make of sound files, real footage, a network stream and folders of images."""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from pipeline.errors import ConfigError, UserError
from services.cli import build_parser
from services.producing.audio import audio_streams
from services.producing.media import in_time
from services.producing.send import Record
from services.producing.video import video_stream
from tests.footage import broadcast, camera, film_or_skip, tone, wav_file
from tests.pictures import noise, picture


def asked(kind: str, *argv: object) -> argparse.Namespace:
    args = build_parser().parse_args(["produce", kind, "topic", *map(str, argv)])
    assert isinstance(args, argparse.Namespace)
    return args


def sound(*argv: object) -> list[Record]:
    args = asked("audio", *argv)
    with tqdm(disable=True) as bar:
        return [r for some in in_time(audio_streams(args), args.realtime, bar) for r in some]


def frames(*argv: object) -> list[Record]:
    args = asked("video", *argv)
    with tqdm(disable=True) as bar:
        return [r for some in in_time([video_stream(args)], args.realtime, bar) for r in some]


def joined(records: list[Record]) -> np.ndarray:
    return np.frombuffer(b"".join(value or b"" for _, value in records), "<i2")


# ---- sound


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2), (8000, 1), (48000, 6)])
def test_a_file_of_any_rate_and_channels_is_pcm_at_the_models_rate(tmp_path: Path, rate: int, channels: int) -> None:
    file = wav_file(tmp_path / "tone.wav", rate, channels)
    records = sound(file, "--rate", 16000, "--silence-ms", 0)
    assert {key for key, _ in records} == {b"tone"}
    heard = joined(records)
    assert abs(len(heard) - 16000) <= 64
    middle = heard[2000:14000].astype(float)
    # It is the same tone: all its power lies at 440 Hz.
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert abs(spectrum.argmax() * 16000 / len(middle) - 440) < 2
    assert (rate, channels) != (16000, 1) or (heard == tone(16000, 1)[:, 0]).all()


def test_what_is_said_up_to_a_files_end_becomes_final(tmp_path: Path) -> None:
    """The head transcribe waits for 0.6 s of silence by default."""
    file = wav_file(tmp_path / "a.wav", 8000, 1)
    said, silent = joined(sound(file, "--rate", 8000, "--silence-ms", 0)), joined(sound(file, "--rate", 8000))
    assert (silent[: len(said)] == said).all()
    assert not silent[len(said) :].any()
    assert len(silent) - len(said) > 0.6 * 8000


def test_records_are_chunks_with_silence_behind_and_the_streams_end(tmp_path: Path) -> None:
    file = wav_file(tmp_path / "a.wav", 8000, 1, 0.25)
    records = sound(file, "--rate", 8000, "--chunk-ms", 100, "--silence-ms", 60, "--end")
    assert [len(value) if value is not None else None for _, value in records] == [1600, 1600, 1600, 160, None]
    assert not joined(records)[2000:].any()


@pytest.mark.parametrize("model", ["speech", "speech/1", "speech/1/model.onnx"])
def test_the_model_that_a_sound_is_for_is_named_as_for_a_worker(tmp_path: Path, model: str) -> None:
    models = Path(__file__).parents[3] / "models"
    records = sound(wav_file(tmp_path / "a.wav", 16000, 1), "--model", models / model, "--silence-ms", 0)
    at_its_rate = sound(tmp_path / "a.wav", "--rate", 8000, "--silence-ms", 0)
    assert records == at_its_rate


def test_compressed_sound_is_decoded(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "tone.flac"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("flac", rate=22050, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(22050, 1).T, format="s16", layout="mono")
        frame.sample_rate = 22050
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    assert (joined(sound(path, "--rate", 22050, "--silence-ms", 0)) == tone(22050, 1)[:, 0]).all()


def test_raw_samples_of_a_microphone_come_from_stdin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raw = tone(48000, 2)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw.tobytes())))
    heard = joined(sound("-", "--raw-rate", 48000, "--raw-channels", 2, "--key", "me", "--silence-ms", 0))
    assert abs(len(heard) - 16000) <= 32
    same = tmp_path / "same.pcm"
    same.write_bytes(tone(16000, 1).tobytes())
    assert (joined(sound(same, "--raw-rate", 16000, "--silence-ms", 0)) == tone(16000, 1)[:, 0]).all()


def test_in_real_time_all_files_are_heard_at_once_and_no_sooner_than_they_last(tmp_path: Path) -> None:
    files = [wav_file(tmp_path / f"{name}.wav", 8000, 1, 0.3) for name in "abc"]
    began = time.monotonic()
    records = sound(*files, "--realtime", "--rate", 8000, "--silence-ms", 0)
    assert time.monotonic() - began >= 0.3
    assert [key for key, _ in records] == [b"a", b"b", b"c"] * 3


def test_files_of_one_name_are_streams_of_their_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        wav_file(tmp_path / name / "a.wav", 8000, 1, 0.01)
    paths = [tmp_path / name / "a.wav" for name in ("one", "two")]
    assert [key for key, _ in sound(*paths, "--silence-ms", 0)] == [str(p).encode() for p in paths]
    with pytest.raises(ConfigError, match="--key k for 2 files: each is a stream of its own"):
        sound(*paths, "--key", "k")


def test_what_is_no_sound_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(UserError, match=r"text\.wav: not a sound file that can be read \(Invalid data"):
        sound(tmp_path / "text.wav")
    (tmp_path / "picture.png").write_bytes(picture(noise(8, 8, 3), "PNG"))
    with pytest.raises(UserError, match=r"picture\.png: has no sound"):
        sound(tmp_path / "picture.png")
    with pytest.raises(UserError, match="no file"):
        sound(tmp_path / "nothing.wav")
    with pytest.raises(ConfigError, match="give --raw-rate, and --key"):
        sound("-")
    with pytest.raises(ConfigError, match="no files"):
        sound()


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    file = wav_file(tmp_path / "a.wav", 8000, 1, 0.01)
    with pytest.raises(ConfigError, match=r"eddy produce audio needs PyAV: .*\[media\]'"):
        sound(file)
    with pytest.raises(ConfigError, match="eddy produce video needs PyAV"):
        frames(file)


# ---- video


@pytest.fixture(scope="module")
def film() -> Path:
    return film_or_skip()


def test_real_footage_becomes_a_jpeg_a_record(film: Path) -> None:
    records = frames(film, "--limit", 12)
    assert [key for key, _ in records] == [b"vtest"] * 12
    images = [Image.open(io.BytesIO(value or b"")) for _, value in records]
    assert {(image.format, image.size, image.mode) for image in images} == {("JPEG", (768, 576), "RGB")}
    first, last = (np.asarray(image.convert("L"), int) for image in (images[0], images[-1]))
    assert 60 < first.mean() < 200
    assert 0.3 < np.abs(first - last).mean() < 20, "people walk in a street that stands still"


def test_fewer_and_smaller_frames_of_other_formats(film: Path) -> None:
    records = frames(film, "--fps", 2, "--size", "96x72", "--grey", "--format", "png", "--limit", 5, "--end")
    assert records[-1] == (b"vtest", None)
    images = [np.asarray(Image.open(io.BytesIO(value or b""))) for _, value in records[:-1]]
    assert [image.shape for image in images] == [(72, 96)] * 5
    every = frames(film, "--size", "96x72", "--grey", "--format", "raw", "--limit", 21)
    raw = [np.frombuffer(value or b"", np.uint8).reshape(72, 96) for _, value in every]
    assert all((image == raw[5 * i]).all() for i, image in enumerate(images)), "10 frames a second: every fifth"


def test_a_large_raw_frame_is_cut(film: Path) -> None:
    records = frames(film, "--format", "raw", "--limit", 2)
    assert [len(value or b"") for _, value in records] == [524288, 524288, 768 * 576 * 3 - 2 * 524288] * 2


def test_real_time_holds_frames_back(film: Path) -> None:
    began = time.monotonic()
    assert len(frames(film, "--size", "32x24", "--realtime", "--limit", 4)) == 4
    assert time.monotonic() - began >= 0.3


def test_a_network_camera_is_a_stream_until_it_ends() -> None:
    levels = [10, 60, 110, 160, 210]
    with camera(*(picture(np.full((48, 64, 3), level, np.uint8), "JPEG", quality=95) for level in levels)) as url:
        records = frames(url, "--format", "raw", "--grey")
    assert {key for key, _ in records} == {url.removeprefix("http://").encode()}
    assert [round(np.frombuffer(value or b"", np.uint8).mean()) for _, value in records] == pytest.approx(levels, abs=2)


def test_a_broadcast_is_a_stream_for_as_long_as_one_likes() -> None:
    with broadcast() as url:
        records = frames(url, "--format", "raw", "--grey", "--limit", 12, "--key", "tv")
    levels = [round(np.frombuffer(value or b"", np.uint8).mean()) for _, value in records]
    assert len(levels) == 12
    assert len(set(levels)) >= 6, levels


def test_a_folder_of_images_is_sent_as_it_is_in_the_order_of_its_names(tmp_path: Path) -> None:
    kinds = {"a.jpg": "JPEG", "b.png": "PNG", "c.webp": "WEBP"}
    for name, kind in kinds.items():
        (tmp_path / name).write_bytes(picture(noise(8, 6, 3), kind))
    (tmp_path / "notes.txt").write_text("no image")
    records = frames(tmp_path, "--key", "k")
    assert records == [(b"k", (tmp_path / name).read_bytes()) for name in kinds]
    [(_, small), *_] = frames(tmp_path, "--size", "4x2", "--format", "raw")
    assert len(small or b"") == 4 * 2 * 3


def test_what_is_no_video_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file or folder nothing\.avi; a network stream begins with http"):
        frames("nothing.avi")
    (tmp_path / "text.avi").write_text("no video")
    with pytest.raises(UserError, match=r"text\.avi: cannot be read as video \(Invalid data"):
        frames(tmp_path / "text.avi")
    with pytest.raises(UserError, match=r"a\.wav: has no pictures"):
        frames(wav_file(tmp_path / "a.wav", 8000, 1))
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/x: cannot be read as video \(Connection refused\)"):
        frames("http://127.0.0.1:9/x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no \.jpg, \.jpeg, \.png, \.webp"):
        frames(tmp_path / "empty")
    (tmp_path / "empty" / "x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"x\.png: cannot be read as an image"):
        frames(tmp_path / "empty", "--size", "4x4")
    (tmp_path / "empty" / "x.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"x\.png: is empty"):
        frames(tmp_path / "empty")
