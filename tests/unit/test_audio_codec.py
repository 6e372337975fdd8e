"""What the audio codec makes of samples, of WAV files of every kind, and of what it cannot turn."""

from __future__ import annotations

import io
import wave
from dataclasses import replace

import numpy as np
import pytest

from pipeline.codecs.audio import POLL_STEPS, SAMPLE_BYTES, AudioCodec
from pipeline.codecs.base import Steps
from pipeline.codecs.resample import Position, Resampler
from pipeline.columns import U8
from pipeline.contract import CodecSpec, Contract, StepInput
from pipeline.errors import ContractError
from pipeline.rounds import Rounds
from pipeline.transport.memory import MemoryBroker
from tests.contracts import audio_contract, tensor_contract
from tests.models import stepper
from tests.unit.test_worker import made, new_broker, partition_of, running, until
from tests.waves import chunk, wav


def pcm(*samples: int) -> bytes:
    return np.array(samples, "<i2").tobytes()


class Stream:
    """Stream 1 of a codec."""

    def __init__(self, contract: Contract) -> None:
        self.codec = AudioCodec(contract)
        self.memory: U8 = np.zeros((3, self.codec.memory_bytes), np.uint8)

    def decode(self, *records: bytes) -> Steps:
        return self.codec.decode(list(records), np.ones(len(records), np.int64), self.memory)

    def samples(self, *records: bytes) -> list[float]:
        steps = self.decode(*records)
        assert not steps.failed, [str(e) for e in steps.failed.values()]
        return steps.values[0].reshape(-1).tolist()  # type: ignore[no-any-return]


def test_samples_are_scaled_and_what_is_no_hop_yet_waits() -> None:
    stream = Stream(audio_contract((2,)))
    steps = stream.decode(pcm(-32768, 16384, 32767)[:5], pcm(32767)[1:] + pcm(-1), b"", pcm(1, 2, 3, 4))
    assert steps.values[0].dtype == np.float32
    assert steps.values[0].tolist() == [
        [-1, 0.5],
        [32767 / 32768, -1 / 32768],
        [1 / 32768, 2 / 32768],
        [3 / 32768, 4 / 32768],
    ]
    assert steps.counts.tolist() == [1, 1, 0, 2]


@pytest.mark.parametrize(("dtype", "shape"), [("int16", (2,)), ("int16", (1, 2)), ("float16", (2, 1))])
def test_steps_have_the_models_dtype_and_shape(dtype: str, shape: tuple[int, ...]) -> None:
    [values] = Stream(audio_contract(shape, dtype=dtype)).decode(pcm(1024, -2048, 3)).values
    assert (values.dtype, values.shape) == (np.dtype(dtype), (1, *shape))
    scale = 1 if dtype == "int16" else 32768
    assert (values.reshape(-1) * scale).tolist() == [1024, -2048]


def test_whole_hops_of_many_streams_go_by_columns_with_the_same_result() -> None:
    codec = AudioCodec(audio_contract((2,), dtype="int16"))
    memory = np.zeros((9, codec.memory_bytes), np.uint8)
    codec.decode([pcm(0, 0)] * 3, np.array([1, 5, 2]), memory)
    before = memory.copy()
    steps = codec.decode([pcm(1, 2), pcm(3, 4, 5, 6), b"", pcm(7, 8)], np.array([5, 1, 2, 5]), memory)
    assert steps.values[0].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert steps.counts.tolist() == [1, 2, 0, 1]
    assert (memory == before).all()


def test_a_step_begins_with_the_end_of_the_one_before() -> None:
    stream = Stream(audio_contract((5,), dtype="int16", overlap=3))
    steps = stream.decode(pcm(1, 2, 3), pcm(4, 5, 6))
    assert steps.values[0].tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4], [2, 3, 4, 5, 6]]
    assert steps.counts.tolist() == [1, 2]
    assert stream.codec.step_s == 2 / 16000, "two new samples, not five"


def test_a_file_as_the_standard_library_writes_it() -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes(pcm(5, 6, 7, 8))
    assert Stream(audio_contract((2,), dtype="int16")).samples(file.getvalue()) == [5, 6, 7, 8]


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize(
    ("tag", "bits", "data"),
    [
        (1, 8, bytes([0, 128, 255, 129])),
        (1, 24, bytes([0, 0, 0x80, 0, 0, 0, 0, 0, 0x7F, 0, 0, 0x01])),
        (1, 20, bytes([0, 0, 0x80, 0, 0, 0, 0, 0, 0x7F, 0, 0, 0x01])),
        (1, 32, np.array([-(2**31), 0, 127 * 2**24, 2**24], "<i4").tobytes()),
        (3, 32, np.array([-1, 0, 127 / 128, 1 / 128], "<f4").tobytes()),
        (3, 64, np.array([-1, 0, 127 / 128, 1 / 128], "<f8").tobytes()),
    ],
)
def test_every_encoding_means_the_same(tag: int, bits: int, data: bytes, extensible: bool) -> None:
    stream = Stream(audio_contract((1,), dtype="int16"))
    assert stream.samples(wav(data, bits=bits, tag=tag, extensible=extensible)) == [-32768, 0, 127 * 256, 256]


def test_floats_beyond_full_scale_or_no_numbers_are_clipped() -> None:
    data = np.array([2, -3, np.nan, np.inf, -np.inf], "<f4").tobytes()
    got = Stream(audio_contract((1,), dtype="int16")).samples(wav(data, bits=32, tag=3))
    assert got == [32767, -32768, 0, 32767, -32768]


def test_channels_are_mixed_to_their_mean() -> None:
    stream = Stream(audio_contract((1,), dtype="int16"))
    assert stream.samples(wav(pcm(10, 20, -5, -7, 32767, 32767), channels=2)) == [15, -6, 32767]


def test_chunks_around_the_samples_are_skipped_and_a_file_may_follow_a_file() -> None:
    odd = wav(b"\x81", bits=8, before=chunk(b"LIST", b"abc")) + chunk(b"id3 ", b"x")
    stream = Stream(audio_contract((1,), dtype="int16"))
    assert stream.samples(odd + wav(pcm(3, 4)) + chunk(b"LIST", b"yz"), wav(pcm(5))) == [256, 3, 4, 5]


@pytest.mark.parametrize("size", [0, 2**31 - 1, 0x7FFFF024, 2**32 - 1])
def test_a_size_that_a_pipes_writer_did_not_know_means_until_the_end(size: int) -> None:
    stream = Stream(audio_contract((1,), dtype="int16"))
    assert stream.samples(wav(pcm(1, 2), size=size), pcm(3), wav(b"")[:4]) == [1, 2, 3, *np.frombuffer(b"RIFF", "<i2")]


def test_what_cannot_be_turned_is_refused_record_by_record_until_its_file_ends() -> None:
    stream = Stream(audio_contract((1,), dtype="int16", rates=[8000]))
    strange = wav(pcm(1, 2, 3, 4), rate=96000)
    steps = stream.decode(pcm(), strange[:44], strange[44:48], strange[48:], wav(pcm(5, 6)))
    assert steps.values[0].reshape(-1).tolist() == [5, 6]
    assert sorted(steps.failed) == [2, 3]
    assert {e.reason for e in steps.failed.values()} == {"audio-format"}
    assert str(steps.failed[2]) == (
        "a WAV file with 96000 samples a second, the model hears 16000 (and 8000 turned into it);"
        " eddy produce audio converts it"
    )


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (wav(bytes(8), tag=7, bits=8), "a WAV file with encoding 0x0007 is neither PCM nor float"),
        (wav(bytes(18), channels=9), "a WAV file with 9 channels, 1 to 8 can be mixed"),
        (wav(bytes(8), bits=64), "a WAV file with samples of 64 bits"),
        (wav(bytes(8), channels=0), "a WAV file with 0 channels"),
        (wav(bytes(8), rate=0), "a WAV file with 0 samples a second"),
    ],
)
def test_a_file_that_cannot_be_turned_says_why(file: bytes, message: str) -> None:
    steps = Stream(audio_contract((1,), rates=[])).decode(file)
    assert str(steps.failed[0]).startswith(message)


def tone(rate: int, frequency: float, seconds: float = 1.0) -> np.ndarray:
    return np.rint(20000 * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)).astype(np.int16)


@pytest.mark.parametrize("source", [8000, 11025, 22050, 44100, 48000])
@pytest.mark.parametrize("target", [8000, 16000])
def test_resampling_keeps_a_tone_and_its_time(source: int, target: int) -> None:
    if source == target:
        return
    resampler = Resampler(source, target)
    frequency = 0.35 * min(source, target)
    out, _ = resampler.run(np.zeros(resampler.memory, np.int16), Position(), tone(source, frequency))
    assert abs(len(out) - target) <= 2 * 16 * max(1, target / source)
    error = out[100:-100] - tone(target, frequency)[100 : len(out) - 100].astype(np.float64)
    assert np.abs(error).max() < 20  # 60 dB below the tone


@pytest.mark.parametrize("source", [22050, 44100, 48000])
def test_resampling_leaves_nothing_that_would_fold_back(source: int) -> None:
    resampler = Resampler(source, 8000)
    out, _ = resampler.run(np.zeros(resampler.memory, np.int16), Position(), tone(source, 5000))
    assert np.abs(out[100:].astype(np.float64)).max() < 20  # 60 dB below the tone


def test_full_scale_stays_full_scale() -> None:
    resampler = Resampler(44100, 16000)
    out, _ = resampler.run(np.full(resampler.memory, -32768, np.int16), Position(), np.full(4000, -32768, np.int16))
    assert set(out[60:].tolist()) == {-32768}


def test_the_last_samples_are_a_step_that_ends_in_silence() -> None:
    stream = Stream(audio_contract((4,), dtype="int16", overlap=1))
    for waits, last in (
        (b"", []),
        (b"\1", []),
        (pcm(7), [[0, 7, 0, 0]]),
        (pcm(1, 2, 3, 4, 5)[:-1], [[3, 4, 0, 0]]),
        (b"RIFF", [[0, *np.frombuffer(b"RIFF", "<i2"), 0]]),
        (wav(pcm(8, 9, 10, 11)), [[10, 11, 0, 0]]),
        (wav(b"", size=0)[:30], []),
    ):
        stream.memory[:] = 0
        stream.decode(waits)
        end = stream.codec.end(np.array([1]), stream.memory)
        assert end.values[0].tolist() == last
        assert end.counts.tolist() == [len(last)]


def test_a_resampled_stream_ends_with_all_its_samples() -> None:
    """As many as its time at the other rate: the filter holds none back."""
    for source in (8000, 44100, 48000):
        stream = Stream(audio_contract((160,), dtype="int16"))
        steps = stream.decode(wav(tone(source, 440, 0.5).tobytes(), source))
        end = stream.codec.end(np.array([1]), stream.memory)
        heard = np.concatenate([steps.values[0], end.values[0]]).reshape(-1)
        assert len(heard) == 8000 + 160 * (8000 % 160 > 0)
        assert np.abs(heard[7800:7900] - tone(16000, 440)[7800:7900].astype(float)).max() < 20


@pytest.mark.parametrize("second", [16000, 48000])
def test_a_file_is_heard_to_its_end_before_one_of_another_rate(second: int) -> None:
    """Its last samples are still to be computed when the next file comes."""

    def heard(*files: bytes) -> list[int]:
        stream = Stream(audio_contract((1,), dtype="int16"))
        steps, last = stream.decode(*files), stream.codec.end(np.array([1]), stream.memory)
        assert not steps.failed
        return [*steps.values[0].tolist(), *last.values[0].tolist()]

    one, other = (wav(tone(rate, 440, 0.01).astype("<i2").tobytes(), rate) for rate in (8000, second))
    assert heard(one, other) == heard(one) + heard(other)


def test_a_row_without_other_rates_is_small() -> None:
    assert AudioCodec(audio_contract((160,), rates=[])).memory_bytes < 100 + 2 * 160
    assert AudioCodec(audio_contract((160,), rate=8000)).memory_bytes < 100 + 2 * 160 + 2 * 192


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "setting 'rate' is missing: expected a whole number from 1000 to 384000"),
        ({"rate": 16000.0}, "setting 'rate' is 16000.0"),
        ({"rate": 16000, "overlap": 4}, "setting 'overlap' is 4: expected a whole number from 0 to 3"),
        ({"rate": 16000, "rates": 8000}, "setting 'rates' is 8000: expected a list of whole numbers"),
        ({"rate": 16000, "rates": [44101]}, "setting 'rates': 44101 to 16000 a second are 16000/44101: too many"),
        ({"rate": 16000, "hop": 4}, "unknown setting 'hop' (there are: rate, overlap, rates)"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    contract = replace(audio_contract((4,)), codec=CodecSpec("audio", settings=settings))
    with pytest.raises(ContractError) as caught:
        AudioCodec(contract)
    assert str(caught.value).startswith(f"contract of numbers/1: codec audio: {message}")


@pytest.mark.parametrize(
    "steps",
    [
        (StepInput("x", "int32", (4,)),),
        (StepInput("x", "float32", (4, 2)),),
        (StepInput("x", "int16", (4,)), StepInput("y", "int64")),
    ],
)
def test_the_model_must_take_samples(steps: tuple[StepInput, ...]) -> None:
    contract = replace(tensor_contract(steps), codec=CodecSpec("audio", settings={"rate": 16000}))
    with pytest.raises(
        ContractError, match=r"needs one step input of float32\[hop\] or int16\[hop\], the model has x "
    ):
        AudioCodec(contract)


@pytest.mark.parametrize(("source", "target"), [(48000, 16000), (44100, 16000), (8000, 16000), (11025, 8000)])
def test_a_second_at_once_and_in_small_pieces_are_the_same_to_the_last_bit(source: int, target: int) -> None:
    sound = np.random.default_rng(source).integers(-32768, 32768, source).astype(np.int16)
    resampler = Resampler(source, target)
    at_once, end = resampler.run(np.zeros(resampler.memory, np.int16), Position(), sound)
    kept, position, pieces = np.zeros(resampler.memory, np.int16), Position(), []
    for piece in np.split(sound, np.sort(np.random.default_rng(1).integers(0, source, 200))):
        out, kept = resampler.run(kept, position, piece)
        pieces.append(out)
    assert (np.concatenate(pieces) == at_once).all()
    assert (kept == end).all()


async def test_a_poll_has_no_more_sound_than_can_be_resampled_in_a_moment(tmp_path, monkeypatch):
    """However much waits, and however small its records are."""
    hop = 80
    file = stepper(tmp_path / "ear" / "1", StepInput("x", "int16", (hop,)), CodecSpec("audio", settings={"rate": 8000}))
    broker = new_broker()
    sizes = []
    monkeypatch.setattr(Rounds, "_count", lambda self, poll: sizes.append((len(poll.keys), poll.steps)))
    keys = {partition_of(b"%d" % i): b"%d" % i for i in range(100)}
    assert len(keys) > 2
    for key in keys.values():
        for _ in range(1500):
            broker.produce("in", partition_of(key), key, bytes(20))
        broker.produce("in", partition_of(key), key, bytes(hop * SAMPLE_BYTES * POLL_STEPS))
        broker.produce("in", partition_of(key), key, bytes(20))
    worker, _ = made(broker, file)
    async with running(worker) as task:
        await until(broker, task, lambda: sum(records for records, _ in sizes) == len(keys) * 1502)
    assert max(records for records, _ in sizes) <= POLL_STEPS
    assert max(steps for _, steps in sizes) < 2 * POLL_STEPS


async def test_a_poll_begins_where_the_last_one_had_no_more_room(tmp_path, monkeypatch):
    """Records that fill a poll each, in many partitions: none is left out while another has a second turn."""
    file = stepper(tmp_path / "ear" / "1", StepInput("x", "int16", (80,)), CodecSpec("audio", settings={"rate": 8000}))
    broker, partitions, rounds = MemoryBroker(), 12, 6
    for topic in ("in", "out"):
        broker.create(topic, partitions)
    order: list[int] = []
    monkeypatch.setattr(Rounds, "_count", lambda self, poll: order.extend(s.memory.partition for s in poll.shares))
    for p in range(partitions):
        for _ in range(rounds):
            broker.produce("in", p, b"%d" % p, bytes(80 * SAMPLE_BYTES * 2))
    worker, _ = made(broker, file, max_steps=10)
    async with running(worker) as task:
        await until(broker, task, lambda: len(order) == rounds * partitions)
    last = order[partitions : -2 * partitions]  # all of them wait from the first poll to the last but some
    for p in range(partitions):
        at = [i for i, q in enumerate(last) if q == p]
        assert max(np.diff(at), default=0) <= partitions
