"""From pixels to what the network takes, and back: padding, scaling, cropping, rounding.

Padding stands outside the network. Two rules are known. *Direct*: reflect on the right and at the bottom to the next
multiple of the window, which the service uses. *Script*: repeat the image mirrored, edge pixel included, always up to
the next larger multiple, as the official test script and Transformers do. Both repeat where an image is smaller than
what is to be added.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

Rule = Literal["direct", "script"]


def padded_size(size: int, window: int, rule: Rule = "direct") -> int:
    """The side in pixels that an image of ``size`` pixels is padded to, a multiple of ``window``."""
    return -(-size // window) * window if rule == "direct" else (size // window + 1) * window


def source_indices(size: int, padded: int, rule: Rule = "direct") -> np.ndarray:
    """Which of ``size`` pixels each of ``padded`` pixels of a padded side shows, shape (padded,).

    Raises:
        ValueError: if there is no pixel to repeat.
    """
    if size < 1:
        raise ValueError("an image must be at least one pixel wide and high")
    if rule == "direct":
        period = max(2 * size - 2, 1)
        steps = np.arange(padded) % period
        return np.minimum(steps, period - steps)
    steps = np.arange(padded) % (2 * size)
    return np.minimum(steps, 2 * size - 1 - steps)


def pad_direct(pixels: np.ndarray, window: int) -> np.ndarray:
    """Reflect pixels (H, W, C) of any type on the right and at the bottom to the next multiple of ``window``.

    Returns the same array where nothing is to be added.

    Raises:
        ValueError: if the image has no pixel.
    """
    return _pad(pixels, window, "direct")


def pad_script(pixels: np.ndarray, window: int) -> np.ndarray:
    """Mirror pixels (H, W, C) of any type, edge included, up to the next larger multiple of ``window``.

    Source: official ``main_test_swin2sr.py``.

    Raises:
        ValueError: if the image has no pixel.
    """
    return _pad(pixels, window, "script")


def _pad(pixels: np.ndarray, window: int, rule: Rule) -> np.ndarray:
    height, width = pixels.shape[:2]
    rows = source_indices(height, padded_size(height, window, rule), rule)
    columns = source_indices(width, padded_size(width, window, rule), rule)
    if len(rows) == height and len(columns) == width:
        return pixels
    padded: np.ndarray = pixels[rows[:, None], columns]
    return padded


def pad_tensor(images: Tensor, window: int, rule: Rule = "direct") -> Tensor:
    """Pad images (..., H, W) by a rule, differentiably."""
    height, width = images.shape[-2:]
    rows = torch.from_numpy(source_indices(height, padded_size(height, window, rule), rule)).to(images.device)
    columns = torch.from_numpy(source_indices(width, padded_size(width, window, rule), rule)).to(images.device)
    if len(rows) == height and len(columns) == width:
        return images
    return images[..., rows[:, None], columns]


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
        ValueError: if a value is not a finite number: no image is better than a wrong one.
    """
    if not np.isfinite(values).all():
        raise ValueError("the output holds values that are not finite numbers")
    scaled: np.ndarray = np.clip(values, 0, 1)
    scaled *= np.iinfo(dtype).max
    np.rint(scaled, out=scaled)
    return scaled.astype(dtype)


@dataclass(frozen=True)
class ImageProcessor:
    """Pixels to a tensor on the window grid, and the network's output back to pixels.

    Attributes:
        window_size: side of an attention window in pixels.
        scale: of the network.
        rule: how to pad.
    """

    window_size: int = 8
    scale: int = 1
    rule: Rule = "direct"

    def preprocess(self, pixels: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
        """Pad uint8 or uint16 pixels (H, W, C) and return them as (C, Hp, Wp) in [0, 1]."""
        return to_tensor(_pad(pixels, self.window_size, self.rule), dtype)

    def postprocess(self, output: Tensor, height: int, width: int, dtype: DTypeLike = np.uint8) -> np.ndarray:
        """Crop an output (C, s Hp, s Wp) to ``height`` and ``width`` input pixels and round it: (s H, s W, C)."""
        cropped = output.detach()[:, : height * self.scale, : width * self.scale]
        cropped = cropped if cropped.dtype == torch.float64 else cropped.float()
        return quantise(cropped.permute(1, 2, 0).cpu().numpy(), dtype)
