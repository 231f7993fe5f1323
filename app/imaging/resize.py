"""Resizing and blending of whole images, in bands: a whole image in floating point needs four times the memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_RADIUS = {Image.Resampling.LANCZOS: 3, Image.Resampling.BICUBIC: 2}
_BAND_ROWS = 256


def resize(
    pixels: NDArray[Any], height: int, width: int, box: tuple[float, float, float, float] | None = None
) -> NDArray[Any]:
    """Resize pixels (H, W, C) of uint8 or uint16 with Pillow's antialiased Lanczos filter.

    Args:
        pixels: the image.
        height, width: of the result.
        box: left, top, right and bottom of the part to resize, in pixels; the whole image by default.
    """
    whole = (0.0, 0.0, float(pixels.shape[1]), float(pixels.shape[0]))
    box = box or whole
    if box == whole and pixels.shape[:2] == (height, width):
        return pixels
    resized = np.empty((height, width, pixels.shape[2]), pixels.dtype)
    for top in range(0, height, _BAND_ROWS):
        rows = slice(top, min(top + _BAND_ROWS, height))
        resized[rows] = _round(_resize_rows(pixels, (height, width), box, rows, Image.Resampling.LANCZOS), pixels.dtype)
    return resized


def blend_with_bicubic(pixels: NDArray[Any], source: NDArray[Any], strength: float) -> NDArray[Any]:
    """Blend a network's result with its input, which Pillow's bicubic filter brings to the same size.

    Args:
        pixels: (sH, sW, C) uint8 or uint16.
        source: (H, W, C) of the same type.
        strength: 1 keeps the result, 0 gives the resized input.
    """
    if strength == 1:
        return pixels
    height, width = pixels.shape[:2]
    box = (0.0, 0.0, float(source.shape[1]), float(source.shape[0]))
    blended = np.empty_like(pixels)
    for top in range(0, height, _BAND_ROWS):
        rows = slice(top, min(top + _BAND_ROWS, height))
        if source.shape == pixels.shape:
            before = source[rows].astype(np.float32)
        else:
            as_stored = source.dtype == np.uint8
            before = _resize_rows(source, (height, width), box, rows, Image.Resampling.BICUBIC, as_stored=as_stored)
            before = _round(before, pixels.dtype).astype(np.float32)
        before += np.float32(strength) * (pixels[rows] - before)
        blended[rows] = _round(before, pixels.dtype)
    return blended


def _resize_rows(
    pixels: NDArray[Any],
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    rows: slice,
    filter_: Image.Resampling,
    *,
    as_stored: bool = False,
) -> NDArray[np.float32]:
    """Rows of the resized image, in floating point, from the rows of the image that they depend on.

    With ``as_stored``, uint8 is resized as uint8: Pillow then rounds and clips between its two passes.
    """
    height, width = size
    left, above, right, below = box
    ratio = (below - above) / height
    reach = math.ceil(_RADIUS[filter_] * max(ratio, 1)) + 1
    start, stop = above + rows.start * ratio, above + rows.stop * ratio
    first = max(math.floor(start) - reach, 0)
    part = pixels[first : math.ceil(stop) + reach]
    part_box = (left, start - first, right, min(stop - first, len(part)))
    band = np.empty((rows.stop - rows.start, width, pixels.shape[2]), np.float32)
    for channel in range(pixels.shape[2]):
        values = part[:, :, channel] if as_stored else part[:, :, channel].astype(np.float32)
        plane = Image.fromarray(np.ascontiguousarray(values))
        band[:, :, channel] = np.asarray(plane.resize((width, len(band)), filter_, part_box))
    return band


def _round(values: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.rint(np.clip(values, 0, np.iinfo(dtype).max)).astype(dtype)
