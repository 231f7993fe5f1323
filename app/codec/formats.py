"""The supported formats: how they are recognised, and what each can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType

from app.codec.errors import BrokenImage, InvalidEncodeOption, TooLargeForFormat, UnsupportedImage


@dataclass(frozen=True)
class Format:
    """An output format, and what its files can hold.

    Args:
        name: as in the option ``format``.
        media_type: for ``Content-Type``.
        extension: with its dot.
        max_side: largest width and height in pixels.
        max_pixels: largest product of the two.
        deep: 16-bit samples.
        alpha: an alpha plane.
        gray: images of one plane; others store gray as three equal planes.
        gray_alpha: images of one plane and alpha.
        cicp: primaries and transfer as numbers (ITU-T H.273), beside profiles.
    """

    name: str
    media_type: str
    extension: str
    max_side: int
    max_pixels: int
    deep: bool = False
    alpha: bool = True
    gray: bool = True
    gray_alpha: bool = False
    cicp: bool = False


WRITABLE: Mapping[str, Format] = MappingProxyType(
    {
        format_.name: format_
        for format_ in (
            # libpng, and so nearly every reader of PNG, refuses more than a million a side.
            Format("png", "image/png", ".png", 1_000_000, 2**31 - 1, deep=True, gray_alpha=True, cicp=True),
            # The file format has 65535; libjpeg's JPEG_MAX_DIMENSION is 65500.
            Format("jpeg", "image/jpeg", ".jpg", 65_500, 65_500**2, alpha=False),
            Format("webp", "image/webp", ".webp", 16_383, 16_383**2, gray=False),
            # Offsets have 32 bits: eight bytes a pixel and some room for the rest.
            Format("tiff", "image/tiff", ".tiff", 2**29 - 2**24, 2**29 - 2**24, deep=True, gray_alpha=True),
            # libavif reads no longer side by default (AVIF_DEFAULT_IMAGE_DIMENSION_LIMIT). AVIF's profiles end at AV1's
            # level 6.0, and encoding takes sixteen times the bytes of the pixels.
            Format("avif", "image/avif", ".avif", 32_768, 35_651_584, cicp=True),
            # Level 5 of the codestream, which every decoder reads.
            Format("jxl", "image/jxl", ".jxl", 2**18, 2**28, gray=False),
        )
    }
)
"""Formats that are written, by name."""

LOSSY = frozenset(("jpeg", "webp", "avif", "jxl"))
"""Formats whose size depends on a quality."""

READABLE = ("png", "jpeg", "webp", "tiff", "avif", "bmp", "gif", "heif", "jxl")
"""Formats that are read, JPEG XL where its package is installed."""

JXL_PACKAGE = "pylibjxl"
"""Of the extra ``[jxl]``."""

_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_REFUSED = (
    (b"%PDF", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"qoif", "QOI"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML or SVG"),
)


def readable() -> list[str]:
    """The formats of ``READABLE`` that can be read by what is installed."""
    return [name for name in READABLE if name != "jxl" or find_spec(JXL_PACKAGE)]


def writable() -> list[str]:
    """The formats of ``WRITABLE`` that can be written by what is installed."""
    return [name for name in WRITABLE if name != "jxl" or find_spec(JXL_PACKAGE)]


def sniff(body: bytes) -> str:
    """The format of a file, from its first bytes. Extension and media type are ignored.

    Raises:
        BrokenImage: if there are no bytes.
        UnsupportedImage: if the format is none of ``READABLE``.
    """
    if not body:
        raise BrokenImage("The file is empty; send an image.")
    name = _magic(body[:32])
    if name is None:
        known = next((title for magic, title in _REFUSED if body.startswith(magic)), None)
        what = f"This is a {known} file" if known else "This is not an image of a known format"
        supported = readable()
        raise UnsupportedImage(f"{what}; send one of {', '.join(supported)}.", supported=supported)
    return name


def _magic(head: bytes) -> str | None:
    for magic, name in (
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"\xff\xd8\xff", "jpeg"),
        (b"II*\0", "tiff"),
        (b"MM\0*", "tiff"),
        (b"II+\0", "tiff"),
        (b"MM\0+", "tiff"),
        (b"GIF87a", "gif"),
        (b"GIF89a", "gif"),
        (b"BM", "bmp"),
        (b"\xff\x0a", "jxl"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "jxl"),
    ):
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, 32, 4))}
        if brands & {b"avif", b"avis"}:
            return "avif"
        if brands & _HEIF_BRANDS:
            return "heif"
    return None


def output_format(requested: str, source: str) -> str:
    """The name of the format to write for the option ``format`` and an upload of format ``source``.

    Raises:
        InvalidEncodeOption: if the name is neither a writable format nor ``same``.
    """
    if requested == "same":
        return source if source in WRITABLE else "png"
    if requested == "jxl" and not find_spec(JXL_PACKAGE):
        raise InvalidEncodeOption("format=jxl needs the extra [jxl] on the server; choose another format.")
    if requested not in WRITABLE:
        raise InvalidEncodeOption(f"format has to be one of {', '.join(WRITABLE)} or same, not {requested!r}.")
    return requested


def check_output(name: str, width: int, height: int) -> None:
    """Check that the format ``name`` (of ``WRITABLE``) can hold a result.

    Args:
        name: the format to write.
        width, height: of the result, in pixels.

    Raises:
        TooLargeForFormat: with ``limit`` and ``actual`` in pixels a side, or in pixels.
    """
    format_ = WRITABLE[name]
    side = max(width, height)
    if side > format_.max_side:
        raise TooLargeForFormat(
            f"{name} holds {format_.max_side} pixels a side, the result has {width}x{height}; choose another format.",
            limit=format_.max_side,
            actual=side,
        )
    if width * height > format_.max_pixels:
        raise TooLargeForFormat(
            f"{name} holds {format_.max_pixels} pixels, the result has {width}x{height}; choose another format.",
            limit=format_.max_pixels,
            actual=width * height,
        )
