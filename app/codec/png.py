"""Reads PNG."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import imagecodecs
import numpy as np
from PIL import PngImagePlugin

from app.codec import exif, planes, png_chunks
from app.codec.decoders import blaming_the_file, load
from app.codec.errors import BrokenImage
from app.codec.image import Decoded, DecodeLimits, Header, Metadata, Mode, Pixels

_PALETTE, _RGB, _GRAY_ALPHA, _RGBA = 3, 2, 4, 6
_MODES: dict[int, Mode] = {0: "gray", 2: "color", _PALETTE: "palette", 4: "gray", 6: "color"}
_WITH_ALPHA = (_GRAY_ALPHA, _RGBA)
_BY_SPNG = frozenset(((0, 8), (_RGB, 8), (_RGBA, 8), (_RGBA, 16)))
"""Kind and bits of what libspng decodes: it notices missing pixels, and Pillow does not. Not by ``png_decode`` of
imagecodecs: with each broken file it releases a reference to None that it does not hold, until Python aborts."""


@dataclass(frozen=True)
class _PngFile:
    chunks: list[png_chunks.Chunk]
    header: png_chunks.PngHeader
    key: bytes | None
    metadata: Metadata
    notices: tuple[str, ...]


def parse(body: bytes, limits: DecodeLimits) -> Header:
    """The header of a PNG, with its metadata, which holds the orientation.

    Raises:
        BrokenImage: if the file is damaged or truncated.
    """
    chunks, damage = png_chunks.read_chunks(body)
    header = png_chunks.read_header(chunks)
    metadata, notices = png_chunks.read_metadata(chunks, limits)
    key = next((bytes(content) for kind, content in chunks if kind == b"tRNS"), None)
    return Header(
        "png",
        header.width,
        header.height,
        mode=_MODES[header.kind],
        bits=header.bits,
        alpha=header.kind in _WITH_ALPHA or key is not None,
        orientation=exif.orientation_of(metadata.exif),
        frames=header.frames,
        parsed=_PngFile(chunks, header, key, metadata, (*damage, *notices)),
    )


def read(_body: bytes, header: Header, _limits: DecodeLimits) -> Decoded:
    """The planes of a PNG.

    Raises:
        BrokenImage: if pixel data is damaged or missing.
    """
    file: _PngFile = header.parsed
    kind, bits = file.header.kind, file.header.bits
    if kind == _PALETTE and not any(name == b"PLTE" and len(content) >= 3 for name, content in file.chunks):
        raise BrokenImage("The PNG has no palette.")
    if (kind, bits) not in _BY_SPNG:
        png_chunks.check_complete(file.chunks, file.header)
    try:
        pixels, alpha = _decode(file, file.chunks)
    except BrokenImage:
        pixels, alpha = _decode(file, png_chunks.repair(file.chunks, file.header))
    if file.key is not None and kind in (0, 2) and len(file.key) == 2 * pixels.shape[2]:
        full = 2**bits - 1
        step = max(255 // full, 1)
        values = struct.unpack(f">{len(file.key) // 2}H", file.key)
        alpha = planes.key_alpha(pixels, tuple((value & full) * step for value in values))
    return Decoded(pixels, alpha, file.metadata, file.notices)


def _decode(file: _PngFile, chunks: Sequence[tuple[bytes, bytes | memoryview]]) -> tuple[Pixels, Pixels | None]:
    kind, bits = file.header.kind, file.header.bits
    bare = png_chunks.picture_only(chunks, palette=kind == _PALETTE)
    if (kind, bits) in _BY_SPNG:
        with blaming_the_file("png"):
            samples = imagecodecs.spng_decode(bare)
        return planes.split(samples)
    if (kind, bits) == (_GRAY_ALPHA, 16):  # filtered as four bytes a pixel, like RGBA
        octets = load(PngImagePlugin.PngImageFile, png_chunks.as_kind(bare, _RGBA, 8), "png")
        return planes.split(np.array(octets).view(">u2").astype(np.uint16))
    if (kind, bits) == (_RGB, 16):  # Pillow keeps one byte of each sample
        samples = np.asarray(load(PngImagePlugin.PngImageFile, bare, "png", "RGB;16B")).astype(np.uint16)
        samples <<= 8
        samples |= np.asarray(load(PngImagePlugin.PngImageFile, bare, "png", "RGB;16L"))
        return planes.split(samples)
    picture = load(PngImagePlugin.PngImageFile, bare, "png")
    if bits == 16:
        return planes.split(np.asarray(picture).astype(np.uint16, copy=False))
    return planes.of_picture(picture, file.metadata)[:2]
