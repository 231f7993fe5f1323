"""Estimates an encoder's quality setting from a file's quantization.

``restore=auto`` uses this estimate. It is exact for libjpeg's scale and within a few steps for libwebp's. For encoders
with other tables it is the libjpeg quality with the nearest mean quantization.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache

_DQT = 0xDB
_LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29),
    *(51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121),
    *(120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
"""The standard luminance table (ITU-T T.81, Annex K.1), libjpeg's table at quality 50."""
_KEY_FRAME = b"\x9d\x01\x2a"


def of_jpeg(segments: Iterable[tuple[int, bytes]]) -> int | None:
    """The quality, 1 to 100, of the first quantization table (luminance); None without one.

    Args:
        segments: marker and content of each segment.
    """
    for marker, content in segments:
        if marker != _DQT or not content:
            continue
        width = 2 if content[0] >> 4 else 1
        table = content[1 : 1 + 64 * width]
        if len(table) < 64 * width:
            return None
        values = struct.unpack(">64H", table) if width == 2 else tuple(table)
        total = sum(values)
        return min(range(1, 101), key=lambda quality: abs(_sum_at(quality) - total))
    return None


@cache
def _sum_at(quality: int) -> int:
    """The sum of libjpeg's luminance table at a quality."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return sum(min(max((value * scale + 50) // 100, 1), 255) for value in _LUMA)


def of_vp8(content: bytes | memoryview) -> int | None:
    """Libwebp's quality, 1 to 100, of a lossy bitstream (RFC 6386, section 9); None if it is no key frame."""
    if len(content) < 20 or content[0] & 1 or bytes(content[3:6]) != _KEY_FRAME:
        return None
    bits = _BoolDecoder(bytes(content[10:200]))
    bits.literal(2)  # color space, clamping
    segments: list[int] = []
    absolute = False
    if bits.flag():
        update_map, update_data = bits.flag(), bits.flag()
        if update_data:
            absolute = bool(bits.flag())
            segments = [bits.signed(7) for _ in range(4)]
            for _ in range(4):
                bits.signed(6)  # loop filter levels
        if update_map:
            for _ in range(3):
                if bits.flag():
                    bits.literal(8)
    bits.literal(10)  # filter type, level, sharpness
    if bits.flag() and bits.flag():
        for _ in range(8):
            bits.signed(6)
    bits.literal(2)  # partitions
    base = bits.literal(7)
    levels = [value if absolute else base + value for value in segments] or [base]
    return _webp_quality(sum(min(max(level, 0), 127) for level in levels) / len(levels))


def _webp_quality(level: float) -> int:
    """The inverse of libwebp's map from quality to quantizer index."""
    linear = (1 - level / 127) ** 3
    quality = linear * 1.5 if linear < 0.5 else (linear + 1) / 2
    return min(max(round(100 * quality), 1), 100)


class _BoolDecoder:
    """VP8's arithmetic decoder (RFC 6386, section 7), for the frame header, whose bits have even odds."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 2
        self._value = int.from_bytes(data[:2])
        self._range = 255
        self._shifts = 0

    def flag(self) -> int:
        """One bit."""
        split = 1 + ((self._range - 1) * 128 >> 8)
        bit = int(self._value >= split << 8)
        if bit:
            self._range -= split
            self._value -= split << 8
        else:
            self._range = split
        while self._range < 128:
            self._value <<= 1
            self._range <<= 1
            self._shifts += 1
            if self._shifts == 8:
                self._shifts = 0
                self._value |= self._data[self._at] if self._at < len(self._data) else 0
                self._at += 1
        return bit

    def literal(self, count: int) -> int:
        """An unsigned number of ``count`` bits."""
        value = 0
        for _ in range(count):
            value = value << 1 | self.flag()
        return value

    def signed(self, count: int) -> int:
        """An optional number: a flag, the number, and its sign; 0 if the flag is not set."""
        if not self.flag():
            return 0
        value = self.literal(count)
        return -value if self.flag() else value
