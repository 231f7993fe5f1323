"""Reads PNG."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import imagecodecs
from PIL import PngImagePlugin

from app.codec import exif, planes, png_chunks
from app.codec.decoders import blaming_the_file, load
from app.codec.image import Decoded, DecodeLimits, Header, Metadata, Mode

_PALETTE = 3
_MODES: dict[int, Mode] = {0: "gray", 2: "color", _PALETTE: "palette", 4: "gray", 6: "color"}
_WITH_ALPHA = (4, 6)


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
    chunks = png_chunks.read_chunks(body)
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
        parsed=_PngFile(chunks, header, key, metadata, notices),
    )


def read(_body: bytes, header: Header, _limits: DecodeLimits) -> Decoded:
    """The planes of a PNG.

    Raises:
        BrokenImage: if pixel data is damaged or missing.
    """
    file: _PngFile = header.parsed
    kind, bits = file.header.kind, file.header.bits
    if kind == _PALETTE or bits < 8:
        bare = png_chunks.picture_only(file.chunks, palette=kind == _PALETTE)
        picture = load(PngImagePlugin.PngImageFile, bare, "png")
        pixels, alpha, metadata, _ = planes.of_picture(picture, file.metadata)
    else:
        with blaming_the_file("png"):
            samples = imagecodecs.png_decode(png_chunks.picture_only(file.chunks, palette=False))
        pixels, alpha = planes.split(samples)
        metadata = file.metadata
    if file.key is not None and kind in (0, 2) and len(file.key) == 2 * pixels.shape[2]:
        full = 2**bits - 1
        step = max(255 // full, 1)
        values = struct.unpack(f">{len(file.key) // 2}H", file.key)
        alpha = planes.key_alpha(pixels, tuple((value & full) * step for value in values))
    return Decoded(pixels, alpha, metadata, file.notices)
