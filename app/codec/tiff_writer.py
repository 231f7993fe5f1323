"""Writes TIFF: deflate with a predictor, 8 or 16 bits, and EXIF unchanged."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from app.codec.exif import STRUCTURAL, pack_rational
from app.codec.ifd import (
    DirectoryError,
    Layout,
    Value,
    copied_value,
    integer_value,
    pack_directory,
    pack_header,
    read_directory,
    read_layout,
)
from app.codec.image import Metadata

_STRIP_BYTES = 2**18
_DEFLATE, _HORIZONTAL, _UNASSOCIATED = 8, 2, 2


def encode(samples: NDArray[Any], metadata: Metadata, *, alpha: bool) -> bytes:
    """A file of one picture.

    An EXIF block is a TIFF file without a picture. The file begins with it, so that all offsets in it, including those
    of maker notes, remain valid. The directory of the picture is at the end.

    Args:
        samples: (H,W) or (H,W,C), uint8 or uint16.
        metadata: that is stored with it.
        alpha: the last sample is alpha, not multiplied into the colours.
    """
    samples = samples if samples.ndim == 3 else samples[:, :, None]
    layout, values, start = _beginning(metadata.exif)
    start += bytes(len(start) % 2)
    height, width, count = samples.shape
    rows = max(1, _STRIP_BYTES // (width * count * samples.itemsize))
    strips = list(_strips(samples, rows, layout))
    sizes = tuple(len(strip) for strip in strips)
    offsets = tuple(len(start) + offset for offset in np.cumsum((0, *sizes[:-1])).tolist())
    tags = {
        256: (width,),
        257: (height,),
        258: (samples.itemsize * 8,) * count,
        259: (_DEFLATE,),
        262: (2 if count >= 3 else 1,),
        273: offsets,
        277: (count,),
        278: (rows,),
        279: sizes,
        284: (1,),
        317: (_HORIZONTAL,),
    }
    if alpha:
        tags[338] = (_UNASSOCIATED,)
    values |= {tag: integer_value(layout, tag, numbers) for tag, numbers in tags.items()}
    values |= _packets(metadata, layout)
    end = len(start) + sum(sizes)
    packed, position = pack_directory(layout, values.values(), end + end % 2)
    assert position < 2**32, "check_output keeps TIFF files below 4 GiB"
    return b"".join((pack_header(layout, position), start[8:], *strips, bytes(end % 2), packed))


def _beginning(exif: bytes | None) -> tuple[Layout, dict[int, Value], bytes]:
    try:
        layout, first = read_layout(exif or b"")
        directory = read_directory(exif or b"", layout, first)
    except DirectoryError:
        return Layout("<"), {}, bytes(8)
    assert exif is not None, "an empty block has no directory"
    assert not layout.big, "decoding leaves out EXIF of any other kind"
    entries = (entry for tag, entry in directory.entries.items() if tag not in STRUCTURAL)
    return layout, {entry.tag: copied_value(exif, entry) for entry in entries}, exif


def _strips(samples: NDArray[Any], rows: int, layout: Layout) -> Iterator[bytes]:
    stored = samples.dtype.newbyteorder(layout.order)
    for top in range(0, len(samples), rows):
        strip = samples[top : top + rows]
        difference = strip.copy()
        difference[:, 1:] -= strip[:, :-1]
        yield bytes(imagecodecs.deflate_encode(difference.astype(stored).tobytes(), level=1))


def _packets(metadata: Metadata, layout: Layout) -> dict[int, Value]:
    values = {}
    for tag, kind, packet in ((700, 1, metadata.xmp), (34377, 1, metadata.photoshop), (34675, 7, metadata.icc)):
        if packet is not None:
            values[tag] = Value(tag, kind, len(packet), packet)
    if metadata.resolution is not None:
        for tag, value in zip((282, 283), metadata.resolution.in_inches, strict=True):
            values[tag] = Value(tag, 5, 1, pack_rational(layout.order, value))
        unit = 2 if metadata.resolution.per_metre else 1
        values[296] = Value(296, 3, 1, struct.pack(layout.order + "H", unit))
    return values
