"""Windows of an image and their attention masks: index arithmetic, no modules.

Source: section 3 of *Swin Transformer V2* (arXiv 2111.09883); ``calculate_mask`` of the official
``models/network_swin2sr.py``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASK_VALUE = -100.0
"""Added to the logit of two tokens of different regions. Logits reach 116, so this is not minus infinity."""

MASK_KINDS = 4
"""Kinds of windows on the shifted grid: bit 0 is set in the last column of windows, bit 1 in the last row."""


def partition(images: Tensor, window: int) -> Tensor:
    """Cut images into windows in reading order.

    Args:
        images: (B, H, W, C); H and W are multiples of ``window``.
        window: side of a window in pixels.

    Returns:
        (B * nW, N, C), N = window * window.
    """
    batch, height, width, channels = images.shape
    grid = images.view(batch, height // window, window, width // window, window, channels)
    return grid.transpose(2, 3).reshape(-1, window * window, channels)


def merge(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Undo ``partition``: windows (B * nW, N, C) to images (B, H, W, C)."""
    channels = windows.shape[-1]
    grid = windows.view(-1, height // window, width // window, window, window, channels)
    return grid.transpose(2, 3).reshape(-1, height, width, channels)


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device | None = None) -> Tensor:
    """The additive attention mask of every window of the shifted grid.

    A window at the border holds pixels from opposite sides of the image. The grid has nine regions; tokens of different
    regions are masked.

    Returns:
        (nW, N, N) float32: 0 where two tokens come from the same region, else ``MASK_VALUE``.
    """
    rows, columns = (
        (side >= size - window).long() + (side >= size - shift).long()
        for size, side in ((height, torch.arange(height, device=device)), (width, torch.arange(width, device=device)))
    )
    regions = 3 * rows[:, None] + columns  # (H, W)
    region = partition(regions[None, :, :, None], window).squeeze(-1)  # (nW, N)
    return (region[:, :, None] != region[:, None, :]).float() * MASK_VALUE


def mask_of_each_kind(window: int, shift: int) -> Tensor:
    """The attention masks by kind: (MASK_KINDS, N, N) float32. An image of two by two windows has each kind once."""
    return shift_mask(2 * window, 2 * window, window, shift)


def relative_coords_table(window: int) -> Tensor:
    """Log-spaced offsets ((2 * window - 1) ** 2, 2) between two tokens, the input of the position bias."""
    offsets = torch.arange(-(window - 1), window, dtype=torch.get_default_dtype()) / (window - 1) * 8
    offsets = torch.sign(offsets) * torch.log2(offsets.abs() + 1) / math.log2(8)
    return torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), dim=-1).view(-1, 2)


def relative_position_index(window: int) -> Tensor:
    """Row (N, N) of the offset table for every pair of tokens."""
    position = torch.arange(window)
    rows, columns = position.repeat_interleave(window), position.repeat(window)
    down = rows[:, None] - rows[None, :] + window - 1
    right = columns[:, None] - columns[None, :] + window - 1
    return down * (2 * window - 1) + right
