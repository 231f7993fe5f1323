"""Reads JPEG."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import JpegImagePlugin

from app.codec import exif, jpeg_segments, planes, quality
from app.codec.decoders import load
from app.codec.image import Decoded, DecodeLimits, Header, Metadata, Mode


@dataclass(frozen=True)
class _JpegFile:
    segments: jpeg_segments.Segments
    metadata: Metadata
    notices: tuple[str, ...]


def parse(body: bytes, limits: DecodeLimits) -> Header:
    """The header of a JPEG, with its metadata, which holds the orientation.

    Raises:
        BrokenImage: if the file is damaged or truncated.
        UnsupportedImage: if it is lossless, hierarchical, has more than 8 bits, or too many scans.
    """
    segments = jpeg_segments.read_segments(body)
    metadata, notices = jpeg_segments.read_metadata(segments, limits)
    modes: dict[int, Mode] = {1: "gray", 4: "cmyk"}
    return Header(
        "jpeg",
        segments.width,
        segments.height,
        mode=modes.get(segments.components, "color"),
        orientation=exif.orientation_of(metadata.exif),
        quality=quality.of_jpeg(segments.content),
        parsed=_JpegFile(segments, metadata, notices),
    )


def read(_body: bytes, header: Header, _limits: DecodeLimits) -> Decoded:
    """The planes of a JPEG; CMYK becomes sRGB.

    Raises:
        BrokenImage: if pixel data is damaged or missing.
    """
    file: _JpegFile = header.parsed
    picture = load(JpegImagePlugin.JpegImageFile, jpeg_segments.picture_only(file.segments), "jpeg")
    pixels, alpha, metadata, notices = planes.of_picture(picture, file.metadata)
    return Decoded(pixels, alpha, metadata, (*file.notices, *notices))
