"""Pixels to tensors and back: padding, scaling, cropping, rounding.

There are two rules for padding. *Direct*, which the service uses: reflect on the right and at the bottom to the next
multiple of the window. *Script*, as in the official test script and Transformers: mirror the image, edge pixel
included, always up to the next larger multiple. Both repeat if an image is smaller than the padding.
"""

import warnings
from typing import Literal

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

Rule = Literal["direct", "script"]

CACHED_SAMPLES = 2**16
"""Samples that are rounded at a time: 256 KiB of float32 stay in a core's second cache."""


def padded_size(size: int, window: int, rule: Rule = "direct") -> int:
    """Side in pixels after padding a side of ``size`` pixels, a multiple of ``window``."""
    return -(-size // window) * window if rule == "direct" else (size // window + 1) * window


def source_indices(size: int, padded: int, rule: Rule = "direct") -> np.ndarray:
    """For each of ``padded`` pixels of a padded side, the index of its source among ``size`` pixels, (padded,).

    Raises:
        ValueError: if ``size`` is 0.
    """
    if size < 1:
        raise ValueError("an image must be at least one pixel wide and high")
    if rule == "direct":
        period = max(2 * size - 2, 1)
        steps = np.arange(padded) % period
        return np.minimum(steps, period - steps)
    steps = np.arange(padded) % (2 * size)
    return np.minimum(steps, 2 * size - 1 - steps)


def pad(pixels: np.ndarray, window: int, rule: Rule = "direct") -> np.ndarray:
    """Pad pixels (H, W, C) of any type by a rule. Returns the same array if no padding is needed.

    Raises:
        ValueError: if the image has no pixel.
    """
    height, width = pixels.shape[:2]
    rows = source_indices(height, padded_size(height, window, rule), rule)
    columns = source_indices(width, padded_size(width, window, rule), rule)
    if len(rows) == height and len(columns) == width:
        return pixels
    padded: np.ndarray = pixels[rows[:, None], columns]
    return padded


def pad_tensor(images: Tensor, window: int, rule: Rule = "direct") -> Tensor:
    """Pad images (..., H, W) by a rule, differentiably. Returns the same tensor if no padding is needed."""
    height, width = _sides(images)
    if rule == "direct" and height % window == 0 and width % window == 0 and height and width:
        return images
    rows = torch.from_numpy(source_indices(height, padded_size(height, window, rule), rule)).to(images.device)
    columns = torch.from_numpy(source_indices(width, padded_size(width, window, rule), rule)).to(images.device)
    return images[..., rows[:, None], columns]


def _sides(images: Tensor) -> tuple[int, int]:
    """Height and width as numbers, also while a program is traced."""
    height, width = images.shape[-2:]
    if torch._C._get_tracing_state() is None:  # noqa: SLF001
        return height, width
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return int(height), int(width)


def to_tensor(pixels: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn uint8 or uint16 pixels (H, W, C) into a tensor (C, H, W) in [0, 1].

    Raises:
        ValueError: for another type or number of dimensions.
    """
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim != 3:
        raise ValueError(f"pixels must be uint8 or uint16 of shape (H, W, C), not {pixels.dtype} {pixels.shape}")
    planes = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))  # a copy: pixels may be read-only
    return planes.to(dtype) / float(np.iinfo(pixels.dtype).max)


def quantise(values: np.ndarray, dtype: DTypeLike = np.uint8) -> np.ndarray:
    """Clamp values of any shape to [0, 1] and round them, half to even, to the whole range of an integer type.

    Args:
        values: floating point values, about [0, 1].
        dtype: uint8 or uint16.

    Raises:
        ValueError: if a value is not a finite number.
    """
    pixels: np.ndarray = np.empty(values.shape, dtype)
    quantise_into(pixels, values)
    return pixels


def quantise_into(pixels: np.ndarray, values: np.ndarray) -> None:
    """Write values as :func:`quantise` rounds them into ``pixels`` of the same shape, in one pass over memory.

    It works on a few rows at a time, which stay in the cache from the check to the rounded result.

    Raises:
        ValueError: if a value is not a finite number.
    """
    if not values.size:
        return
    pixels, values = np.atleast_1d(pixels), np.atleast_1d(values)
    limit = values.dtype.type(np.iinfo(pixels.dtype).max)
    rows = max(1, CACHED_SAMPLES // values[0].size)
    scratch = np.empty((min(rows, len(values)), *values.shape[1:]), values.dtype)
    for row in range(0, len(values), rows):
        band = values[row : row + rows]
        scaled = scratch[: len(band)]
        lowest, highest = band.min(), band.max()  # not a number if one of the values is not
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            raise ValueError("the output contains values that are not finite numbers")
        np.multiply(band, limit, out=scaled)
        if lowest < 0 or highest > 1:
            np.clip(scaled, 0, limit, out=scaled)
        np.rint(scaled, out=scaled)
        np.copyto(pixels[row : row + rows], scaled, casting="unsafe")
