"""Reads WebP."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from PIL import WebPImagePlugin

from app.codec import exif, planes, quality
from app.codec.decoders import load
from app.codec.errors import BrokenImage
from app.codec.image import Decoded, DecodeLimits, Header, Metadata

_MAX_CHUNKS = 2**16
_HAS_ALPHA = 0x10
_PACKETS = {b"ICCP": "icc_profile", b"EXIF": "exif", b"XMP ": "xmp"}


@dataclass(frozen=True)
class _WebpFile:
    metadata: Metadata
    notices: tuple[str, ...]


def parse(body: bytes, limits: DecodeLimits) -> Header:
    """The header of a WebP, with its metadata, which holds the orientation.

    Raises:
        BrokenImage: if the file is truncated, has no picture, or more chunks than any real one.
    """
    size, frames, alpha, estimate = (0, 0), 0, False, None
    packets: dict[str, bytes] = {}
    for kind, content in _chunks(body):
        if kind == b"VP8X" and len(content) >= 10 and not any(size):
            width, height = (int.from_bytes(content[start : start + 3], "little") for start in (4, 7))
            size, alpha = (width + 1, height + 1), bool(content[0] & _HAS_ALPHA)
        elif kind == b"VP8 " and len(content) >= 10:
            estimate = quality.of_vp8(content)
            if not any(size):
                width, height = struct.unpack_from("<HH", content, 6)
                size = width & 0x3FFF, height & 0x3FFF
        elif kind == b"VP8L" and len(content) >= 5 and not any(size):
            packed = struct.unpack_from("<I", content, 1)[0]
            size, alpha = ((packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1), bool(packed >> 28 & 1)
        elif kind in _PACKETS:
            packets.setdefault(_PACKETS[kind], bytes(content))
        frames += kind == b"ANMF"
    if not all(size):
        raise BrokenImage("The WebP contains no image.")
    metadata, notices = exif.read_packets(packets, limits)
    return Header(
        "webp",
        *size,
        alpha=alpha,
        orientation=exif.orientation_of(metadata.exif),
        frames=max(frames, 1),
        quality=estimate,
        parsed=_WebpFile(metadata, notices),
    )


def _chunks(body: bytes) -> list[tuple[bytes, memoryview]]:
    """Type and content of every chunk.

    Raises:
        BrokenImage: if the file is truncated, or has more chunks than any real one.
    """
    end = 8 + struct.unpack_from("<I", body, 4)[0] if len(body) >= 12 else 0
    if end > len(body) or end < 20:
        raise BrokenImage("The WebP is truncated; send the whole file.")
    view, at = memoryview(body), 12
    chunks: list[tuple[bytes, memoryview]] = []
    while at + 8 <= end:
        if len(chunks) == _MAX_CHUNKS:
            raise BrokenImage(f"The WebP has {_MAX_CHUNKS} chunks or more.")
        kind, length = struct.unpack_from("<4sI", body, at)
        if at + 8 + length > end:
            raise BrokenImage("The WebP is truncated; send the whole file.")
        chunks.append((kind, view[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return chunks


def read(body: bytes, header: Header, _limits: DecodeLimits) -> Decoded:
    """The planes of a WebP.

    Raises:
        BrokenImage: if pixel data is damaged or missing.
    """
    file: _WebpFile = header.parsed
    picture = load(WebPImagePlugin.WebPImageFile, body, "webp")
    pixels, alpha, metadata, notices = planes.of_picture(picture, file.metadata)
    return Decoded(pixels, alpha, metadata, (*file.notices, *notices))
