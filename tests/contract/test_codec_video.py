"""The video codec, held to what every codec must pass: raw frames cut anywhere, encoded ones a record each."""

from __future__ import annotations

from hypothesis import strategies as st

from pipeline.codecs import Codec
from pipeline.codecs.video import video_codec
from tests.contract.codec_suite import CodecSuite
from tests.contracts import video_contract
from tests.pictures import noise, picture


class TestRawFrames(CodecSuite):
    contract = video_contract((2, 3, 3), frames="raw", channels="BGR")
    bad = ()

    def make(self) -> Codec:
        return video_codec(self.contract)

    def streams(self) -> st.SearchStrategy[bytes]:
        return st.binary(max_size=80)

    def records(self) -> st.SearchStrategy[list[bytes]]:
        return self.streams().flatmap(self.cuttings)

    test_a_bad_record_has_no_effect_and_the_stream_goes_on = None  # type: ignore[assignment]  # any bytes are pixels


class TestRawGreyFrames(TestRawFrames):
    contract = video_contract((3, 2), frames="raw", dtype="float32", mean=0.5, std=0.25)


class TestRawFramesOfOneByte(TestRawFrames):
    contract = video_contract((1, 1, 1), frames="raw", layout="CHW", dtype="float16")


FRAMES = [
    picture(noise(5, 4, 3), "PNG"),
    picture(noise(40, 30, 3), "JPEG"),
    picture(noise(9, 9, 4), "WEBP", lossless=True),
    picture(noise(7, 3, 1), "PNG"),
]
"""A stream is its frames, one behind the other; they are told apart by place."""


class TestEncodedFrames(CodecSuite):
    """A frame is never cut: what the suite cuts are streams of frames."""

    contract = video_contract((4, 3, 3), layout="HWC", dtype="float32")
    bad = (
        ("empty", b""),
        ("image", b"no image at all"),
        ("image", FRAMES[0][:60]),
        ("image", FRAMES[1][: len(FRAMES[1]) // 2]),
        ("image-size", picture(noise(200, 200, 1), "PNG")),
    )
    idle = ()

    def make(self) -> Codec:
        return video_codec(video_contract((4, 3, 3), dtype="float32", max_pixels=20_000))

    def streams(self) -> st.SearchStrategy[bytes]:
        return st.lists(st.integers(0, len(FRAMES) - 1), min_size=1, max_size=6).map(bytes)

    def pieces(self, stream: bytes) -> list[bytes]:
        return [FRAMES[i] for i in stream]

    def cuttings(self, stream: bytes) -> st.SearchStrategy[list[bytes]]:
        return st.just(self.pieces(stream))

    def test_whatever_is_cut_from_a_frame_or_changed_in_it_never_raises(self) -> None:
        codec = self.make()
        for frame in FRAMES:
            for i in range(0, len(frame), 7):
                for value in (frame[:i], frame[:i] + b"\xff\0\x7f" + frame[i + 3 :]):
                    steps = self.alone([value])
                    assert steps[0].count == (steps[0].reason is None)
        assert codec.memory_bytes == 0
