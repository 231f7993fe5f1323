"""PNG's chunks: reads and writes the header and the metadata."""

from __future__ import annotations

import binascii
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from app.codec.errors import BrokenImage, UnsupportedImage
from app.codec.exif import strip_prefix
from app.codec.image import DecodeLimits, Metadata, Resolution, bounded

_APPLE = b"CgBI"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOR_CHUNKS = (b"cICP", b"mDCV", b"cLLI", b"gAMA", b"cHRM", b"sRGB")
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
_PICTURE_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_XMP_KEYWORD = b"XML:com.adobe.xmp"
_RAW = b"Raw profile type "
_PACKET_CHUNKS = (b"iCCP", b"eXIf", *_TEXT_CHUNKS)
_ICC, _EXIF, _XMP, _IPTC = "an ICC profile", "EXIF", "XMP", "IPTC"
_MAX_CHUNKS = 2**17
_PIECE_BYTES = 2**22
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Left, top and steps of the passes of an interlaced picture."""
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}

Chunk = tuple[bytes, memoryview]


@dataclass(frozen=True)
class PngHeader:
    """IHDR, and how many frames an animation has; ``kind`` is PNG's colour type."""

    width: int
    height: int
    bits: int
    kind: int
    interlaced: bool
    frames: int

    @property
    def filtered_bytes(self) -> int:
        """Length of the inflated pixel data: each row of each pass with the number of its filter."""
        passes = _ADAM7 if self.interlaced else ((0, 0, 1, 1),)
        total = 0
        for left, top, across, down in passes:
            columns, rows = -(-(self.width - left) // across), -(-(self.height - top) // down)
            if columns > 0 and rows > 0:
                total += rows * (1 + -(-columns * self.bits * _SAMPLES[self.kind] // 8))
        return total


def read_chunks(body: bytes) -> tuple[list[Chunk], tuple[str, ...]]:
    """Type and content of every chunk up to IEND, and notices. Bytes after IEND are ignored.

    An ancillary chunk whose checksum is wrong is left out, as in Chromium. A file that ends behind
    its first IDAT is read as far as it goes; whether all pixels are there is seen when they are decoded.

    Raises:
        BrokenImage: if the file ends before its pixels, is not put together as a PNG, has more chunks than any real
            one, or if the checksum of a critical chunk is wrong.
        UnsupportedImage: if it is in Apple's variant.
    """
    view = memoryview(body)
    chunks: list[Chunk] = []
    damaged: dict[str, None] = {}
    at = len(SIGNATURE)
    while at + 12 <= len(view):
        if len(chunks) == _MAX_CHUNKS:
            raise BrokenImage(f"The PNG has more than {_MAX_CHUNKS} chunks.")
        length, kind = struct.unpack_from(">I4s", view, at)
        if at + 12 + length > len(view):
            break
        if kind == _APPLE and not chunks:
            raise UnsupportedImage(
                "This PNG is in Apple's CgBI variant, which is not supported; save it as a plain PNG."
            )
        content = view[at + 8 : at + 8 + length]
        right = zlib.crc32(content, zlib.crc32(kind)) == struct.unpack_from(">I", view, at + 8 + length)[0]
        if not right and not kind[0] & 0x20:
            raise BrokenImage("The PNG is damaged: a checksum is wrong.")
        if right:
            chunks.append((kind, content))
        else:
            damaged[kind.decode("latin-1").encode("ascii", "replace").decode()] = None
        if kind == b"IEND":
            return chunks, _damage(damaged)
        at += 12 + length
    cut = bytes(view[at + 4 : at + 8])
    if cut == b"IDAT":
        chunks.append((b"IDAT", view[at + 8 : at + 8 + struct.unpack_from(">I", view, at)[0]]))
    if not any(kind == b"IDAT" for kind, _ in chunks):
        raise BrokenImage("The PNG is truncated; send the whole file.")
    missing = () if cut == b"IEND" else ("the file has no end: metadata behind its pixels may be missing",)
    return [*chunks, (b"IEND", view[:0])], (*_damage(damaged), *missing)


def _damage(kinds: Iterable[str]) -> tuple[str, ...]:
    names = ", ".join(kind for kind in kinds if kind.isalpha())[:100]
    return (f"chunks with a wrong checksum were left out: {names}",) if names else ()


def read_header(chunks: Sequence[Chunk]) -> PngHeader:
    """The header of a file's chunks.

    Raises:
        BrokenImage: if IHDR is missing or says what PNG does not allow.
    """
    kind, content = chunks[0]
    if kind != b"IHDR" or len(content) != 13:
        raise BrokenImage("The PNG has no header.")
    width, height, bits, color, method, filters, interlace = struct.unpack(">IIBBBBB", content)
    if not 0 < width < 2**31 or not 0 < height < 2**31 or bits not in _DEPTHS.get(color, ()):
        raise BrokenImage("The PNG's header is invalid.")
    if method or filters or interlace > 1:
        raise BrokenImage("The PNG's header is invalid.")
    return PngHeader(width, height, bits, color, bool(interlace), _frames(chunks))


def _frames(chunks: Sequence[Chunk]) -> int:
    """Frames of an animation; 1 where acTL is missing, invalid or behind the pixels, as in browsers."""
    for kind, content in chunks:
        if kind == b"IDAT":
            break
        if kind == b"acTL" and len(content) == 8:
            count = int.from_bytes(content[:4], "big")
            return count if 0 < count < 2**31 else 1
    return 1


def picture_only(chunks: Iterable[tuple[bytes, bytes | memoryview]], *, palette: bool) -> bytes:
    """The file with its picture only; decoders get this.

    Args:
        chunks: of the file.
        palette: keep the transparency of a palette, which the decoder applies.
    """
    kept = (*_PICTURE_CHUNKS, b"tRNS") if palette else _PICTURE_CHUNKS
    return assemble(chunk for chunk in chunks if chunk[0] in kept)


def as_kind(picture: bytes, kind: int, bits: int) -> bytes:
    """A file of ``picture_only`` with another color type and depth, whose pixels have as many bytes."""
    head = bytearray(picture[len(SIGNATURE) + 8 : len(SIGNATURE) + 21])
    head[8:10] = bits, kind
    return b"".join((SIGNATURE, *frame(b"IHDR", bytes(head)), picture[len(SIGNATURE) + 25 :]))


def filtered_rows(chunks: Iterable[Chunk], header: PngHeader) -> Iterator[bytes]:
    """The inflated pixel data in pieces, without checking its checksum.

    Raises:
        BrokenImage: if pixel data is damaged or missing.
    """
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    waiting = b"".join(content for kind, content in chunks if kind == b"IDAT")[2:]
    left = header.filtered_bytes
    while left:
        try:
            piece = stream.decompress(waiting, min(left, _PIECE_BYTES))
        except zlib.error:
            piece = b""
        if not piece:
            raise BrokenImage("The PNG is broken or truncated: pixel data is missing; send the whole file.")
        yield piece
        left -= len(piece)
        waiting = stream.unconsumed_tail


def check_complete(chunks: Iterable[Chunk], header: PngHeader) -> None:
    """Check that no pixel data is missing.

    Raises:
        BrokenImage: if it is damaged or missing.
    """
    for _ in filtered_rows(chunks, header):
        pass


def repair(chunks: Iterable[Chunk], header: PngHeader) -> list[tuple[bytes, bytes | memoryview]]:
    """The chunks with pixel data compressed anew, for a stream whose checksum or end is missing or wrong.

    Raises:
        BrokenImage: if pixel data is damaged or missing.
    """
    chunks = list(chunks)
    rows = b"".join(filtered_rows(chunks, header))
    others = [chunk for chunk in chunks if chunk[0] not in (b"IDAT", b"IEND")]
    return [*others, (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")]


def assemble(chunks: Iterable[tuple[bytes, bytes | memoryview]]) -> bytes:
    """A file of chunks."""
    return b"".join((SIGNATURE, *(part for kind, content in chunks for part in frame(kind, content))))


def frame(kind: bytes, content: bytes | memoryview) -> tuple[bytes, bytes | memoryview, bytes]:
    """A chunk as stored in a file, in three parts."""
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return struct.pack(">I4s", len(content), kind), content, struct.pack(">I", checksum)


def insert(body: bytes | bytearray, chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The file with chunks inserted after its header."""
    head = len(SIGNATURE) + 25
    view = memoryview(body)
    return b"".join((view[:head], *(part for kind, content in chunks for part in frame(kind, content)), view[head:]))


def read_metadata(chunks: Iterable[Chunk], limits: DecodeLimits) -> tuple[Metadata, tuple[str, ...]]:
    """The metadata, and notices on packets that are broken or too large, which are left out."""
    found: dict[str, bytes] = {}
    resolution = None
    color: list[tuple[bytes, bytes]] = []
    texts: list[tuple[bytes, bytes]] = []
    notices: list[str] = []
    for kind, view in chunks:
        if kind == b"pHYs" and len(view) == 9:
            resolution = _resolution(bytes(view))
        elif kind in COLOR_CHUNKS and len(view) <= 32:
            color.append((kind, bytes(view)))
        elif kind in _PACKET_CHUNKS and (view or kind not in _TEXT_CHUNKS):
            content = bounded(bytes(view), f"a chunk {kind.decode('ascii')}", limits, notices)
            if content is None:
                continue
            name, packet = _packet(kind, content, limits)
            if not name:
                texts.append((kind, content))
            elif packet:
                found.setdefault(name, packet)
            else:
                notices.append(f"{name} was broken or too large, and was left out")
    icc, exif, xmp, photoshop = (found.get(name) for name in (_ICC, _EXIF, _XMP, _IPTC))
    return Metadata(icc, exif, xmp, photoshop, resolution, tuple(color), tuple(texts)), tuple(notices)


def _packet(kind: bytes, content: bytes, limits: DecodeLimits) -> tuple[str, bytes | None]:
    """The name and the content of a packet in a chunk; None if it is broken; an empty name for other texts."""
    if kind == b"iCCP":
        return _ICC, _profile(content, limits)
    if kind == b"eXIf":
        return _EXIF, strip_prefix(content)
    keyword = content.split(b"\0", 1)[0]
    if keyword == _XMP_KEYWORD and kind == b"iTXt":
        return _XMP, _international_text(content, limits)
    if keyword.startswith(_RAW):
        raw = _raw_profile(kind, content, limits)
        if raw[:4] == b"Exif" or keyword == _RAW + b"exif":
            return _EXIF, strip_prefix(raw)
        name = {b"xmp": _XMP, b"iptc": _IPTC, b"8bim": _IPTC}.get(keyword.removeprefix(_RAW), "")
        return name, raw
    return "", None


def metadata_chunks(metadata: Metadata) -> list[tuple[bytes, bytes]]:
    """The chunks that carry metadata, in an order that PNG allows before the pixels."""
    chunks = [chunk for chunk in metadata.png_color if not (metadata.icc and chunk[0] == b"sRGB")]
    if metadata.icc is not None:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc)))
    if metadata.resolution is not None:
        x, y = (min(max(round(value), 1), 2**31 - 1) for value in (metadata.resolution.x, metadata.resolution.y))
        chunks.append((b"pHYs", struct.pack(">IIB", x, y, metadata.resolution.per_metre)))
    if metadata.exif is not None:
        chunks.append((b"eXIf", metadata.exif))
    if metadata.xmp is not None:
        chunks.append((b"iTXt", _XMP_KEYWORD + b"\0\0\0\0\0" + metadata.xmp))
    if metadata.photoshop is not None:
        digits = binascii.hexlify(metadata.photoshop)
        lines = b"\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
        text = b"\n8bim\n%8d\n%s\n" % (len(metadata.photoshop), lines)
        chunks.append((b"zTXt", _RAW + b"8bim\0\0" + zlib.compress(text)))
    chunks.extend(metadata.texts)
    return chunks


def inflate(content: bytes, limit: int) -> bytes | None:
    """A zlib stream's content; None if it is broken, or longer than ``limit`` bytes."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(content, limit)
    except zlib.error:
        return None
    return content if stream.eof else None


def _profile(content: bytes, limits: DecodeLimits) -> bytes | None:
    _, _, rest = content.partition(b"\0")
    return inflate(rest[1:], limits.max_profile_bytes) if rest[:1] == b"\0" else None


def _resolution(content: bytes) -> Resolution | None:
    x, y, unit = struct.unpack(">IIB", content)
    if not x or not y or (unit != 1 and x == y):
        return None
    return Resolution(x, y, per_metre=unit == 1)


def _international_text(content: bytes, limits: DecodeLimits) -> bytes | None:
    # keyword, 0, whether compressed, method, language, 0, translated keyword, 0, text
    flags, rest = content[len(_XMP_KEYWORD) + 1 :][:2], content[len(_XMP_KEYWORD) + 3 :]
    parts = rest.split(b"\0", 2)
    if len(flags) != 2 or len(parts) != 3:
        return None
    return inflate(parts[2], limits.max_profile_bytes) if flags[0] else parts[2]


def _raw_profile(kind: bytes, content: bytes, limits: DecodeLimits) -> bytes:
    """ImageMagick's form of a profile in a text: a line break, a name, a length, and hexadecimal digits."""
    _, _, text = content.partition(b"\0")
    inflated = inflate(text[1:], 2 * limits.max_profile_bytes) if kind == b"zTXt" else text
    digits = (inflated or b"").split(b"\n")[3:]
    try:
        return binascii.unhexlify(b"".join(b"".join(digits).split()))
    except ValueError:
        return b""
