"""XMP packets, edited where they repeat what EXIF says about the pixels."""

from __future__ import annotations

import re

_ORIENTATION = re.compile(rb"""(tiff:Orientation\s*(?:=\s*["']|>\s*))[1-8](?=\s*["'<])""")
_WIDTH = re.compile(rb"""((?:tiff:ImageWidth|exif:PixelXDimension)\s*(?:=\s*["']|>\s*))\d{1,9}(?=\s*["'<])""")
_HEIGHT = re.compile(rb"""((?:tiff:ImageLength|exif:PixelYDimension)\s*(?:=\s*["']|>\s*))\d{1,9}(?=\s*["'<])""")


def reset_orientation(packet: bytes) -> bytes:
    """The packet with ``tiff:Orientation`` at 1, because the pixels stand upright now."""
    return _ORIENTATION.sub(rb"\g<1>1", packet)


def resize(packet: bytes, width: int, height: int) -> bytes:
    """The packet with its statements of the image's size brought up to date."""
    packet = _WIDTH.sub(rb"\g<1>%d" % width, packet)
    return _HEIGHT.sub(rb"\g<1>%d" % height, packet)
