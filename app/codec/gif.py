"""GIF's blocks: header, and what stands beside the picture: comments, XMP, a profile."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from app.codec.image import Limits, Metadata, bounded
from app.codec.texts import comment_text
from app.errors import InvalidImage

_PICTURE, _EXTENSION, _END = 0x2C, 0x21, 0x3B
_COMMENT, _APPLICATION = 0xFE, 0xFF
_MAX_BLOCKS, _MAX_PARTS = 2**16, 2**20
_XMP, _ICC = b"\x0bXMP DataXMP", b"\x0bICCRGBG1012"
_XMP_TRAILER = b"\x01" + bytes(range(255, -1, -1))
"""An XMP packet is not cut into sub-blocks; whoever takes its bytes for their lengths lands in this, and then at 0."""


def read_header(body: bytes) -> tuple[int, int, int]:
    """Width, height, frames.

    Raises:
        InvalidImage: if the file is truncated, or has no picture.
    """
    frames = 0
    try:
        width, height = struct.unpack_from("<HH", body, 6)
        for kind, start, _ in _blocks(body):
            if kind == _PICTURE:
                left, top, across, down = struct.unpack_from("<HHHH", body, start)
                width, height = max(width, left + across), max(height, top + down)
                frames += 1
    except (struct.error, IndexError):
        raise InvalidImage("The GIF is truncated; send the whole file.") from None
    if not frames or not width or not height:
        raise InvalidImage("The GIF holds no picture.")
    return width, height, frames


def read_metadata(body: bytes, limits: Limits) -> tuple[Metadata, tuple[str, ...]]:
    """What is kept beside the pixels of a file whose header was read, and notices on what is too large."""
    icc = xmp = None
    texts = []
    notices: list[str] = []
    for kind, start, end in _blocks(body):
        if kind == _COMMENT:
            texts.append(comment_text(_joined(body, start)))
        elif kind == _APPLICATION and body.startswith(_ICC, start):
            icc = icc or _joined(body, start + len(_ICC))
        elif kind == _APPLICATION and body.startswith(_XMP, start) and body.endswith(_XMP_TRAILER, start, end):
            xmp = xmp or body[start + len(_XMP) : end - len(_XMP_TRAILER)]
    icc, xmp = bounded(icc, "an ICC profile", limits, notices), bounded(xmp, "XMP", limits, notices)
    return Metadata(icc or None, xmp=xmp or None, texts=tuple(texts)), tuple(notices)


def _blocks(body: bytes) -> Iterator[tuple[int, int, int]]:
    """Kind of each picture and extension, where its content begins, and where the 0 behind it stands.

    Raises:
        InvalidImage: if there is something else between them, or more than any real file has.
        IndexError, struct.error: if the file ends too early.
    """
    at = 13 + _palette(body[10])
    left = _MAX_PARTS
    for _ in range(_MAX_BLOCKS):
        if body[at] == _END:
            return
        if body[at] == _PICTURE:
            kind, start = _PICTURE, at + 1
            at += 11 + _palette(body[at + 9])
        elif body[at] == _EXTENSION:
            kind, start = body[at + 1], at + 2
            at += 2
        else:
            raise InvalidImage("The GIF is broken.")
        while body[at] and left:
            at += 1 + body[at]
            left -= 1
        if not left:
            break
        yield kind, start, at
        at += 1
    raise InvalidImage("The GIF has more blocks than any real one.")


def _palette(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _joined(body: bytes, at: int) -> bytes:
    parts = []
    while body[at]:
        parts.append(body[at + 1 : at + 1 + body[at]])
        at += 1 + body[at]
    return b"".join(parts)
