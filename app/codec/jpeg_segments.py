"""JPEG's segments: header, profile, EXIF, XMP, Photoshop's block."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from app.codec.errors import BrokenImage, UnsupportedImage
from app.codec.exif import first_readable
from app.codec.image import DecodeLimits, Metadata, Resolution, bounded
from app.codec.jpeg_scans import Frame, Scan, missing_restarts, missing_scans, read_frame, read_scans, with_filler
from app.codec.texts import comment_of, comment_text

_ICC, _EXIF, _XMP = b"ICC_PROFILE\0", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_EXTENDED_XMP, _PHOTOSHOP, _MULTI_PICTURE = b"http://ns.adobe.com/xmp/extension/\0", b"Photoshop 3.0\0", b"MPF\0"
_MAX_PAYLOAD = 65_533
_MAX_SEGMENTS = 10_000
_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7))
_DECODABLE = frozenset((0xC0, 0xC1, 0xC2, 0xC9, 0xCA))
_LOSSLESS, _JPEG_LS = 0xC3, 0xF7
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))
_END, _SCAN, _INTERVAL = 0xD9, 0xDA, 0xDD
APP0, APP1, APP2, APP13, APP14, COMMENT = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE


@dataclass(frozen=True)
class Segments:
    """A file taken apart.

    Args:
        body: the file.
        content: marker and content of each segment before the first scan.
        frame: the frame header.
        scans: the scans.
        first, end: where the first scan begins, and where the picture ends.
        ended: whether an EOI marker ends it.
    """

    body: bytes
    content: tuple[tuple[int, bytes], ...]
    frame: Frame
    scans: tuple[Scan, ...]
    first: int
    end: int
    ended: bool

    @property
    def trailer(self) -> memoryview:
        """The bytes after the picture and its EOI."""
        return memoryview(self.body)[self.end if self.ended else len(self.body) :]

    @property
    def incomplete(self) -> bool:
        """Whether scans, restart intervals, or the end of an arithmetic scan are missing; see ``Frame.arithmetic``."""
        if self.frame.arithmetic and not self.ended:
            return True
        return missing_scans(self.frame, self.scans) or missing_restarts(self.body, self.frame, self.scans)


def read_segments(body: bytes) -> Segments:
    """The segments and scans of a file.

    Raises:
        BrokenImage: if the file ends before its first scan, or has no frame.
        UnsupportedImage: if it is lossless, hierarchical, has more than 8 bits, or more scans than any real one.
    """
    content = tuple(_walk(body))
    frames = [(marker, data) for marker, data, _ in content if marker in _FRAMES]
    if len(frames) != 1 or len(frames[0][1]) < 6:
        raise BrokenImage("The JPEG has no frame header.")
    marker, data = frames[0]
    _check_process(marker, data)
    frame = read_frame(marker, data)
    if not frame.height and frame.width:
        raise UnsupportedImage(
            "This JPEG states its height behind its pixels (DNL), which is not supported; save it anew."
        )
    if not frame.width or not frame.height:
        raise BrokenImage("The JPEG's header has no size.")
    first = content[-1][2]
    intervals = [int.from_bytes(data[:2]) for marker, data, _ in content if marker == _INTERVAL]
    scans, end, ended = read_scans(body, first, intervals[-1] if intervals else 0)
    segments = tuple((marker, data) for marker, data, _ in content)
    return Segments(body, segments, frame, tuple(scans), first, end, ended)


def _check_process(marker: int, data: bytes) -> None:
    if marker == _JPEG_LS:
        raise UnsupportedImage("This is a JPEG-LS file, which is not supported; send a PNG.")
    bits, components = data[0], data[5]
    lossless_gray = marker == _LOSSLESS and components == 1
    if not (marker in _DECODABLE or lossless_gray) or bits != 8:
        process = f"{bits} bits a sample" if bits != 8 else "a lossless or hierarchical process"
        raise UnsupportedImage(
            f"This JPEG has {process}, which is not supported; send a plain one of 8 bits, or a PNG."
        )
    if components not in (1, 3, 4):
        raise UnsupportedImage(f"This JPEG has {components} components; 1, 3 and 4 are read.")


def _walk(body: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker, content and position of each segment up to the first scan; stray bytes between segments are skipped."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        at = body.find(b"\xff", at)
        if at < 0 or at + 4 > len(body):
            break
        marker = body[at + 1]
        if marker in (0, 0xFF) or marker in _BARE:
            at += 1 if marker == 0xFF else 2
            continue
        length = struct.unpack_from(">H", body, at + 2)[0]
        if at + 2 + max(length, 2) > len(body) or marker == _END:
            break
        if marker == _SCAN:
            yield marker, b"", at
            return
        yield marker, body[at + 4 : at + 2 + max(length, 2)], at
        at += 2 + max(length, 2)
    raise BrokenImage("The JPEG is broken or truncated; send the whole file.")


def picture_only(segments: Segments, *, filled: bool = False) -> bytes:
    """The file with its picture only and an EOI at its end; decoders get this.

    Args:
        segments: of the file.
        filled: put filler behind each scan, see ``jpeg_scans``.
    """
    kept = (
        part
        for marker, data in segments.content
        if marker != _SCAN and (not APP0 <= marker <= 0xEF or marker in (APP0, APP14)) and marker != COMMENT
        for part in _frame(marker, data)
    )
    scans = with_filler(segments.body, segments.scans if filled else (), segments.first, segments.end)
    return b"".join((b"\xff\xd8", *kept, *scans, b"" if segments.ended else b"\xff\xd9"))


def read_metadata(segments: Segments, limits: DecodeLimits) -> tuple[Metadata, tuple[str, ...]]:
    """The metadata, and notices on what is not kept. Broken packets are left out."""
    xmp = resolution = None
    blocks: list[bytes] = []
    behind = ""
    notices: list[str] = []
    profile: dict[int, bytes] = {}
    photoshop, texts = [], []
    for marker, data in segments.content:
        if marker == APP0 and data[:5] == b"JFIF\0" and len(data) >= 12:
            resolution = _resolution(data)
        elif marker == APP1 and data.startswith(_EXIF):
            blocks.append(data[len(_EXIF) :])
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
        behind = "data after the picture (a video, further pictures) was left out"
    notices.extend([behind] if behind else [])
    icc = bounded(b"".join(profile[number] for number in sorted(profile)) or None, "an ICC profile", limits, notices)
    iptc = bounded(b"".join(photoshop) or None, "IPTC", limits, notices)
    exif = first_readable(blocks)
    return Metadata(icc, exif, xmp, iptc, resolution, texts=tuple(texts)), tuple(dict.fromkeys(notices))


def _resolution(data: bytes) -> Resolution | None:
    unit, x, y = struct.unpack_from(">BHH", data, 7)
    if not x or not y or (unit not in (1, 2) and x == y):
        return None
    if unit in (1, 2):
        return Resolution(x / (0.0254 if unit == 1 else 0.01), y / (0.0254 if unit == 1 else 0.01))
    return Resolution(x, y, per_metre=False)


def insert(body: bytes, metadata: Metadata) -> tuple[bytes, tuple[str, ...]]:
    """The file, which begins with JFIF's segment, with metadata inserted; and notices on what does not fit."""
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
