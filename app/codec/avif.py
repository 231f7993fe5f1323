"""Reads AVIF."""

from __future__ import annotations

from dataclasses import dataclass, replace

import imagecodecs
from PIL import _avif

from app.codec import apertures, exif, isobmff, planes
from app.codec.decoders import blaming_the_file
from app.codec.errors import BrokenImage
from app.codec.image import Decoded, DecodeLimits, Header, Metadata


@dataclass(frozen=True)
class _AvifFile:
    crop: apertures.Crop | None
    metadata: Metadata
    notices: tuple[str, ...]


def parse(body: bytes, limits: DecodeLimits) -> Header:
    """The header of an AVIF, with its metadata. The orientation is that of the container; EXIF's is ignored in AVIF.

    Raises:
        BrokenImage: if it cannot be read.
    """
    with blaming_the_file("avif"):  # Pillow's image class would parse EXIF, which warns or fails
        (width, height), frames, mode, *packets, orientation, xmp = _avif.AvifDecoder(body, "auto", 1).get_info()
    names = ("icc_profile", "exif", "xmp")
    metadata, notices = exif.read_packets(dict(zip(names, (*packets, xmp), strict=True)), limits)
    container = isobmff.read_container(body)
    if container.missing_data():
        raise BrokenImage("The AVIF is truncated; send the whole file.")
    crop = apertures.clean_aperture(container, width, height)
    if crop is not None:
        width, height = crop.width, crop.height
    description = isobmff.color_description(container)
    if description is not None and metadata.icc is None:
        metadata = replace(metadata, png_color=((b"cICP", description),))
    return Header(
        "avif",
        width,
        height,
        mode="gray" if mode.startswith("L") else "color",
        bits=isobmff.bits_per_sample(container),
        alpha=mode.endswith("A"),
        orientation=orientation if 1 <= orientation <= 8 else 1,
        frames=frames,
        parsed=_AvifFile(crop, metadata, (*notices, *container.left_out())),
    )


def read(body: bytes, header: Header, _limits: DecodeLimits) -> Decoded:
    """The planes of an AVIF.

    Raises:
        BrokenImage: if pixel data is damaged or missing.
    """
    file: _AvifFile = header.parsed
    with blaming_the_file("avif"):  # not by Pillow, which reduces 10 and 12 bits to 8
        samples = imagecodecs.avif_decode(body, numthreads=1)
    if file.crop is not None:
        samples = file.crop.apply(samples)
    return Decoded(*planes.split(planes.widen(samples, header.bits)), file.metadata, file.notices)
