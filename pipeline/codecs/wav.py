"""WAV files as they come in a stream, cut anywhere: where the header ends, what the samples are, and what is not sound.

``Wave`` stands at one place of a stream of bytes and holds back less than ``HELD_MAX`` of them, so it fits into a row.
A stream that does not begin like a WAV file is raw PCM for good. Files may follow each other in one stream; sizes that
a writer to a pipe could not know (0, or about 2**31 and above) mean that the sound goes on for as long as the stream.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

import numpy as np

from pipeline.columns import AnyArray
from pipeline.errors import RecordError

CHANNELS_MAX = 8
HELD_MAX = 64
"""More than a chunk's head (12), the part of a format that is read (40) or a cut frame (8 channels of 8 bytes) has."""
FORMS = (b"RIFF", b"RF64")
FORMAT_MIN, FORMAT_MAX = 16, 40
ENDLESS = 2**32 - 1
ENDLESS_MIN = 0x7FFF_0000
SKIPPED_MAX = 2**24
"""A chunk of metadata is smaller; a larger one is no chunk at all."""
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE


class Place(enum.IntEnum):
    """Where in a WAV file; START is a new stream."""

    START = 0
    RAW = 1
    CHUNK = 2
    FORMAT = 3
    SKIP = 4
    DATA = 5


@dataclass(frozen=True, slots=True)
class Format:
    """Of the samples. ``tag``: WAV's number for the encoding; ``width``: bytes of one sample of one channel."""

    tag: int
    channels: int
    rate: int
    width: int

    @property
    def frame(self) -> int:
        """Bytes of one moment of all channels; 1 where they cannot be read anyway."""
        return self.channels * self.width if self.problem() is None else 1

    @property
    def plain(self) -> bool:
        """Whether the bytes are 16-bit little-endian mono PCM as they stand."""
        return (self.tag, self.channels, self.width) == (PCM, 1, 2)

    def problem(self) -> str | None:
        """Why the samples cannot be read, or None."""
        widths = {PCM: (1, 2, 3, 4), FLOAT: (4, 8)}.get(self.tag)
        if widths is None:
            return f"encoding {self.tag:#06x} is neither PCM nor float"
        if self.width not in widths:
            return f"samples of {8 * self.width} bits"
        if not 1 <= self.channels <= CHANNELS_MAX:
            return f"{self.channels} channels, 1 to {CHANNELS_MAX} can be mixed"
        return None

    def mono(self, data: bytes) -> AnyArray:
        """Whole frames -> int16 ``[n]``: the channels' mean, rounded to the nearest, clipped."""
        levels = self._levels(data).reshape(-1, self.channels)
        total = levels[:, 0].copy()
        for channel in range(1, self.channels):  # one after the other: a sum whose order depends on no array's size
            total += levels[:, channel]
        return np.clip(np.rint(total / self.channels), -32768, 32767).astype(np.int16)

    def _levels(self, data: bytes) -> AnyArray:
        """float64 ``[n * channels]`` in units of an int16."""
        if self.tag == FLOAT:
            with np.errstate(over="ignore"):
                floats = np.frombuffer(data, f"<f{self.width}").astype(np.float64) * 32768.0
            return np.nan_to_num(floats, nan=0.0, posinf=32767.0, neginf=-32768.0)
        if self.width == 1:
            return (np.frombuffer(data, np.uint8).astype(np.float64) - 128.0) * 256.0
        if self.width == 3:
            wide = np.zeros((len(data) // 3, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            return wide.view("<i4")[:, 0] / 65536.0
        whole = np.frombuffer(data, f"<i{self.width}").astype(np.float64)
        return whole if self.width == 2 else whole / 65536.0


NO_FORMAT = Format(0, 0, 0, 0)


@dataclass(slots=True)
class Wave:
    """See the module. A new stream is ``Wave()``."""

    place: Place = Place.START
    format: Format = NO_FORMAT
    left: int = 0
    """Bytes left of the chunk that it stands in; ENDLESS: it does not end."""
    padded: bool = False
    """The chunk of samples has an odd size, so a byte without meaning comes after it."""
    held: bytes = b""

    def feed(self, value: bytes) -> list[tuple[Format | None, bytes]]:
        """Samples in whole frames with their format (None: raw PCM, of which any bytes), in order.

        What is not whole yet is held. Raises RecordError (``wav``) for a file that is none; begin anew then.
        """
        data = self.held + value
        sound: list[tuple[Format | None, bytes]] = []
        at, end = 0, len(data)
        while at < end:
            rest = end - at
            if self.place is Place.START and not _may_be_wav(data[at : at + 12]):
                self.place = Place.RAW
            elif self.place is Place.RAW:
                sound.append((None, data[at:]))
                at = end
            elif self.place is Place.START:
                if rest < 12:
                    break
                at += 12
                self.place = Place.CHUNK
            elif self.place is Place.CHUNK:
                if rest < 8 or (data[at : at + 4] in FORMS and rest < 12):
                    break
                at += self._open(data[at : at + 12])
            elif self.place is Place.FORMAT:
                size = min(self.left, FORMAT_MAX)
                if rest < size:
                    break
                self.format = _format(data[at : at + size])
                at += size
                self._skip(self.left - size)
            elif self.place is Place.SKIP:
                used = min(rest, self.left)
                at += used
                self._skip(self.left - used)
            elif self.left < self.format.frame:  # a sample that the chunk's end cuts off
                self._skip(self.left + self.padded)
            else:
                used = rest if self.left == ENDLESS else min(rest, self.left)
                used -= used % self.format.frame
                if not used:
                    break
                sound.append((self.format, data[at : at + used]))
                at += used
                if self.left != ENDLESS:
                    self.left -= used
        self.held = data[at:]
        return sound

    def _open(self, head: bytes) -> int:
        """A chunk's head, or that of a file behind a file: how many bytes it has."""
        name, size = head[:4], int.from_bytes(head[4:8], "little")
        if name in FORMS and head[8:12] == b"WAVE":
            self.format = NO_FORMAT
            return 12
        if name == b"data":
            if self.format == NO_FORMAT:
                raise RecordError("wav", "a WAV file with samples before their format (no chunk 'fmt ' before 'data')")
            endless = size == 0 or size >= ENDLESS_MIN
            self.place, self.left, self.padded = Place.DATA, ENDLESS if endless else size, bool(size % 2)
            return 8
        if not all(32 <= c < 127 for c in name) or size > SKIPPED_MAX:
            raise RecordError("wav", f"a WAV file whose chunk has the name {name!r} and {size} bytes: no chunk has")
        if name == b"fmt ":
            if size < FORMAT_MIN:
                raise RecordError("wav", f"a WAV file whose format has {size} bytes, less than {FORMAT_MIN}")
            self.place, self.left = Place.FORMAT, size + size % 2
        else:
            self._skip(size + size % 2)
        return 8

    def _skip(self, left: int) -> None:
        self.place, self.left = (Place.SKIP, left) if left else (Place.CHUNK, 0)


def _may_be_wav(head: bytes) -> bool:
    """Whether a stream that begins so may be a WAV file; of its first 12 bytes as many as there are."""
    return any(form.startswith(head[:4]) for form in FORMS) and b"WAVE".startswith(head[8:12])


def _format(body: bytes) -> Format:
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", body)
    if tag == EXTENSIBLE and len(body) >= 26:
        tag = int.from_bytes(body[24:26], "little")
    # Samples of 20 bits, say, come in the upper bits of 3 bytes: the block tells how many.
    width = block // channels if channels and block % channels == 0 else (bits + 7) // 8
    return Format(tag, channels, rate, width)
