"""Writes PNG with the Paeth filter in C, and with ISA-L or libdeflate instead of zlib."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import imagecodecs
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from app.codec import png_chunks
from model.kernels.library import Kernel, load_kernel

PART_BYTES = 16 * 2**20
"""Filtered bytes that are compressed at once; an image of more is written part by part."""

ISAL_LEVEL = isal_zlib.ISAL_BEST_COMPRESSION
"""3 of 0 to 3; on photographs it is as fast as level 2 and the smallest."""

_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Gray, gray with alpha, RGB and RGB with alpha, by the number of channels."""


def encode(samples: NDArray[Any], level: int) -> bytes:
    """Write a PNG file without metadata.

    Level 1 takes ISA-L for images with detail. Drawn graphics, whose filtered samples are mostly zero, take libdeflate:
    it is as fast there, and its files are a third smaller.

    Args:
        samples: (H, W) or (H, W, C) of uint8 or uint16, C from 1 to 4.
        level: of compression, 0 to 9.
    """
    if samples.shape[:2] == (1, 1):
        samples = samples.copy()  # NumPy calls any strides of a single pixel contiguous, imagecodecs does not
    kernel = load_kernel()
    large = samples.nbytes + len(samples) > PART_BYTES
    if kernel is None or (level != 1 and large):
        return bytes(imagecodecs.png_encode(samples, level=level, filter=imagecodecs.PNG.FILTER.PAETH))
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    header = struct.pack(">IIBBBBB", width, height, 8 * samples.itemsize, _COLOR_TYPES[channels], 0, 0, 0)
    parts = _filter(kernel, samples.reshape(height, width, channels))
    if large:
        packer = isal_zlib.compressobj(ISAL_LEVEL)
        packed = b"".join([*(packer.compress(rows) for rows in parts), packer.flush()])
    else:
        (rows,) = parts
        drawn = 2 * np.count_nonzero(rows) < rows.size
        if level == 1 and not drawn:
            packed = isal_zlib.compress(rows, ISAL_LEVEL)
        else:
            packed = bytes(imagecodecs.deflate_encode(rows, level=level, raw=False))  # type: ignore[arg-type]  # any buffer
    return png_chunks.assemble([(b"IHDR", header), (b"IDAT", memoryview(packed)), (b"IEND", b"")])


def _filter(kernel: Kernel, samples: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    """Yield the filtered rows in parts of at most ``PART_BYTES``: (rows, 1 + bytes of a row)."""
    height, width, channels = samples.shape
    pixel_bytes = channels * samples.itemsize
    row_bytes = width * pixel_bytes
    step = max(1, PART_BYTES // (1 + row_bytes))
    for top in range(0, height, step):
        above = min(top, 1)  # the filter needs the row above a part, and its answer for that row is dropped
        part = np.ascontiguousarray(samples[top - above : top + step], samples.dtype.newbyteorder(">"))
        rows = np.empty((len(part), 1 + row_bytes), np.uint8)
        kernel.paeth(part.ctypes.data, len(part), row_bytes, pixel_bytes, rows.ctypes.data)
        yield rows[above:]
