"""Writes PNG with the Paeth filter in C and libdeflate instead of zlib."""

from __future__ import annotations

import struct
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from app.codec import png_chunks
from model.kernels.library import load_kernel

MAX_FILTERED_BYTES = 64 * 2**20
"""Largest image for libdeflate, which needs the whole filtered image in memory; zlib streams larger ones."""

_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Gray, gray with alpha, RGB and RGB with alpha, by the number of channels."""


def encode(samples: NDArray[Any], level: int) -> bytes:
    """Write a PNG file without metadata.

    Args:
        samples: (H, W) or (H, W, C) of uint8 or uint16, C from 1 to 4.
        level: of compression, 0 to 9.
    """
    if samples.shape[:2] == (1, 1):
        samples = samples.copy()  # NumPy calls any strides of a single pixel contiguous, imagecodecs does not
    kernel = load_kernel()
    if kernel is None or samples.nbytes + len(samples) > MAX_FILTERED_BYTES:
        return bytes(imagecodecs.png_encode(samples, level=level, filter=imagecodecs.PNG.FILTER.PAETH))
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    big_endian = np.ascontiguousarray(samples, samples.dtype.newbyteorder(">"))
    pixel_bytes = channels * samples.itemsize
    rows = np.empty((height, 1 + width * pixel_bytes), np.uint8)
    kernel.paeth(big_endian.ctypes.data, height, width * pixel_bytes, pixel_bytes, rows.ctypes.data)
    header = struct.pack(">IIBBBBB", width, height, 8 * samples.itemsize, _COLOR_TYPES[channels], 0, 0, 0)
    packed = imagecodecs.deflate_encode(rows, level=level, raw=False)  # type: ignore[arg-type]  # any buffer
    return png_chunks.assemble([(b"IHDR", header), (b"IDAT", memoryview(packed)), (b"IEND", b"")])
