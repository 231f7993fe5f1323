"""Reads TIFF."""

from __future__ import annotations

from dataclasses import dataclass, replace

import PIL.Image

from app.codec import color, planes, tiff_picture, tiff_streams
from app.codec.errors import BrokenImage
from app.codec.ifd import DirectoryError
from app.codec.image import Decoded, DecodeLimits, Header, Metadata, Mode

_MODES: dict[int, Mode] = {0: "gray", 1: "gray", 3: "palette", 5: "cmyk"}


@dataclass(frozen=True)
class _TiffFile:
    picture: tiff_picture.TiffPicture
    metadata: Metadata
    notices: tuple[str, ...]


def parse(body: bytes, limits: DecodeLimits) -> Header:
    """The header of a TIFF, with its metadata.

    Raises:
        BrokenImage: if the file is damaged.
    """
    picture = tiff_picture.read_picture(body)
    metadata, orientation, notices = tiff_picture.read_metadata(picture, limits)
    width, height = picture.size
    try:
        photometric, bits, alpha = picture.photometric, picture.bits, picture.has_alpha
    except DirectoryError as error:
        raise BrokenImage("The TIFF is broken: a tag is invalid.") from error
    return Header(
        "tiff",
        width,
        height,
        mode=_MODES.get(photometric, "color"),
        bits=bits,
        alpha=alpha,
        orientation=orientation,
        frames=picture.frames,
        parsed=_TiffFile(picture, metadata, notices),
    )


def read(_body: bytes, header: Header, limits: DecodeLimits) -> Decoded:
    """The planes of a TIFF; CMYK becomes sRGB.

    Raises:
        BrokenImage: if the file is damaged or truncated.
        UnsupportedImage: if its samples or its compression are not read.
    """
    file: _TiffFile = header.parsed
    samples, colors = tiff_streams.decode(file.picture, limits)
    left_out = file.notices
    if file.picture.further_samples:
        left_out = (*left_out, "channels that are neither colour nor alpha were left out")
    if isinstance(samples, PIL.Image.Image):
        pixels, alpha, metadata, notices = planes.of_picture(samples, file.metadata)
        return Decoded(pixels, alpha, metadata, (*left_out, *notices))
    if colors == 4:
        pixels, notice = color.cmyk_to_srgb(samples[:, :, :4], file.metadata.icc)
        alpha = samples[:, :, 4] if samples.shape[2] == 5 else None
        return Decoded(pixels, alpha, replace(file.metadata, icc=None), (*left_out, notice))
    return Decoded(*planes.split(samples), file.metadata, left_out)
