"""WAV files, byte by byte: also those that no library would write."""

from __future__ import annotations

import struct


def chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    """``size``: what the head says instead of the truth."""
    return name + struct.pack("<I", len(body) if size is None else size) + body + bytes(len(body) % 2)


def wav(
    data: bytes,
    rate: int = 16000,
    channels: int = 1,
    bits: int = 16,
    tag: int = 1,
    *,
    before: bytes = b"",
    size: int | None = None,
    extensible: bool = False,
) -> bytes:
    """A file of these samples; ``before``: chunks between format and samples; ``size``: of the samples, as it says."""
    block = channels * ((bits + 7) // 8)
    body = struct.pack("<HHIIHH", 0xFFFE if extensible else tag, channels, rate, rate * block, block, bits)
    if extensible:
        body += struct.pack("<HHIH", 22, bits, 0, tag) + bytes.fromhex("0000000010008000 00aa00389b71")
    whole = b"WAVE" + chunk(b"fmt ", body) + before + chunk(b"data", data, size)
    return b"RIFF" + struct.pack("<I", len(whole) if size is None else size) + whole
