"""The audio codec, held to what every codec must pass: raw PCM, and WAV files of many kinds, cut anywhere."""

from __future__ import annotations

from hypothesis import strategies as st

from pipeline.codecs.audio import AudioCodec
from pipeline.codecs.base import Codec
from tests.contract.codec_suite import CodecSuite
from tests.contracts import audio_contract
from tests.waves import chunk, wav

NO_WAV = (
    ("wav", b"RIFF\0\0\0\0WAVEdata\4\0\0\0\1\0\1\0"),
    ("wav", b"RIFF\0\0\0\0WAVEfmt \4\0\0\0\1\0\1\0"),
    ("wav", b"RIFF\0\0\0\0WAVE\0\1\2\3\4\0\0\0"),
    ("wav", b"RF64\0\0\0\0WAVELIST\0\0\0\7" + bytes(40)),
    ("wav", wav(b"\1\0" * 5) + b"no chunk, no file"[:3] + b"\xff" + bytes(4)),
)
"""Each is found out at its own end, so a new stream may follow."""


class TestRawAudio(CodecSuite):
    """Any bytes are samples, also those that begin like a file and are none."""

    contract = audio_contract((4,))
    bad = NO_WAV

    def make(self) -> Codec:
        return AudioCodec(self.contract)

    def streams(self) -> st.SearchStrategy[bytes]:
        almost = st.sampled_from([b"", b"R", b"RIFX", b"RIFF\1\2\3\4WAV", b"RIFF\1\2\3\4WAVY", b"RF64\0\0\0\0W"])
        return st.tuples(almost, st.binary(max_size=40)).map(b"".join).filter(lambda s: s[8:12] != b"WAVE")


class TestRawAudioOfOneSample(TestRawAudio):
    contract = audio_contract((1, 1), dtype="int16", rates=[])


class TestRawAudioThatOverlaps(TestRawAudio):
    contract = audio_contract((1, 5), dtype="float16", overlap=3)


KINDS = [(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64)]


@st.composite
def files(draw: st.DrawFn, rates: tuple[int, ...]) -> bytes:
    """A WAV file: any samples, other chunks around them, a size that may be unknown, maybe one behind the other."""
    tag, bits = draw(st.sampled_from(KINDS))
    channels, rate = draw(st.integers(1, 8)), draw(st.sampled_from(rates))
    data = draw(st.binary(max_size=200))
    before = draw(st.sampled_from([b"", chunk(b"LIST", b"odd"), chunk(b"ds64", bytes(28))]))
    size = draw(st.sampled_from([None, None, 0, 2**31 - 1, 2**32 - 1]))
    extensible = draw(st.booleans())
    whole = wav(data, rate, channels, bits, tag, before=before, size=size, extensible=extensible)
    if size is None and draw(st.booleans()):
        return whole + chunk(b"id3 ", b"tag") + draw(files(rates))
    return whole


class TestWavFiles(CodecSuite):
    contract = audio_contract((3,), rate=8000)
    bad = NO_WAV
    rates: tuple[int, ...] = (8000,)

    def make(self) -> Codec:
        return AudioCodec(self.contract)

    def streams(self) -> st.SearchStrategy[bytes]:
        return st.tuples(files(self.rates), st.integers(0, 400)).map(lambda f: f[0][: len(f[0]) - f[1]])


class TestWavFilesOfOtherRates(TestWavFiles):
    contract = audio_contract((3,), rate=8000, rates=[44100, 11025, 4000], overlap=1)
    rates = (8000, 44100, 11025, 4000)
