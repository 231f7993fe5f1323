"""GIF's blocks: the header, the picture, and metadata (comments, XMP, a profile)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import GifImagePlugin

from app.codec import planes
from app.codec.decoders import load
from app.codec.errors import BrokenImage
from app.codec.image import Decoded, DecodeLimits, Header, Metadata, bounded
from app.codec.texts import comment_text

_PICTURE, _EXTENSION, _END = 0x2C, 0x21, 0x3B
_COMMENT, _APPLICATION, _CONTROL = 0xFE, 0xFF, 0xF9
_MAX_BLOCKS, _MAX_PARTS = 2**16, 2**20
_XMP, _ICC = b"\x0bXMP DataXMP", b"\x0bICCRGBG1012"
_XMP_TRAILER = b"\x01" + bytes(range(255, -1, -1))
"""An XMP packet is not cut into sub-blocks; a reader that takes its bytes for lengths reaches this, and then the 0."""


@dataclass(frozen=True)
class _GifFile:
    """Left, top, right and bottom of the frame, and the metadata."""

    box: tuple[int, int, int, int]
    metadata: Metadata
    notices: tuple[str, ...]


def parse(body: bytes, limits: DecodeLimits) -> Header:
    """The header of a GIF. The picture is as large as the screen and the frame together.

    Raises:
        BrokenImage: if the file is truncated, or has no picture.
    """
    frames, transparent = 0, False
    boxes: list[tuple[int, int, int, int]] = []
    try:
        width, height = struct.unpack_from("<HH", body, 6)
        for kind, start, _ in _blocks(body):
            if kind == _PICTURE:
                left, top, across, down = struct.unpack_from("<HHHH", body, start)
                boxes.append((left, top, left + across, top + down))
            elif kind == _CONTROL and not boxes:
                transparent = bool(body[start + 1] & 1)
        frames = len(boxes)
        metadata, notices = _read_metadata(body, limits)
    except (struct.error, IndexError):
        raise BrokenImage("The GIF is truncated; send the whole file.") from None
    width = max([width, *(right for _, _, right, _ in boxes)])
    height = max([height, *(bottom for _, _, _, bottom in boxes)])
    if not frames or not width or not height:
        raise BrokenImage("The GIF contains no image.")
    return Header(
        "gif",
        width,
        height,
        mode="palette",
        alpha=transparent or boxes[0] != (0, 0, width, height),
        frames=frames,
        parsed=_GifFile(boxes[0], metadata, notices),
    )


def read(body: bytes, header: Header, _limits: DecodeLimits) -> Decoded:
    """The planes of a GIF, transparent where the frame does not cover the screen.

    Raises:
        BrokenImage: if pixel data is damaged or missing.
    """
    file: _GifFile = header.parsed
    picture = load(GifImagePlugin.GifImageFile, body, "gif")
    pixels, alpha, metadata, notices = planes.of_picture(picture, file.metadata)
    left, top, right, bottom = file.box
    if (left, top, right, bottom) != (0, 0, header.width, header.height):
        covered = np.zeros(pixels.shape[:2], np.uint8)
        covered[top:bottom, left:right] = 255 if alpha is None else alpha[top:bottom, left:right]
        alpha = covered
    return Decoded(pixels, alpha, metadata, (*file.notices, *notices))


def _read_metadata(body: bytes, limits: DecodeLimits) -> tuple[Metadata, tuple[str, ...]]:
    """The metadata of a file whose header was read, and notices on what is too large."""
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

    A file that ends without its trailer, or within a picture's data, ends here too: the decoder finds out whether
    pixels are missing. Other bytes before the first picture are skipped, and end the file behind it, as in browsers.

    Raises:
        BrokenImage: if there are more blocks than in any real file.
        IndexError, struct.error: if the file ends too early.
    """
    at = 13 + _palette(body[10])
    left, seen = _MAX_PARTS, False
    for _ in range(_MAX_BLOCKS):
        if at >= len(body) or body[at] == _END:
            return
        if body[at] == _PICTURE:
            kind, start = _PICTURE, at + 1
            at += 11 + _palette(body[at + 9])
        elif body[at] == _EXTENSION:
            kind, start = body[at + 1], at + 2
            at += 2
        elif seen:
            return
        else:
            at += 1
            continue
        seen = seen or kind == _PICTURE
        while left and at < len(body) and body[at]:
            at += 1 + body[at]
            left -= 1
        if not left:
            break
        yield kind, start, at
        at += 1
    raise BrokenImage("The GIF has more blocks than any real one.")


def _palette(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _joined(body: bytes, at: int) -> bytes:
    parts = []
    while body[at]:
        parts.append(body[at + 1 : at + 1 + body[at]])
        at += 1 + body[at]
    return b"".join(parts)
