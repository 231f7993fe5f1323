"""Decodes files to upright images. The header is checked first, and decoders get only the picture of a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from app.codec import avif, bmp, color, exif, gif, heif, jpeg, jxl, planes, png, tiff, webp, xmp
from app.codec.errors import BrokenImage, TooLarge, UnsupportedImage
from app.codec.formats import sniff
from app.codec.image import Decoded, DecodeLimits, Header, Image, Metadata


def read_header(body: bytes, limits: DecodeLimits) -> Header:
    """Format, size and kind of samples of a file, without decoding it.

    Raises:
        BrokenImage: if the file is empty, damaged, or ends too early.
        UnsupportedImage: if the format is none of ``formats.READABLE``, or if the file is animated or has pages.
        TooLarge: if it has more than ``limits.max_pixels`` pixels; with ``limit`` and ``actual``.
    """
    name = sniff(body)
    header = _FORMATS[name].parse(body, limits)
    if header.width < 1 or header.height < 1:
        raise BrokenImage(f"The {name} file contains no pixels.")
    if header.pixels > limits.max_pixels:
        raise TooLarge(
            f"The image has {header.width}x{header.height} pixels; at most {limits.max_pixels} are accepted.",
            limit=limits.max_pixels,
            actual=header.pixels,
        )
    if header.frames > 1:
        raise UnsupportedImage(
            f"The {name} file has {header.frames} frames or pages; send one picture at a time.", frames=header.frames
        )
    return header


def decode(body: bytes, limits: DecodeLimits, header: Header | None = None) -> Image:
    """An upright image with its metadata.

    Args:
        body: the file.
        limits: of the header and of metadata.
        header: what ``read_header`` returned for this file; it is read first if it is not given.

    Raises:
        BrokenImage: if the file is empty, damaged, or truncated.
        UnsupportedImage: if the format is none of ``formats.READABLE``, or if the file is animated or has pages.
        TooLarge: if it has more than ``limits.max_pixels`` pixels; nothing was decoded.
    """
    header = header or read_header(body, limits)
    decoded = _FORMATS[header.format].read(body, header, limits)
    pixels, alpha = decoded.pixels, decoded.alpha
    if pixels.shape[:2] != (header.height, header.width):
        raise BrokenImage(f"The {header.format} file has another size than its header says.")
    metadata, notices = _upright_metadata(decoded.metadata, header.orientation, gray=pixels.shape[2] == 1)
    return Image(
        planes.upright(pixels, header.orientation),
        None if alpha is None else planes.upright(alpha, header.orientation),
        header.format,
        metadata,
        (*decoded.notices, *notices),
    )


def _upright_metadata(metadata: Metadata, orientation: int, *, gray: bool) -> tuple[Metadata, tuple[str, ...]]:
    notices = []
    if metadata.exif is not None:
        if not exif.readable(metadata.exif):
            notices.append("EXIF was broken and was left out")
        metadata = replace(metadata, exif=exif.remove_orientation(metadata.exif))
    if metadata.icc is not None and not color.fits(metadata.icc, gray=gray):
        notices.append("the ICC profile was broken, or of another kind of image, and was left out")
        metadata = replace(metadata, icc=None)
    if metadata.xmp is not None:
        metadata = replace(metadata, xmp=xmp.remove_claims(xmp.reset_orientation(metadata.xmp)))
    resolution = metadata.resolution
    if orientation >= 5 and resolution is not None:
        metadata = replace(metadata, resolution=replace(resolution, x=resolution.y, y=resolution.x))
    return metadata, tuple(notices)


@dataclass(frozen=True)
class _Reader:
    """The reader of a format: for the header, and for the planes."""

    parse: Callable[[bytes, DecodeLimits], Header]
    read: Callable[[bytes, Header, DecodeLimits], Decoded]


_FORMATS: Mapping[str, _Reader] = MappingProxyType(
    {
        "png": _Reader(png.parse, png.read),
        "jpeg": _Reader(jpeg.parse, jpeg.read),
        "webp": _Reader(webp.parse, webp.read),
        "tiff": _Reader(tiff.parse, tiff.read),
        "avif": _Reader(avif.parse, avif.read),
        "bmp": _Reader(bmp.parse, bmp.read),
        "gif": _Reader(gif.parse, gif.read),
        "heif": _Reader(heif.parse, heif.read),
        "jxl": _Reader(jxl.parse, jxl.read),
    }
)
