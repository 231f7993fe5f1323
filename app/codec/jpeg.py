"""Reads JPEG."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import PIL.Image
from PIL import JpegImagePlugin

from app.codec import exif, jpeg_segments, planes, quality
from app.codec.decoders import load
from app.codec.errors import BrokenImage, UnsupportedImage
from app.codec.image import Decoded, DecodeLimits, Header, Metadata, Mode

_CHECKED_PIXELS = 2**20
"""Pictures up to this size are always checked for missing data, which takes as long as decoding."""
_FILL_LEVELS = (127, 128)
"""The value with which libjpeg fills missing data."""


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
        segments.frame.width,
        segments.frame.height,
        mode=modes.get(len(segments.frame.sampling), "color"),
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
    if file.segments.incomplete:
        raise BrokenImage("The JPEG is broken or truncated; send the whole file.")
    picture = load(JpegImagePlugin.JpegImageFile, jpeg_segments.picture_only(file.segments), "jpeg")
    if _may_be_cut(file.segments, picture) and _is_cut(file.segments, picture):
        raise BrokenImage("The JPEG is broken or truncated; send the whole file.")
    pixels, alpha, metadata, notices = planes.of_picture(picture, file.metadata)
    return Decoded(pixels, alpha, metadata, (*file.notices, *notices))


def check_complete(body: bytes) -> None:
    """Refuse a JPEG stream inside a TIFF in which pixel data is missing; bytes after it are ignored.

    A stream of a kind that is no file by itself, such as gray with alpha, is left to libtiff.

    Raises:
        BrokenImage: if it is damaged, or pixel data is missing.
    """
    try:
        segments = jpeg_segments.read_segments(body)
    except UnsupportedImage:
        return
    if segments.incomplete:
        raise BrokenImage("A JPEG in the file is broken or truncated; send the whole file.")
    picture = load(JpegImagePlugin.JpegImageFile, jpeg_segments.picture_only(segments), "jpeg")
    if _may_be_cut(segments, picture) and _is_cut(segments, picture):
        raise BrokenImage("A JPEG in the file is broken or truncated; send the whole file.")


def _may_be_cut(segments: jpeg_segments.Segments, picture: PIL.Image.Image) -> bool:
    """Whether the last pixels may be libjpeg's filler. A scan that is read to its end is complete."""
    if segments.frame.arithmetic:
        return False
    last = np.asarray(picture.crop((picture.width - 1, picture.height - 1, picture.width, picture.height)))
    filled = all(level in _FILL_LEVELS for level in last.ravel().tolist())
    several = segments.frame.progressive or len(segments.scans) > 1
    return not segments.ended or several or filled or picture.width * picture.height <= _CHECKED_PIXELS


def _is_cut(segments: jpeg_segments.Segments, picture: PIL.Image.Image) -> bool:
    """Whether the picture depends on the bytes after its scans."""
    try:
        other = load(JpegImagePlugin.JpegImageFile, jpeg_segments.picture_only(segments, filled=True), "jpeg")
    except BrokenImage:
        return True
    rows = max(1, _CHECKED_PIXELS // picture.width)
    boxes = ((0, top, picture.width, min(top + rows, picture.height)) for top in range(0, picture.height, rows))
    return any(not np.array_equal(np.asarray(picture.crop(box)), np.asarray(other.crop(box))) for box in boxes)
