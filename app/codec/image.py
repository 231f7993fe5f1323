"""Images, headers, metadata, and the options of decoding and encoding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
"""Samples of 8 or 16 bits in this machine's byte order."""

Mode: TypeAlias = Literal["gray", "color", "palette", "cmyk"]
"""How a file stores its samples."""


@dataclass(frozen=True)
class DecodeLimits:
    """Limits of an upload, checked before it is decoded.

    Args:
        max_pixels: largest width times height that is decoded.
        max_profile_bytes: largest ICC profile, EXIF or XMP packet after inflating; larger ones are left out.
    """

    max_pixels: int = 50_000_000
    max_profile_bytes: int = 16 * 2**20


def bounded(packet: bytes | None, name: str, limits: DecodeLimits, notices: list[str]) -> bytes | None:
    """The packet; None and a further notice if it is larger than ``limits`` allow."""
    if packet is None or len(packet) <= limits.max_profile_bytes:
        return packet
    notices.append(f"{name} of more than {limits.max_profile_bytes} bytes was left out")
    return None


@dataclass(frozen=True)
class Header:
    """The header of a file. Parsed once by ``read_header`` and passed to ``decode``.

    Args:
        format: a name of ``formats.READABLE``.
        width, height: pixels as stored, before the orientation is applied.
        mode: how the samples are stored. A palette decodes to color, or to gray if it holds grays only; CMYK decodes
            to color.
        bits: bits of a stored sample; more than 8 decode to 16.
        alpha: whether the decoded image has an alpha plane.
        orientation: EXIF's orientation, 1 to 8; what ``decode`` applies.
        frames: pictures in the file that follow each other (animation, pages); one is all that is served.
        quality: estimated encoder quality of a lossy JPEG or WebP, 1 to 100, from its quantization tables.
        parsed: the state of the format's reader.
    """

    format: str
    width: int
    height: int
    mode: Mode = "color"
    bits: int = 8
    alpha: bool = False
    orientation: int = 1
    frames: int = 1
    quality: int | None = None
    parsed: Any = field(default=None, repr=False, compare=False)

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height

    @property
    def upright_width(self) -> int:
        """Columns of the decoded image."""
        return self.height if self.orientation >= 5 else self.width

    @property
    def upright_height(self) -> int:
        """Rows of the decoded image."""
        return self.width if self.orientation >= 5 else self.height

    @property
    def channels(self) -> int:
        """Color planes of the decoded image: 1 or 3; a palette of grays may have 1 where this is 3."""
        return 1 if self.mode == "gray" else 3

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the decoded planes, alpha included."""
        return self.pixels * (self.channels + self.alpha) * (2 if self.bits > 8 else 1)


@dataclass(frozen=True)
class Resolution:
    """Pixels per metre, or, if ``per_metre`` is false, the aspect ratio of a pixel as x to y."""

    x: float
    y: float
    per_metre: bool = True

    @property
    def in_inches(self) -> tuple[float, float]:
        """Pixels per inch, or the aspect ratio of a pixel."""
        return (self.x * 0.0254, self.y * 0.0254) if self.per_metre else (self.x, self.y)


@dataclass(frozen=True)
class Metadata:
    """The metadata of an image.

    Args:
        icc: the profile that the pixels are in.
        exif: a TIFF structure without the ``Exif`` prefix and without an orientation.
        xmp: an XMP packet.
        photoshop: Photoshop's resource block, which contains IPTC captions.
        resolution: pixels for each metre.
        png_colour: the chunks cICP, gAMA, cHRM, sRGB, mDCV and cLLI of a PNG, as type and content.
        texts: texts and comments as text chunks of a PNG, type and content.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    photoshop: bytes | None = None
    resolution: Resolution | None = None
    png_color: tuple[tuple[bytes, bytes], ...] = ()
    texts: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True)
class Decoded:
    """What a format's reader returns: planes as stored, and metadata whose EXIF is untouched.

    Args:
        pixels: (H,W,C), C is 1 or 3.
        alpha: (H,W), or None.
        metadata: as in the file.
        notices: sentences, in ASCII, on what reading left out.
    """

    pixels: Pixels
    alpha: Pixels | None
    metadata: Metadata
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Image:
    """An upright image.

    Args:
        pixels: (H,W,C) uint8 or uint16, C is 1 (gray) or 3 (colour, in the space of ``metadata``); alpha not applied.
        alpha: (H,W) of the same type, 0 is transparent; None when the file has none.
        format: what it was read from, a name of ``formats.READABLE``.
        metadata: of the file.
        notices: sentences, in ASCII, on what reading lost.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    format: str = "png"
    metadata: Metadata = field(default_factory=Metadata)
    notices: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.pixels.shape[0])

    @property
    def gray(self) -> bool:
        """Whether there is one colour plane."""
        return int(self.pixels.shape[2]) == 1

    @property
    def deep(self) -> bool:
        """Whether samples have 16 bits."""
        return self.pixels.dtype == np.uint16


@dataclass(frozen=True)
class EncodeOptions:
    """How an image is written.

    Args:
        format: a name of ``formats.WRITABLE``, or ``same`` for the format it came in.
        quality: 1 to 100, for JPEG, WebP and AVIF; 100 makes WebP lossless.
        metadata: ``keep``, or ``strip``: convert to sRGB, then drop everything.
        png_level: zlib's level, 0 to 9; 1 is the fastest that compresses.
    """

    format: str = "png"
    quality: int = 95
    metadata: str = "keep"
    png_level: int = 1


@dataclass(frozen=True)
class Encoded:
    """A file.

    Args:
        body: its bytes.
        media_type: for ``Content-Type``.
        extension: with its dot.
        notices: sentences, in ASCII, on what reading and writing lost.
    """

    body: bytes
    media_type: str
    extension: str
    notices: tuple[str, ...] = ()

    @property
    def notice(self) -> str:
        """All notices as one line; empty if nothing was lost."""
        return "; ".join(self.notices)
