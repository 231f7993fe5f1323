"""The boxes of AVIF and HEIF files (ISO 14496-12, 23008-12)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_BOXES = frozenset((b"meta", b"iprp", b"ipco"))
_MAX_BOXES = 4096


def color_description(body: bytes) -> bytes | None:
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
