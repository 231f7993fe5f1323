"""Reads HEIF, with libheif and libde265 through pi-heif."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pi_heif

from app.codec import apertures, exif, planes
from app.codec.decoders import blaming_the_file
from app.codec.errors import BrokenImage, UnsupportedImage
from app.codec.image import Decoded, DecodeLimits, Header, Metadata
from app.codec.isobmff import Container, bits_per_sample, color_description, read_container

_HEVC = frozenset((b"hvc1",))


@dataclass(frozen=True)
class _HeifFile:
    file: Any
    crop: apertures.Crop | None
    metadata: Metadata
    notices: tuple[str, ...]


def parse(body: bytes, limits: DecodeLimits) -> Header:
    """The header of a HEIF. libheif applies the container's rotation itself, so the orientation is 1.

    Raises:
        BrokenImage: if the file is damaged.
        UnsupportedImage: if it is an image sequence, or its picture is not in HEVC.
    """
    container = read_container(body)
    _check_coding(container)
    if container.missing_data():
        raise BrokenImage("The HEIF is truncated; send the whole file.")
    body, crop = apertures.without_apertures(body, container)
    with blaming_the_file("heif"):
        file = _open(body)
        width, height = file.size if crop is None else (crop.width, crop.height)
        count = len(file)
        mode = str(file.mode)
    metadata, notices = exif.read_packets(file.info, limits)
    description = color_description(container) if metadata.icc is None else None
    if description is not None:
        metadata = replace(metadata, png_color=((b"cICP", description),))
    notices = (*notices, *container.left_out())
    if count > 1:
        notices = (*notices, "further pictures in the file were left out")
    return Header(
        "heif",
        width,
        height,
        mode="gray" if mode.startswith("L") else "color",
        bits=bits_per_sample(container),
        alpha="A" in mode.upper().partition(";")[0],
        parsed=_HeifFile(file, crop, metadata, notices),
    )


def read(_body: bytes, header: Header, _limits: DecodeLimits) -> Decoded:
    """The planes of the primary picture.

    Raises:
        BrokenImage: if pixel data is damaged or missing.
    """
    parsed: _HeifFile = header.parsed
    with blaming_the_file("heif"):
        samples = np.asarray(parsed.file)
        samples = (samples if parsed.crop is None else parsed.crop.apply(samples)).copy()  # libheif owns the memory
    # libheif stores 10 or 12 bits in the highest bits of 16.
    bits = header.bits
    pixels, alpha = planes.split(samples if samples.dtype == np.uint8 else planes.widen(samples >> (16 - bits), bits))
    return Decoded(pixels, alpha, parsed.metadata, parsed.notices)


def _check_coding(container: Container) -> None:
    if not container.items and container.tracks:
        raise UnsupportedImage("This HEIF is an image sequence, which is not supported; send one picture.")
    others = container.coding() - _HEVC
    if others:
        names = ", ".join(sorted(ascii(kind.decode("latin-1")) for kind in others))
        raise UnsupportedImage(f"This HEIF has a picture of the kind {names}; only HEVC (hvc1) is read. Send a JPEG.")


def _open(body: bytes) -> Any:  # noqa: ANN401 - the package has no types
    options = pi_heif.options
    options.DECODE_THREADS = 1  # the other cores are for the network
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    return pi_heif.open_heif(body, convert_hdr_to_8bit=False)
