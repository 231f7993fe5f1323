"""Reads BMP."""

from __future__ import annotations

import struct
from io import BytesIO

from PIL import BmpImagePlugin

from app.codec import planes
from app.codec.decoders import blaming_the_file, load
from app.codec.image import Decoded, DecodeLimits, Header, Metadata, Resolution, bounded


def parse(body: bytes, _limits: DecodeLimits) -> Header:
    """The header of a BMP.

    Raises:
        BrokenImage: if it is damaged or truncated.
    """
    with blaming_the_file("bmp"):
        return Header("bmp", *BmpImagePlugin.BmpImageFile(BytesIO(body)).size)


def read(body: bytes, _header: Header, limits: DecodeLimits) -> Decoded:
    """The planes of a BMP.

    Raises:
        BrokenImage: if pixel data is damaged or missing.
    """
    picture = load(BmpImagePlugin.BmpImageFile, body, "bmp")
    notices: list[str] = []
    icc = bounded(_profile(body), "an ICC profile", limits, notices)
    dpi = picture.info.get("dpi")
    resolution = Resolution(dpi[0] / 0.0254, dpi[1] / 0.0254) if dpi and min(dpi) > 0 else None
    pixels, alpha, metadata, _ = planes.of_picture(picture, Metadata(icc, resolution=resolution))
    return Decoded(pixels, alpha, metadata, tuple(notices))


def _profile(body: bytes) -> bytes | None:
    """The ICC profile inside a BMP whose header is of the fifth version."""
    if len(body) < 138 or struct.unpack_from("<I", body, 14)[0] < 124 or body[70:74] != b"DEBM":
        return None
    offset, size = struct.unpack_from("<II", body, 14 + 112)
    return body[14 + offset : 14 + offset + size] or None
