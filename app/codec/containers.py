"""What WebP, BMP, AVIF and HEIF files say outside their pixels."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from app.errors import InvalidImage

_BOXES = frozenset((b"meta", b"iprp", b"ipco"))
_MAX_BOXES = 4096
_MAX_CHUNKS = 2**16


def webp_header(body: bytes) -> tuple[int, int, int]:
    """Width, height, frames.

    Raises:
        InvalidImage: if the file is truncated, has no picture, or more chunks than any real one.
    """
    end = 8 + struct.unpack_from("<I", body, 4)[0] if len(body) >= 12 else 0
    if end > len(body) or end < 20:
        raise InvalidImage("The WebP is truncated; send the whole file.")
    size, frames = (0, 0), 0
    at = 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > end:
            break
        kind, length = struct.unpack_from("<4sI", body, at)
        content = body[at + 8 : min(at + 8 + length, at + 24)]
        if at + 8 + length > end:
            raise InvalidImage("The WebP is truncated; send the whole file.")
        if kind == b"VP8X" and length >= 10:
            width, height = (int.from_bytes(content[start : start + 3], "little") for start in (4, 7))
            size = size if any(size) else (width + 1, height + 1)
        elif kind == b"VP8 " and length >= 10 and not any(size):
            width, height = struct.unpack_from("<HH", content, 6)
            size = width & 0x3FFF, height & 0x3FFF
        elif kind == b"VP8L" and length >= 5 and not any(size):
            packed = struct.unpack_from("<I", content, 1)[0]
            size = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
        frames += kind == b"ANMF"
        at += 8 + length + length % 2
    else:
        raise InvalidImage(f"The WebP has {_MAX_CHUNKS} chunks or more.")
    if not all(size):
        raise InvalidImage("The WebP holds no picture.")
    return *size, max(frames, 1)


def bmp_profile(body: bytes) -> bytes | None:
    """The ICC profile inside a BMP whose header is of the fifth version."""
    if len(body) < 138 or struct.unpack_from("<I", body, 14)[0] < 124 or body[70:74] != b"DEBM":
        return None
    offset, size = struct.unpack_from("<II", body, 14 + 112)
    return body[14 + offset : 14 + offset + size] or None


def colour_description(body: bytes) -> bytes | None:
    """The four bytes of cICP from an AVIF's or HEIF's ``colr`` box, where it is not sRGB or unspecified."""
    for kind, content in _boxes(body, 0, len(body)):
        if kind == b"colr" and content[:4] == b"nclx" and len(content) >= 11:
            primaries, transfer = struct.unpack_from(">HH", content, 4)
            if (primaries, transfer) == (1, 13) or 2 in (primaries, transfer) or max(primaries, transfer) > 255:
                return None
            # Decoded pixels are RGB of the full range, whatever matrix and range the file has.
            return bytes((primaries, transfer, 0, 1))
    return None


def bits_per_sample(body: bytes) -> int:
    """Depth of an AVIF or HEIF, 8 where it does not say."""
    for kind, content in _boxes(body, 0, len(body)):
        if kind == b"pixi" and len(content) >= 6:
            return content[5]
        if kind == b"av1C" and len(content) >= 3:
            return 12 if content[2] & 0x20 else 10 if content[2] & 0x40 else 8
    return 8


def _boxes(body: bytes, at: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    """Type and first bytes of every property box, depth first."""
    for _ in range(_MAX_BOXES):
        if at + 8 > end:
            return
        length, kind = struct.unpack_from(">I4s", body, at)
        start = at + 8
        if length == 1 and at + 16 <= end:
            length, start = struct.unpack_from(">Q", body, at + 8)[0], at + 16
        stop = end if length == 0 else at + length
        if stop > end or stop < start:
            return
        if kind in _BOXES:
            yield from _boxes(body, start + (4 if kind == b"meta" else 0), stop)
        else:
            yield kind, body[start : min(stop, start + 32)]
        at = stop
