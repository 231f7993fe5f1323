"""HEIF, where the optional package pillow-heif is installed."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from app.codec import exif, planes
from app.codec.containers import bits_per_sample, colour_description
from app.codec.decoders import blaming_the_file
from app.codec.formats import HEIF_PACKAGE, readable
from app.codec.image import Limits, Metadata, Pixels
from app.errors import UnsupportedFormat


def read_header(body: bytes) -> tuple[int, int, int]:
    """Width, height, pictures.

    Raises:
        UnsupportedFormat: if pillow-heif is missing.
    """
    with blaming_the_file("heif"):
        file = _open(body)
        width, height = file.size
    return width, height, 1


def read(body: bytes, limits: Limits) -> tuple[Pixels, Pixels | None, Metadata, int, tuple[str, ...]]:
    """Planes of the primary picture, which libheif turns upright, its metadata, 1, and notices.

    Raises:
        UnsupportedFormat: if pillow-heif is missing.
    """
    with blaming_the_file("heif"):
        file = _open(body)
        count = len(file)
        samples = np.asarray(file)
    bits = bits_per_sample(body)
    # libheif puts 10 or 12 bits at the top of 16.
    pixels, alpha = planes.split(samples if samples.dtype == np.uint8 else planes.widen(samples >> (16 - bits), bits))
    metadata, notices = exif.read_packets(file.info, limits)
    description = colour_description(body) if metadata.icc is None else None
    if description is not None:
        metadata = replace(metadata, png_colour=((b"cICP", description),))
    if count > 1:
        notices = (*notices, "further pictures in the file were left out")
    return pixels, alpha, metadata, 1, notices


def _open(body: bytes) -> Any:  # noqa: ANN401 - the package is optional, so its types are not at hand
    if "heif" not in readable():
        raise UnsupportedFormat("HEIF is read only where pillow-heif is installed; send a JPEG, PNG or AVIF.")
    package = import_module(HEIF_PACKAGE)
    package.options.DECODE_THREADS = 1  # other cores belong to the network
    return package.open_heif(body, convert_hdr_to_8bit=False)
