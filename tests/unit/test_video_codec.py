"""What the video codec makes of frames of every kind, and of what is none."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.codecs import AheadCodec
from pipeline.codecs.video import video_codec
from pipeline.columns import AnyArray
from pipeline.contract import CodecSpec, StepInput
from pipeline.errors import ContractError
from tests.contracts import tensor_contract, video_contract
from tests.pictures import noise, picture, png_that_says, saved

NOBODY = np.empty((3, 0), np.uint8)


def decoded(value: bytes, shape: tuple[int, ...], dtype: str = "uint8", **settings: Any) -> AnyArray:
    """The one step of the record."""
    codec = video_codec(video_contract(shape, dtype=dtype, **settings))
    steps = codec.decode([value], np.array([1]), NOBODY)
    assert not steps.failed, str(steps.failed[0])
    [step] = steps.values[0]
    assert step.dtype == np.dtype(dtype)
    return step


def refused(value: bytes, shape: tuple[int, ...] = (4, 4, 3), **settings: Any) -> tuple[str, str]:
    steps = video_codec(video_contract(shape, **settings)).decode([value], np.array([1]), NOBODY)
    assert steps.counts.tolist() == [0]
    return steps.failed[0].reason, str(steps.failed[0])


# ---- frames that are well


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_frame_of_the_models_size_comes_as_it_is(kind: str, options: dict[str, Any], channels: int) -> None:
    if (kind, channels) == ("WEBP", 1):
        return  # the format has no grey
    pixels = noise(5, 4, channels)
    if channels == 4:
        pixels[..., 3] |= 1  # WebP may forget the colours of what cannot be seen
    assert (decoded(picture(pixels, kind, **options), (4, 5, channels)) == pixels).all()


def test_layout_channels_and_scale_are_as_the_contract_says() -> None:
    pixels = noise(5, 4, 3)
    png = picture(pixels, "PNG")
    assert (decoded(png, (3, 4, 5), layout="CHW") == pixels.transpose(2, 0, 1)).all()
    assert (decoded(png, (4, 5, 3), channels="BGR") == pixels[..., ::-1]).all()
    assert np.allclose(decoded(png, (4, 5, 3), "float32"), pixels / 255, atol=1e-6)
    scaled = decoded(png, (3, 4, 5), "float16", layout="CHW", scale=1, mean=[10, 20, 30], std=[1, 2, 4])
    assert np.allclose(
        scaled, (pixels.transpose(2, 0, 1) - [[[10]], [[20]], [[30]]]) / [[[1]], [[2]], [[4]]], rtol=1e-3
    )
    grey = noise(5, 4, 1)
    for shape in ((4, 5), (4, 5, 1)):
        assert (decoded(picture(grey, "PNG"), shape).reshape(4, 5) == grey[..., 0]).all()
    assert (decoded(picture(grey, "PNG"), (1, 4, 5), layout="CHW")[0] == grey[..., 0]).all()


def test_colours_become_grey_and_grey_colours() -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert set(decoded(saved(red, "PNG"), (4, 4)).reshape(-1).tolist()) == {76}  # 0.299 of 255
    grey = Image.new("L", (4, 4), 7)
    assert set(decoded(saved(grey, "PNG"), (4, 4, 3)).reshape(-1).tolist()) == {7}
    assert decoded(saved(grey, "PNG"), (4, 4, 4))[0, 0].tolist() == [7, 7, 7, 255]


def test_sixteen_bits_lose_their_lower_half() -> None:
    wide = np.array([[0, 256, 65535], [4660, 255, 32768]], np.uint16)
    assert decoded(saved(Image.fromarray(wide), "PNG"), (2, 3)).tolist() == [[0, 1, 255], [18, 0, 128]]
    assert decoded(saved(Image.fromarray(wide), "PNG"), (2, 3, 3))[1, 2].tolist() == [128, 128, 128]


def test_palettes_bits_and_cmyk_become_colours() -> None:
    plain = Image.new("RGB", (4, 4), (250, 100, 20))
    assert decoded(saved(plain.quantize(4), "PNG"), (4, 4, 3))[2, 2].tolist() == [250, 100, 20]
    bits = Image.new("1", (4, 4), 1)
    assert decoded(saved(bits, "PNG"), (4, 4, 3))[0, 0].tolist() == [255, 255, 255]
    cmyk = decoded(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95), (16, 16, 3))
    assert np.abs(cmyk[8, 8].astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize(
    ("background", "expected"), [(0, [128, 0, 0]), (255, [255, 127, 127]), ([0, 0, 255], [128, 0, 127])]
)
def test_what_is_transparent_shows_the_background(background: Any, expected: list[int]) -> None:
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    got = decoded(saved(half, "PNG"), (4, 4, 3), background=background)[1, 1]
    assert np.abs(got.astype(int) - expected).max() <= 1
    hidden = Image.new("P", (4, 4), 0)
    hidden.putpalette([9, 9, 9])
    shown = decoded(saved(hidden, "PNG", transparency=0), (4, 4, 3), background=background)[0, 0].tolist()
    assert shown == (background if isinstance(background, list) else [background] * 3)


def test_a_camera_held_sideways_is_turned_upright() -> None:
    left_is_red = np.zeros((16, 32, 3), np.uint8)
    left_is_red[:, :16, 0] = 255
    for kind, options in (("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True})):
        exif = Image.Exif()
        exif[0x0112] = 6  # its left side is up
        turned = decoded(saved(Image.fromarray(left_is_red), kind, exif=exif, **options), (32, 16, 3))
        assert turned[:12, :, 0].min() > 200, kind
        assert turned[20:, :, 0].max() < 50, kind


def test_the_resize_policies() -> None:
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, :10], wide[:, 10:30], wide[:, 30:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    png = picture(wide, "PNG")
    stretched = decoded(png, (8, 8, 3))
    assert [stretched[4, x].argmax() for x in (0, 3, 7)] == [0, 1, 2]
    cropped = decoded(png, (8, 8, 3), resize="crop")
    assert [cropped[4, x].argmax() for x in (0, 3, 7)] == [1, 1, 1]
    fitted = decoded(png, (8, 8, 3), resize="fit", background=[1, 2, 3])
    assert [fitted[4, x].argmax() for x in (0, 3, 7)] == [0, 1, 2]
    assert fitted[0].tolist() == fitted[7].tolist() == [[1, 2, 3]] * 8
    grey = decoded(picture(noise(40, 20, 1), "PNG"), (8, 8, 3), resize="fit", background=[1, 2, 3])
    assert grey[0, 0].tolist() == [1, 2, 3]
    reason, message = refused(png, (8, 8, 3), resize="none")
    assert (reason, message) == ("image-size", "an image of 40 x 20 pixels, the model takes 8 x 8")
    assert (decoded(png, (20, 40, 3), resize="none") == wide).all()


def test_a_large_jpeg_is_shrunk_while_it_is_decoded() -> None:
    """The result is what it would be by the long way, nearly."""
    y, x = np.mgrid[0:1200, 0:1600]
    smooth = np.stack([x * 255 / 1600, y * 255 / 1200, (x + y) % 256], -1).astype(np.uint8)
    got = decoded(picture(smooth, "JPEG", quality=95), (12, 16, 3)).astype(int)
    want = np.asarray(Image.fromarray(smooth).resize((16, 12), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(got - want)[..., :2].max() <= 6


# ---- what is none


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_a_header_says_is_believed_before_anything_is_decoded() -> None:
    bombs = [
        png_that_says(50_000, 50_000),
        png_that_says(2**31 - 1, 2**31 - 1, colour=6, bits=16),
        png_that_says(5000, 5000),
        b"RIFF\x2e\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xfe\x3f\0\xfe\x3f\0" + bytes(8),
        b"RIFF\x2e\0\0\0WEBPVP8L\x16\0\0\0\x2f\xff\xff\xff\x0f" + bytes(24),
        b"RIFF\x2e\0\0\0WEBPVP8 \x22\0\0\0\x30\1\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(20),
        _jpeg_that_says(50_000, 50_000),
        _jpeg_that_says(10_000, 9_500),
        _jpeg_that_says(4097, 4096),
    ]
    tracemalloc.start()
    for bomb in bombs:
        reason, message = refused(bomb)
        assert reason == "image-size", message
        assert "max_pixels is 16777216" in message
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def _jpeg_that_says(width: int, height: int) -> bytes:
    small = bytearray(saved(Image.new("L", (16, 16)), "JPEG"))
    at = small.index(b"\xff\xc0") + 5
    small[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(small)


def test_a_bound_of_ones_own() -> None:
    png = picture(noise(11, 10, 1), "PNG")
    assert refused(png, max_pixels=109)[1] == "an image of 11 x 10 pixels, max_pixels is 109"
    decoded(png, (4, 4, 3), max_pixels=110)


@pytest.mark.parametrize(
    ("value", "reason", "message"),
    [
        (b"", "empty", "a record without bytes"),
        (
            b"GIF89a" + bytes(20),
            "image",
            "no JPEG, PNG or WebP: 26 bytes that begin with 47 49 46 38 39 61 00 00",
        ),
        (b"\xff\xd8\xff", "image", "no JPEG, PNG or WebP"),
        (picture(noise(64, 64, 3), "JPEG")[:-900], "image", "an image that cannot be decoded: image file is truncated"),
        (picture(noise(64, 64, 3), "PNG")[:-900], "image", "an image that cannot be decoded: image file is truncated"),
        (picture(noise(64, 64, 3), "WEBP")[:-900], "image", "an image that cannot be decoded: "),
    ],
)
def test_what_cannot_be_decoded_says_why(value: bytes, reason: str, message: str) -> None:
    assert refused(value)[0] == reason
    assert refused(value)[1].startswith(message)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_no_frame(kind: str) -> None:
    frames = [Image.fromarray(noise(8, 8, 3, seed)) for seed in range(3)]
    film = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    assert refused(film) == ("animated", f"an animated {kind} of 3 frames: a record is one frame")


def test_a_bad_frame_among_good_ones_costs_nothing_but_itself() -> None:
    codec = video_codec(video_contract((4, 4, 3)))
    assert isinstance(codec, AheadCodec)
    good = picture(noise(4, 4, 3), "PNG")
    steps = codec.decode([good, good[:60], good], np.array([1, 2, 1]), NOBODY)
    assert steps.counts.tolist() == [1, 0, 1]
    assert len(steps.values[0]) == 2
    assert codec.decode([b""], np.array([1]), NOBODY).values[0].shape == (0, 4, 4, 3)


# ---- raw frames


def test_raw_frames_are_cut_anywhere() -> None:
    frames = noise(3, 2, 3).reshape(1, 2, 3, 3).repeat(3, 0)
    codec = video_codec(video_contract((3, 2, 3), dtype="float32", layout="CHW", frames="raw", scale=1))
    memory = np.zeros((3, codec.memory_bytes), np.uint8)
    data = frames.tobytes()
    steps = codec.decode([data[:20], data[20:31], b"", data[31:53]], np.array([2, 2, 1, 2]), memory)
    assert steps.counts.tolist() == [1, 0, 0, 1]
    assert (steps.values[0] == frames[:2].transpose(0, 3, 1, 2)).all()
    assert memory[2, :4].view("<u4").tolist() == [17]
    assert (codec.decode([data[53:]], np.array([2]), memory).values[0] == frames[:1].transpose(0, 3, 1, 2)).all()
    assert not memory.any()


# ---- contracts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "NHWC"}, "setting 'layout' is 'NHWC': expected 'HWC' or 'CHW'"),
        ({"frames": "jpeg"}, "setting 'frames' is 'jpeg': expected 'encoded' or 'raw'"),
        ({"channels": "YUV"}, "setting 'channels' is 'YUV': expected 'RGB' or 'BGR'"),
        ({"scale": 2}, "settings 'scale', 'mean' and 'std' are for float steps, the model takes uint8"),
        ({"std": [1, 0, 1]}, "setting 'std' is [1, 0, 1]: expected a number, or 3 of them, above 0"),
        ({"resize": "squeeze"}, "setting 'resize' is 'squeeze': expected one of stretch, fit, crop, none"),
        ({"background": [0, 0]}, "setting 'background' is [0, 0]: expected a whole number from 0 to 255, or 3 of them"),
        ({"max_pixels": 10**9}, "setting 'max_pixels' is 1000000000: expected a whole number from 1 to 89000000"),
        ({"frames": "raw", "resize": "fit"}, "unknown setting 'resize'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError) as caught:
        video_codec(video_contract((4, 4, 3), **settings))
    assert str(caught.value).startswith(f"contract of numbers/1: codec video: {message}")


@pytest.mark.parametrize(
    "steps",
    [
        (StepInput("x", "int64", (4, 4, 3)),),
        (StepInput("x", "uint8", (3, 4, 5)),),
        (StepInput("x", "uint8", (12,)),),
        (StepInput("x", "uint8", (4, 4, 3)), StepInput("y", "int64")),
    ],
)
def test_the_model_must_take_pixels(steps: tuple[StepInput, ...]) -> None:
    contract = replace(tensor_contract(steps), codec=CodecSpec("video"))
    with pytest.raises(ContractError, match=r"needs one step input of uint8\[H,W,C\] or float32\[H,W,C\].* has x "):
        video_codec(contract)


def test_a_raw_frame_that_would_fill_every_snapshot_is_refused() -> None:
    with pytest.raises(ContractError, match="a raw frame of 6220800 bytes would wait in every stream's row"):
        video_codec(video_contract((1080, 1920, 3), frames="raw"))
