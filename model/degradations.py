"""Degradations of images: MATLAB's bicubic reduction, and JPEG.

Evaluation and training create their inputs with them. Pure functions of ``uint8`` pixels (H, W, C), with C 1 or 3.
"""

from functools import lru_cache
from io import BytesIO
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.types import Pixels8

Subsampling = Literal["4:4:4", "4:2:0"]


def cubic(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return Keys' cubic convolution kernel with a = -0.5, zero beyond a distance of 2 (Keys 1981, equation 15)."""
    x = np.abs(distance)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


@lru_cache(maxsize=64)
def _taps(size: int, wanted: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Return for every wanted sample the input samples that it reads, (wanted, n), and their weights, (wanted, n)."""
    ratio = wanted / size
    stretch = max(1.0, 1 / ratio)  # antialiasing: a reduction stretches the kernel, an enlargement does not
    centre = (np.arange(wanted) + 0.5) / ratio - 0.5
    first = np.floor(centre - 2 * stretch).astype(np.intp)
    index = first[:, None] + np.arange(int(np.ceil(4 * stretch)) + 2)
    weight = cubic((centre[:, None] - index) / stretch)
    weight /= weight.sum(axis=1, keepdims=True)
    used = np.any(weight != 0, axis=0)
    mirrored = np.concatenate([np.arange(size), np.arange(size)[::-1]])  # the edge sample is repeated
    return mirrored[index[:, used] % (2 * size)], weight[:, used]


def _resize_axis(pixels: Pixels8, wanted: int, axis: int) -> Pixels8:
    size = pixels.shape[axis]
    if size == wanted:
        return pixels
    index, weight = _taps(size, wanted)
    source = np.moveaxis(pixels, axis, 0)
    total = np.zeros((wanted, *source.shape[1:]))
    for tap in range(index.shape[1]):
        total += weight[:, tap, None, None] * source[index[:, tap]]
    # MATLAB rounds halves away from zero, and to 8 bits after each of the two directions.
    return np.moveaxis(np.floor(np.clip(total, 0, 255) + 0.5).astype(np.uint8), 0, axis)


def resize_bicubic(pixels: Pixels8, height: int, width: int) -> Pixels8:
    """Resize as MATLAB's ``imresize(pixels, [height width], "bicubic")`` does, antialiased when it reduces.

    Args:
        pixels: (H, W, C) uint8.
        height, width: wanted size in pixels, at least 1.

    Raises:
        ValueError: if a wanted side is under 1 or the input is not (H, W, C) uint8 with pixels in it.
    """
    if pixels.ndim != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise ValueError(f"expected (H, W, C) uint8 pixels, got {pixels.shape} {pixels.dtype}")
    if height < 1 or width < 1:
        raise ValueError(f"cannot resize to {height}x{width}: both sides must be at least 1")
    if height / pixels.shape[0] <= width / pixels.shape[1]:  # the direction that reduces more goes first
        return np.ascontiguousarray(_resize_axis(_resize_axis(pixels, height, 0), width, 1))
    return np.ascontiguousarray(_resize_axis(_resize_axis(pixels, width, 1), height, 0))


def crop_to_multiple(pixels: Pixels8, multiple: int) -> Pixels8:
    """Cut the right and the bottom so that both sides are multiples of ``multiple``.

    Raises:
        ValueError: if a side is shorter than ``multiple``.
    """
    height, width = (side // multiple * multiple for side in pixels.shape[:2])
    if not height or not width:
        raise ValueError(f"{pixels.shape[0]}x{pixels.shape[1]} pixels are too few to be reduced {multiple} times")
    return pixels[:height, :width]


def reduce(pixels: Pixels8, scale: int) -> Pixels8:
    """Make the low-resolution input of super-resolution benchmarks: ``scale`` times smaller, MATLAB bicubic.

    Raises:
        ValueError: if a side is not a multiple of ``scale``.
    """
    height, width = pixels.shape[:2]
    if height % scale or width % scale:
        raise ValueError(f"{height}x{width} is not a multiple of {scale}; see crop_to_multiple")
    return resize_bicubic(pixels, height // scale, width // scale)


def compress(pixels: Pixels8, quality: int, subsampling: Subsampling = "4:2:0") -> Pixels8:
    """Compress pixels with JPEG and return the decoded result.

    Args:
        pixels: (H, W, C) uint8; one channel is stored as gray, and ``subsampling`` does not apply.
        quality: 1 to 100 in libjpeg's scale.
        subsampling: how chroma is stored.

    Raises:
        ValueError: if ``quality`` is out of range.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be 1 to 100, got {quality}")
    gray = pixels.shape[2] == 1
    file = BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if gray else pixels))
    image.save(file, "JPEG", quality=quality, subsampling=-1 if gray else subsampling)
    with Image.open(file, formats=["JPEG"]) as decoded:
        return np.asarray(decoded).reshape(pixels.shape)
