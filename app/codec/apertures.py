"""The clean aperture of AVIF and HEIF: the part of the picture that is shown (ISO 14496-12, 12.1.4)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from app.codec.isobmff import DERIVED, Container

_CLAP = struct.Struct(">IIIIiIiI")
"""Width, height, and offsets from the middle, each as a fraction."""


@dataclass(frozen=True)
class Crop:
    """A rectangle in pixels."""

    left: int
    top: int
    width: int
    height: int

    def apply(self, samples: Any) -> Any:  # noqa: ANN401 - an array of any type
        """The rectangle of (H,W) or (H,W,C)."""
        return samples[self.top : self.top + self.height, self.left : self.left + self.width]

    def turned(self, width: int) -> Crop:
        """The same part of a picture of ``width`` columns after a turn by 90 degrees to the left."""
        return Crop(self.top, width - self.left - self.width, self.height, self.width)

    def mirrored(self, width: int, height: int, *, columns: bool) -> Crop:
        """The same part of a picture after its columns or its rows were reversed."""
        left = width - self.left - self.width if columns else self.left
        top = self.top if columns else height - self.top - self.height
        return Crop(left, top, self.width, self.height)


def clean_aperture(container: Container, width: int, height: int) -> Crop | None:
    """The part of the coded picture that is shown; None for all of it, and if it is invalid."""
    return _crop(container.picture.find(b"clap"), width, height)


def _crop(content: bytes | None, width: int, height: int) -> Crop | None:
    if content is None or len(content) < _CLAP.size:
        return None
    numbers = _CLAP.unpack_from(content)
    if not all(numbers[1::2]):
        return None
    across, down, right, below = (top / bottom for top, bottom in zip(numbers[::2], numbers[1::2], strict=True))
    left, top = (width - 1) / 2 + right - (across - 1) / 2, (height - 1) / 2 + below - (down - 1) / 2
    crop = Crop(round(left), round(top), round(across), round(down))
    inside = crop.left >= 0 and crop.top >= 0 and crop.left + crop.width <= width and crop.top + crop.height <= height
    return crop if inside and crop.width and crop.height else None


def without_apertures(body: bytes, container: Container) -> tuple[bytes, Crop | None]:
    """The file with apertures of the whole picture, and what is to be shown of the picture as libheif returns it.

    libheif 1.23 limits the memory of a coded item to the size of its aperture, and refuses the item.
    """
    picture = container.picture
    extent = picture.find(b"ispe")
    if not container.apertures or picture.kind in DERIVED or extent is None or len(extent) < 12:
        return body, None
    width, height = cropped_width, cropped_height = struct.unpack_from(">II", extent, 4)
    crop = None
    for kind, content in picture.properties:  # applied in this order
        if kind == b"clap":
            cropped_width, cropped_height = width, height
            crop = crop or _crop(content, width, height)
        elif kind == b"irot" and content:
            for _ in range(content[0] & 3):
                crop = crop and crop.turned(width)
                width, height = height, width
        elif kind == b"imir" and content:
            crop = crop and crop.mirrored(width, height, columns=bool(content[0] & 1))
    edited = bytearray(body)
    for start, end in container.apertures:
        if end - start >= _CLAP.size:
            _CLAP.pack_into(edited, start, cropped_width, 1, cropped_height, 1, 0, 1, 0, 1)
    return bytes(edited), crop
