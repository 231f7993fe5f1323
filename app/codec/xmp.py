"""XMP packets: updates size and orientation, and removes descriptions of parts that are left out."""

from __future__ import annotations

import re

_ORIENTATION = re.compile(rb"""(tiff:Orientation\s*(?:=\s*["']|>\s*))[1-8](?=\s*["'<])""")
_WIDTH = re.compile(rb"""((?:tiff:ImageWidth|exif:PixelXDimension)\s*(?:=\s*["']|>\s*))\d{1,9}(?=\s*["'<])""")
_HEIGHT = re.compile(rb"""((?:tiff:ImageLength|exif:PixelYDimension)\s*(?:=\s*["']|>\s*))\d{1,9}(?=\s*["'<])""")
_ANY = rb"[\w.-]+"
_CLAIMS = (
    (b"http://ns.adobe.com/hdr-gain-map/1.0/", _ANY),
    (b"http://ns.apple.com/HDRGainMap/1.0/", _ANY),
    (b"http://ns.google.com/photos/1.0/camera/", rb"(?:MotionPhoto|MicroVideo)[\w.-]*"),
    (b"http://ns.google.com/photos/1.0/container/", _ANY),
    (b"http://ns.google.com/photos/1.0/depthmap/", _ANY),
    (b"http://ns.google.com/photos/1.0/image/", _ANY),
    (b"http://ns.google.com/photos/1.0/audio/", _ANY),
    (b"http://ns.adobe.com/xmp/note/", rb"HasExtendedXMP"),
)
"""Namespaces and names of properties that describe gain maps, depth maps, videos and further parts of the file."""


def reset_orientation(packet: bytes) -> bytes:
    """The packet with ``tiff:Orientation`` set to 1, because the pixels are upright."""
    return _ORIENTATION.sub(rb"\g<1>1", packet)


def resize(packet: bytes, width: int, height: int) -> bytes:
    """The packet with the image's size updated."""
    packet = _WIDTH.sub(rb"\g<1>%d" % width, packet)
    return _HEIGHT.sub(rb"\g<1>%d" % height, packet)


def remove_claims(packet: bytes) -> bytes:
    """The packet without descriptions of gain maps, depth maps and videos, which are not kept."""
    for namespace, name in _CLAIMS:
        prefixes = re.findall(rb"""xmlns:([\w.-]+)\s*=\s*["']""" + re.escape(namespace) + rb"""["']""", packet)
        for prefix in dict.fromkeys(prefixes):
            packet = _remove(packet, re.escape(prefix) + rb":" + name)
    return packet


def _remove(packet: bytes, name: bytes) -> bytes:
    """Elements and attributes whose name matches a pattern."""
    packet = re.sub(rb"<(" + name + rb")(?:\s[^<>]*)?/>", b"", packet)
    packet = re.sub(rb"<(" + name + rb")(?:\s[^<>]*)?>.*?</\1\s*>", b"", packet, flags=re.DOTALL)
    return re.sub(rb"\s" + name + rb"""\s*=\s*(?:"[^"]*"|'[^']*')""", b"", packet)
