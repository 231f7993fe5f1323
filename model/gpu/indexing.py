"""Where the tokens of a pack are: arithmetic on the device, from five numbers for each window.

The windows of all images follow each other, those of an image in reading order, and a window's tokens too. An index
table that is built so costs the host nothing, whatever mix of sizes comes, and its shape depends on the number of
windows alone: a captured graph can build it. A token may be a square of pixels of a finer image: ``side`` is a window's
in those pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FIELDS = 5
"""First window of the image, row and column of the window in its image, rows and columns of windows of the image."""


def lay_out(sizes: Sequence[tuple[int, int]], window: int, count: int | None = None) -> NDArray[np.int32]:
    """The grid (nW, FIELDS) of images.

    Args:
        sizes: (height, width) of each image in pixels.
        window: side of a window.
        count: nW, where that is to be more than the images have; the rest are images of one empty window.

    Raises:
        ValueError: if a size is not a multiple of the window.
    """
    for height, width in sizes:
        if height < 1 or width < 1 or height % window or width % window:
            raise ValueError(f"Size {height}x{width} is not a multiple of the window {window}: pad the image first.")
    shapes = np.array([(height // window, width // window) for height, width in sizes], np.int32).reshape(-1, 2)
    own = shapes.prod(axis=1)
    fill = max(0, (count or 0) - int(own.sum()))
    shapes = np.concatenate([shapes, np.ones((fill, 2), np.int32)])
    own = shapes.prod(axis=1)
    image = np.repeat(np.arange(len(shapes)), own)
    first = np.cumsum(own) - own
    place = np.arange(len(image)) - first[image]
    rows, columns = shapes[image].T
    return np.stack([first[image], place // columns, place % columns, rows, columns], axis=1).astype(np.int32)


def mask_kinds(grid: Tensor) -> Tensor:
    """The kind of mask (nW,) of every window of the shifted grid, as ``model.windows.mask_kinds`` numbers them."""
    _, row, column, rows, columns = grid.unbind(1)
    return (column == columns - 1).int() + 2 * (row == rows - 1).int()


def cyclic_source(grid: Tensor, side: int, shift: int) -> Tensor:
    """Which token each token becomes when every image is rolled up and to the left by ``shift``: (T,) int32."""
    _, row, column, rows, columns = grid[:, :, None].unbind(1)
    down, right = _within(side, 0, grid.device)
    y = (row * side + down + shift) % (rows * side)
    x = (column * side + right + shift) % (columns * side)
    return _locate(grid, side, y, x).view(-1)


def halo(grid: Tensor, side: int, border: int = 1, *, clamp: bool = False) -> Tensor:
    """What every window sees with a border around it: (nW, (side + 2 * border) ** 2) int32.

    Outside of the image that is T, one more than there are, or with ``clamp`` the nearest token inside.
    """
    _, row, column, rows, columns = grid[:, :, None].unbind(1)
    down, right = _within(side, border, grid.device)
    y, x = row * side + down, column * side + right
    inside_y = y.clamp_min(0).minimum(rows * side - 1)
    inside_x = x.clamp_min(0).minimum(columns * side - 1)
    found = _locate(grid, side, inside_y, inside_x)
    return found if clamp else torch.where((y == inside_y) & (x == inside_x), found, len(grid) * side * side)


def pixel_rows(grid: Tensor, window: int, scale: int = 1) -> Tensor:
    """Where the tokens' output goes in the images, which follow each other in reading order.

    Returns:
        (nW * window * scale * window,) int64: a row is ``scale`` pixels of the output, the tokens' rows of each window
        being in reading order.
    """
    first, row, column, _, columns = grid[:, :, None].long().unbind(1)
    place = torch.arange(window * scale * window, device=grid.device)
    fine_row, right = place // window, place % window
    width = columns * window
    return (
        (first * window * window * scale) + (row * window * scale + fine_row) * width + column * window + right
    ).view(-1)


def _within(side: int, border: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns, counted from the window's corner, of all that it sees in reading order."""
    length = side + 2 * border
    place = torch.arange(length * length, dtype=torch.int32, device=device)
    return place // length - border, place % length - border


def _locate(grid: Tensor, side: int, y: Tensor, x: Tensor) -> Tensor:
    """The tokens (nW, n) at places (nW, n) of the images."""
    first, columns = grid[:, 0:1], grid[:, 4:5]
    window = first + torch.div(y, side, rounding_mode="floor") * columns + torch.div(x, side, rounding_mode="floor")
    return window * (side * side) + (y % side) * side + x % side
