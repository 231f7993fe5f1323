"""Windows of an image and their attention masks: index arithmetic, no modules.

Source: section 3 of *Swin Transformer V2* (arXiv 2111.09883); ``calculate_mask`` of the official
``models/network_swin2sr.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASK_VALUE = -100.0
"""Added to the logit of two tokens that must not see one another. Logits reach 116, so this is no minus infinity."""

MASK_KINDS = 4
"""Kinds of windows on the shifted grid: bit 0 is set in the last column of windows, bit 1 in the last row."""


def partition(positions: Tensor, window: int) -> Tensor:
    """Cut a grid into windows in reading order.

    Args:
        positions: (H, W), any values; H and W are multiples of ``window``.
        window: side of a window.

    Returns:
        (nW, N): the values of each window in reading order, N = window * window.
    """
    height, width = positions.shape
    grid = positions.view(height // window, window, width // window, window)
    return grid.transpose(1, 2).reshape(-1, window * window)


def cyclic_shift(positions: Tensor, shift: int) -> Tensor:
    """Roll a grid (H, W) up and to the left by ``shift``, so that ordinary windows become shifted ones."""
    return torch.roll(positions, shifts=(-shift, -shift), dims=(0, 1))


def mask_kinds(height: int, width: int, window: int) -> Tensor:
    """The kind of every window of the shifted grid, in reading order.

    Only the windows of the last row and the last column hold pixels from opposite sides of the image, so the nine
    regions of the official code make four kinds of windows, whatever the size.

    Args:
        height, width: size in pixels, multiples of ``window``.
        window: side of a window.

    Returns:
        (nW,) of values below ``MASK_KINDS``.
    """
    rows, columns = height // window, width // window
    kinds = torch.zeros(rows, columns, dtype=torch.int64)
    kinds[:, -1] += 1
    kinds[-1, :] += 2
    return kinds.view(-1)


def attention_masks(window: int, shift: int) -> Tensor:
    """The additive mask of each kind of window.

    Args:
        window: side of a window.
        shift: pixels by which the grid is shifted.

    Returns:
        (MASK_KINDS, N, N) float32: 0 where two tokens come from the same region, ``MASK_VALUE`` where not.
    """
    wrapped = (torch.arange(window) >= window - shift).long()
    masks = torch.empty(MASK_KINDS, window * window, window * window)
    for kind in range(MASK_KINDS):
        in_last_column, in_last_row = kind & 1, kind >> 1
        region = (wrapped[:, None] * 2 * in_last_row + wrapped[None, :] * in_last_column).view(-1)
        masks[kind] = (region[:, None] != region[None, :]).float() * MASK_VALUE
    return masks
