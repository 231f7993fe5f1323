"""Reads and writes JPEG XL, with the extra ``[jxl]``.

pylibjxl (BSD, libjxl) keeps ICC profile, EXIF and XMP, and has 8 bits; imagecodecs decodes 16 bits.
"""

from __future__ import annotations

import struct
from importlib import import_module
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from app.codec import exif, planes
from app.codec.decoders import blaming_the_file
from app.codec.errors import UnsupportedImage
from app.codec.formats import JXL_PACKAGE, readable
from app.codec.image import Decoded, DecodeLimits, Header, Metadata

_HEAD = b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl \0\0\0\0jxl "
"""Signature and file type of a container."""
_EFFORT = 3
"""A fifth of the time of libjxl's default, 7."""


def parse(body: bytes, _limits: DecodeLimits) -> Header:
    """The header of a JPEG XL. libjxl applies the orientation, so it is 1 here.

    Raises:
        BrokenImage: if it is damaged.
        UnsupportedImage: if the extra is missing, or samples are floats.
    """
    if "jxl" not in readable():
        raise UnsupportedImage("JPEG XL is read with the extra [jxl] only; send a PNG, or install swin2sr-serve[jxl].")
    with blaming_the_file("jxl"):
        info = import_module(JXL_PACKAGE).probe(body)
    if info["exponent_bits_per_sample"]:
        raise UnsupportedImage("This JPEG XL has floating-point samples, which are not supported; send 8 or 16 bits.")
    return Header(
        "jxl",
        info["width"],
        info["height"],
        mode="gray" if info["color_channels"] == 1 else "color",
        bits=info["bits_per_sample"],
        alpha=info["has_alpha"],
        frames=2 if info["have_animation"] else 1,
    )


def read(body: bytes, header: Header, limits: DecodeLimits) -> Decoded:
    """The planes of a JPEG XL, with its profile, EXIF and XMP.

    Raises:
        BrokenImage: if pixel data is damaged or missing.
    """
    with blaming_the_file("jxl"), import_module(JXL_PACKAGE).JXL(threads=1) as decoder:
        samples, packets = decoder.decode(body, metadata=True)
    if header.bits > 8:
        with blaming_the_file("jxl"):
            samples = imagecodecs.jpegxl_decode(body, numthreads=1)
    found = {"icc_profile": packets.get("icc"), "exif": packets.get("exif"), "xmp": packets.get("xmp")}
    metadata, notices = exif.read_packets(found, limits)
    return Decoded(*planes.split(np.asarray(samples)), metadata, notices)


def encode(samples: NDArray[Any], metadata: Metadata, quality: int) -> bytes:
    """A file of (H,W,3) or (H,W,4) uint8; quality 100 is lossless."""
    distance = 0.1 + (100 - quality) * 0.09 if quality >= 30 else 53 / 3000 * quality**2 - 23 / 20 * quality + 25
    with import_module(JXL_PACKAGE).JXL(effort=_EFFORT, threads=1) as encoder:
        body: bytes = encoder.encode(
            np.require(samples, requirements=("C", "W")),  # the binding refuses read-only arrays
            distance=0.0 if quality == 100 else distance,
            lossless=quality == 100,
            icc=metadata.icc,
        )
    return _with_packets(body, metadata)


def _with_packets(body: bytes, metadata: Metadata) -> bytes:
    """The file with EXIF and XMP in boxes of their own. The library would compress them, which few programs read."""
    boxes = []
    if metadata.exif is not None:
        boxes.append(_box(b"Exif", bytes(4) + metadata.exif))
    if metadata.xmp is not None:
        boxes.append(_box(b"xml ", metadata.xmp))
    if not boxes:
        return body
    if not body.startswith(_HEAD[:12]):
        body = _HEAD + _box(b"jxlc", body)
    return b"".join((body[: len(_HEAD)], *boxes, body[len(_HEAD) :]))


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content
