"""HEIF, where the optional package pillow-heif is installed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np

from app.codec import exif, planes
from app.codec.decoders import blaming_the_file
from app.codec.errors import UnsupportedImage
from app.codec.formats import HEIF_PACKAGE, readable
from app.codec.image import Decoded, DecodeLimits, Header, Metadata
from app.codec.isobmff import bits_per_sample, color_description


@dataclass(frozen=True)
class _HeifFile:
    file: Any
    metadata: Metadata
    notices: tuple[str, ...]


def parse(body: bytes, limits: DecodeLimits) -> Header:
    """The header of a HEIF. libheif applies the container's rotation itself, so the orientation is 1.

    Raises:
        BrokenImage: if the file is damaged.
        UnsupportedImage: if the package that reads HEIF is missing.
    """
    with blaming_the_file("heif"):
        file = _open(body)
        width, height = file.size
        count = len(file)
        mode = str(file.mode)
    metadata, notices = exif.read_packets(file.info, limits)
    description = color_description(body) if metadata.icc is None else None
    if description is not None:
        metadata = replace(metadata, png_color=((b"cICP", description),))
    if count > 1:
        notices = (*notices, "further pictures in the file were left out")
    return Header(
        "heif",
        width,
        height,
        mode="gray" if mode.startswith("L") else "color",
        bits=bits_per_sample(body),
        alpha="A" in mode.upper().partition(";")[0],
        parsed=_HeifFile(file, metadata, notices),
    )


def read(_body: bytes, header: Header, _limits: DecodeLimits) -> Decoded:
    """The planes of the primary picture.

    Raises:
        BrokenImage: if pixel data is damaged or missing.
    """
    parsed: _HeifFile = header.parsed
    with blaming_the_file("heif"):
        samples = np.asarray(parsed.file)
    # libheif puts 10 or 12 bits at the top of 16.
    bits = header.bits
    pixels, alpha = planes.split(samples if samples.dtype == np.uint8 else planes.widen(samples >> (16 - bits), bits))
    return Decoded(pixels, alpha, parsed.metadata, parsed.notices)


def _open(body: bytes) -> Any:  # noqa: ANN401 - the package is optional, so its types are not at hand
    if "heif" not in readable():
        raise UnsupportedImage("HEIF is read only where pillow-heif is installed; send a JPEG, PNG or AVIF.")
    package = import_module(HEIF_PACKAGE)
    package.options.DECODE_THREADS = 1  # other cores belong to the network
    return package.open_heif(body, convert_hdr_to_8bit=False)
