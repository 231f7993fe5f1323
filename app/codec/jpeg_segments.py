"""JPEG's segments: header, profile, EXIF, XMP, Photoshop's block."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from app.codec.errors import BrokenImage, UnsupportedImage
from app.codec.image import DecodeLimits, Metadata, Resolution, bounded
from app.codec.texts import comment_of, comment_text

_ICC, _EXIF, _XMP = b"ICC_PROFILE\0", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_EXTENDED_XMP, _PHOTOSHOP, _MULTI_PICTURE = b"http://ns.adobe.com/xmp/extension/\0", b"Photoshop 3.0\0", b"MPF\0"
_MAX_PAYLOAD = 65_533
_MAX_SEGMENTS = 10_000
_MAX_SCANS = 100
"""A decoder goes over the whole picture for each; the most thorough encoders write about twenty."""
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""What ends a scan: neither a stuffed byte, nor a restart, nor padding."""
_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
_DECODABLE = frozenset((0xC0, 0xC1, 0xC2, 0xC9, 0xCA))
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))
_END, _SCAN = 0xD9, 0xDA
APP0, APP1, APP2, APP13, APP14, COMMENT = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE


@dataclass(frozen=True)
class Segments:
    """Everything before the pixels: (marker, content) in order; where the pixels begin and end; the frame's size."""

    body: bytes
    content: tuple[tuple[int, bytes], ...]
    scan: int
    end: int
    width: int
    height: int
    components: int

    @property
    def trailer(self) -> memoryview:
        """What stands behind the picture."""
        return memoryview(self.body)[self.end :]


def read_segments(body: bytes) -> Segments:
    """The segments of a file up to its first scan.

    Raises:
        BrokenImage: if the file ends before, or has no frame.
        UnsupportedImage: if it is lossless, hierarchical, has more than 8 bits, or more scans than any real one.
    """
    content = tuple(_walk(body))
    frames = [(marker, data) for marker, data, _ in content if marker in _FRAMES]
    if len(frames) != 1 or len(frames[0][1]) < 6:
        raise BrokenImage("The JPEG has no frame header.")
    marker, data = frames[0]
    bits, height, width = struct.unpack_from(">BHH", data)
    if marker not in _DECODABLE or bits != 8:
        process = f"{bits} bits a sample" if bits != 8 else "a lossless or hierarchical process"
        raise UnsupportedImage(f"This JPEG has {process}, not read here; send a plain one of 8 bits, or a PNG.")
    if not width or not height:
        raise BrokenImage("The JPEG's header has no size.")
    scan = content[-1][2]
    segments = tuple((marker, data) for marker, data, _ in content)
    return Segments(body, segments, scan, _find_end(body, scan), width, height, data[5])


def _walk(body: bytes) -> Iterator[tuple[int, bytes, int]]:
    at = 2
    for _ in range(_MAX_SEGMENTS):
        if at + 4 > len(body):
            break
        if body[at] != 0xFF:
            raise BrokenImage("The JPEG's segments are broken.")
        marker = body[at + 1]
        if marker == 0xFF or marker in _BARE:
            at += 1 if marker == 0xFF else 2
            continue
        length = struct.unpack_from(">H", body, at + 2)[0]
        if length < 2 or at + 2 + length > len(body):
            break
        if marker == _SCAN:
            yield marker, b"", at
            return
        yield marker, body[at + 4 : at + 2 + length], at
        at += 2 + length
    raise BrokenImage("The JPEG is broken or truncated; send the whole file.")


def _find_end(body: bytes, at: int) -> int:
    """Where the picture whose first scan begins at ``at`` is over; the file's end, if nothing says so before.

    Raises:
        UnsupportedImage: if it has more than ``_MAX_SCANS``.
    """
    scans = 0
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(body, at)
        if found is None:
            return len(body)
        at = found.end()
        marker = body[at - 1]
        if marker == _END:
            return at
        scans += marker == _SCAN
        if scans > _MAX_SCANS:
            break
        if marker not in _BARE and at + 2 <= len(body):
            at += struct.unpack_from(">H", body, at)[0]
    raise UnsupportedImage(f"This JPEG has more than {_MAX_SCANS} scans; save it anew.")


def picture_only(segments: Segments) -> bytes:
    """The file again with nothing but its picture, which is all that a decoder gets to see."""
    kept = (
        part
        for marker, data in segments.content
        if marker != _SCAN and (not APP0 <= marker <= 0xEF or marker in (APP0, APP14)) and marker != COMMENT
        for part in _frame(marker, data)
    )
    return b"".join((b"\xff\xd8", *kept, memoryview(segments.body)[segments.scan : segments.end]))


def read_metadata(segments: Segments, limits: DecodeLimits) -> tuple[Metadata, tuple[str, ...]]:
    """Everything kept beside the pixels, and notices on what is not; packets that are broken are left out."""
    exif = xmp = resolution = None
    behind = ""
    notices: list[str] = []
    profile: dict[int, bytes] = {}
    photoshop, texts = [], []
    for marker, data in segments.content:
        if marker == APP0 and data[:5] == b"JFIF\0" and len(data) >= 12:
            resolution = _resolution(data)
        elif marker == APP1 and data.startswith(_EXIF):
            exif = exif or data[len(_EXIF) :] or None
        elif marker == APP1 and data.startswith(_XMP):
            xmp = xmp or data[len(_XMP) :] or None
        elif marker == APP1 and data.startswith(_EXTENDED_XMP):
            notices.append("the extended part of XMP was left out")
        elif marker == APP2 and data.startswith(_ICC) and len(data) > 14:
            profile.setdefault(data[12], data[14:])
        elif marker == APP2 and data.startswith(_MULTI_PICTURE):
            behind = "further pictures in the file (gain map, preview) were left out"
        elif marker == APP13 and data.startswith(_PHOTOSHOP):
            photoshop.append(data[len(_PHOTOSHOP) :])
        elif marker == COMMENT:
            texts.append(comment_text(data))
    if not behind and any(segments.trailer[:64]):
        behind = "what stands in the file behind its picture (a video, further pictures) was left out"
    notices.extend([behind] if behind else [])
    icc = bounded(b"".join(profile[number] for number in sorted(profile)) or None, "an ICC profile", limits, notices)
    iptc = bounded(b"".join(photoshop) or None, "IPTC", limits, notices)
    return Metadata(icc, exif, xmp, iptc, resolution, texts=tuple(texts)), tuple(dict.fromkeys(notices))


def _resolution(data: bytes) -> Resolution | None:
    unit, x, y = struct.unpack_from(">BHH", data, 7)
    if not x or not y or (unit not in (1, 2) and x == y):
        return None
    if unit in (1, 2):
        return Resolution(x / (0.0254 if unit == 1 else 0.01), y / (0.0254 if unit == 1 else 0.01))
    return Resolution(x, y, per_metre=False)


def insert(body: bytes, metadata: Metadata) -> tuple[bytes, tuple[str, ...]]:
    """The file, which begins with JFIF's segment, with metadata put in; and notices on what has no room."""
    segments: list[tuple[int, bytes]] = []
    notices = []
    for marker, prefix, packet, name in (
        (APP1, _EXIF, metadata.exif, "EXIF"),
        (APP1, _XMP, metadata.xmp, "XMP"),
        (APP13, _PHOTOSHOP, metadata.photoshop, "IPTC"),
        *((COMMENT, b"", comment_of(text), "a comment") for text in metadata.texts),
    ):
        if packet is None:
            continue
        if len(prefix) + len(packet) > _MAX_PAYLOAD:
            notices.append(f"{name} was left out: JPEG holds at most 64 KiB of it")
        else:
            segments.append((marker, prefix + packet))
    segments.extend(_profile_segments(metadata.icc or b""))
    start = 4 + struct.unpack_from(">H", body, 4)[0]
    assert body[2:4] == b"\xff\xe0", "an encoded JPEG begins with its JFIF segment"
    head = bytearray(body[:start])
    if metadata.resolution is not None:
        _write_resolution(head, metadata.resolution)
    parts = (part for marker, data in segments for part in _frame(marker, data))
    return b"".join((head, *parts, memoryview(body)[start:])), tuple(notices)


def _profile_segments(icc: bytes) -> Iterable[tuple[int, bytes]]:
    size = _MAX_PAYLOAD - len(_ICC) - 2
    count = -(-len(icc) // size)
    for number in range(count):
        yield APP2, _ICC + bytes((number + 1, count)) + icc[number * size : (number + 1) * size]


def _write_resolution(head: bytearray, resolution: Resolution) -> None:
    x, y = (min(max(round(value), 1), 65_535) for value in resolution.in_inches)
    struct.pack_into(">BHH", head, 13, 1 if resolution.per_metre else 0, x, y)


def _frame(marker: int, data: bytes) -> tuple[bytes, bytes]:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2), data
