"""Images of any sizes as one exact batch of windows.

Everything in a Swin block works per token or per window, so a batch is not (B, C, H, W) but all windows of all images.
The windows of an image follow each other in reading order, and so do a window's tokens. Tables of indices lead to the
shifted grid and back, and to the neighbours that a convolution sees. They are computed on the device from five numbers
for each window, and their shapes depend on the number of windows alone, so that a CUDA graph can contain them.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Size = tuple[int, int]

CACHE_BYTES = 32 * 2**20
"""Bound on the memory of cached layouts."""

FIELDS = 5
"""First window of the image, row and column of the window in its image, rows and columns of windows of the image."""


def lay_out(sizes: Sequence[tuple[int, int]], window: int, count: int | None = None) -> NDArray[np.int32]:
    """The grid (nW, FIELDS) of images.

    Args:
        sizes: (height, width) of each image in pixels.
        window: side of a window.
        count: nW, if it shall be more than the images have; the rest are images of one empty window.

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
    """The kind of mask (nW,) of every window of the shifted grid, below ``model.windows.MASK_KINDS``."""
    _, row, column, rows, columns = grid.unbind(1)
    return (column == columns - 1).int() + 2 * (row == rows - 1).int()


def locate(grid: Tensor, side: int, *, border: int = 0, roll: int = 0, clamp: bool = False) -> Tensor:
    """The tokens that every window sees with a border around it.

    Args:
        grid: (nW, FIELDS) int32.
        side: of a window at the scale of the tokens.
        border: pixels around the window, at that scale.
        roll: pixels by which images are shifted up and to the left, more than -side and less than side.
        clamp: whether a place outside of the image sees the nearest one inside.

    Returns:
        (nW, (side + 2 * border) ** 2) int32; -1 outside of the image without ``clamp``.
    """
    first, row, column, rows, columns = grid[:, :, None].unbind(1)
    down, right = _within(side, border, grid.device)
    y, x, height, width = row * side + down, column * side + right, rows * side, columns * side
    inside_y, inside_x = y.clamp_min(0).minimum(height - 1), x.clamp_min(0).minimum(width - 1)
    seen_y, seen_x = (inside_y + roll) % height, (inside_x + roll) % width
    window = first + seen_y // side * columns + seen_x // side
    found = window * (side * side) + seen_y % side * side + seen_x % side
    return found if clamp else torch.where((y == inside_y) & (x == inside_x), found, -1)


def pixel_rows(grid: Tensor, window: int, scale: int = 1) -> Tensor:
    """Where the tokens' output goes in the images, which follow each other in reading order.

    Returns:
        (nW * window * scale * window,) int64: each entry is the place of ``scale`` pixels in a row. Entries follow
        window by window, in reading order.
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


class Locate(Protocol):
    """``locate``, in PyTorch or as a kernel."""

    def __call__(self, grid: Tensor, side: int, *, border: int = 0, roll: int = 0, clamp: bool = False) -> Tensor:
        """As ``locate``."""


class PixelRows(Protocol):
    """``pixel_rows``, in PyTorch or as a kernel."""

    def __call__(self, grid: Tensor, window: int, scale: int = 1) -> Tensor:
        """As ``pixel_rows``."""


@dataclass(frozen=True)
class IndexFunctions:
    """What computes the index tables: these functions, or kernels that need one launch for each table."""

    locate: Locate = locate
    mask_kinds: Callable[[Tensor], Tensor] = mask_kinds
    pixel_rows: PixelRows = pixel_rows


IN_PYTORCH = IndexFunctions()


class WindowIndex:
    """The index tables of a pack, each built when it is first used.

    Tokens are in window order, or in the order of the shifted grid. A token at a finer scale is a square of pixels.

    Args:
        grid: (nW, FIELDS) int32, as ``lay_out`` makes it.
        window: side of a window.
        shift: pixels by which odd blocks shift the grid.
        sort: whether windows of the shifted order are sorted by the kind of their mask.
        functions: what computes the tables.
    """

    def __init__(
        self, grid: Tensor, window: int, shift: int, *, sort: bool = False, functions: IndexFunctions = IN_PYTORCH
    ) -> None:
        self.grid, self.window = grid, window
        self.windows_count = len(grid)
        self._shift, self._sorted, self._functions = shift, sort, functions
        self._to_shifted = functions.locate(grid, window, roll=shift).view(-1)
        self._from_shifted = functions.locate(grid, window, roll=-shift).view(-1)
        self._kinds = functions.mask_kinds(grid)
        self._no_kinds = torch.zeros_like(self._kinds)
        self._halos: dict[tuple[int, bool], Tensor] = {}
        if sort:
            order = torch.argsort(self._kinds, stable=True)
            self._kinds = self._kinds[order]
            self._to_shifted = self._to_shifted.view(len(grid), -1)[order].flatten()
            self._from_shifted = torch.empty_like(self._to_shifted)
            self._from_shifted[self._to_shifted.long()] = torch.arange(len(self._to_shifted), dtype=torch.int32)

    def order(self, *, shifted: bool) -> Tensor:
        """For each place (T,) int32 of the shifted order, the token that moves there; or of the order back."""
        return self._to_shifted if shifted else self._from_shifted

    def kinds_of(self, *, shifted: bool) -> Tensor:
        """The mask kind (nW,) int32 of each window; 0 where nothing is shifted."""
        return self._kinds if shifted else self._no_kinds

    def halo(self, side: int, *, shifted: bool = False) -> Tensor:
        """The tokens that each window sees in a 3x3 convolution.

        Args:
            side: of a window at the scale of the tokens.
            shifted: whether the tokens are in shifted order.

        Returns:
            (nW, (side + 2) ** 2) int32, windows in window order, -1 outside the image.
        """
        key = (side, shifted)
        if key not in self._halos:
            roll = -self._shift if shifted and not self._sorted else 0
            seen = self._functions.locate(self.grid, side, border=1, roll=roll)
            if shifted and self._sorted:
                found = self._from_shifted.index_select(0, seen.clamp_min(0).view(-1)).view_as(seen)
                seen = torch.where(seen < 0, seen, found)
            self._halos[key] = seen
        return self._halos[key]

    def clamped(self, side: int, border: int) -> Tensor:
        """The tokens (nW, (side + 2 * border) ** 2) int32 with a border, the nearest ones outside of the image."""
        return self._functions.locate(self.grid, side, border=border, clamp=True)


class PackedLayout(WindowIndex):
    """The index tables of images of the given sizes; images of one size must follow each other.

    Args:
        sizes: (height, width) of each image in pixels, multiples of ``window``.
        window, shift: as for ``WindowIndex``.

    Attributes:
        groups: (images, height, width) of each run of images of one size.
        windows_from_images: (T,), the pixel of each token; images follow each other in reading order.
        images_from_windows: (T,), the token of each pixel.

    Raises:
        ValueError: if there is no image, or a size is not a multiple of the window.
    """

    def __init__(self, sizes: Sequence[Size], window: int, shift: int) -> None:
        if not sizes:
            raise ValueError("A pack needs at least one image.")
        super().__init__(torch.from_numpy(lay_out(sizes, window)), window, shift, sort=True)
        self.groups = [(len(list(same)), *size) for size, same in itertools.groupby(sizes)]
        self.windows_from_images = pixel_rows(self.grid, window).int()
        self.images_from_windows = torch.empty_like(self.windows_from_images)
        self.images_from_windows[self.windows_from_images.long()] = torch.arange(
            len(self.windows_from_images), dtype=torch.int32
        )

    @property
    def nbytes(self) -> int:
        """Memory of the tables in bytes."""
        tables = [value for value in (*vars(self).values(), *list(self._halos.values())) if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tables)

    def images(self, rows: Tensor, scale: int = 1) -> list[Tensor]:
        """The images (B, C, scale * H, scale * W) of each group, as views of pixels (T * scale ** 2, C)."""
        areas = [count * height * width * scale**2 for count, height, width in self.groups]
        return [
            part.view(count, height * scale, width * scale, -1).permute(0, 3, 1, 2)
            for part, (count, height, width) in zip(torch.split(rows, areas), self.groups, strict=True)
        ]


class LayoutCache:
    """Layouts by their sizes, least recently used ones dropped above a bound on their memory.

    Safe to call from several threads. A copy begins empty.

    Args:
        window, shift: as for ``PackedLayout``.
        max_bytes: bound on the tables' memory; the newest layout is kept even if it is larger.
    """

    def __init__(self, window: int, shift: int, max_bytes: int = CACHE_BYTES) -> None:
        self.window, self.shift, self.max_bytes = window, shift, max_bytes
        self._layouts: OrderedDict[tuple[Size, ...], PackedLayout] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, sizes: Sequence[Size]) -> PackedLayout:
        """The layout for these sizes; it is built at the first call."""
        key = tuple(sizes)
        with self._lock:
            if key in self._layouts:
                self._layouts.move_to_end(key)
                return self._layouts[key]
        with torch.inference_mode(mode=False):  # autograd cannot use tensors that were made in it
            layout = PackedLayout(sizes, self.window, self.shift)
        with self._lock:
            self._layouts.setdefault(key, layout)
            while len(self._layouts) > 1 and self.nbytes > self.max_bytes:
                self._layouts.popitem(last=False)
        return layout

    @property
    def nbytes(self) -> int:
        """Memory of all tables in bytes."""
        return sum(layout.nbytes for layout in self._layouts.values())

    def __len__(self) -> int:
        return len(self._layouts)

    def __reduce__(self) -> tuple[Any, ...]:
        return LayoutCache, (self.window, self.shift, self.max_bytes)


def split_by_area(areas: Sequence[int], most: int) -> list[list[int]]:
    """Divide images, smallest first, into groups of at most ``most`` pixels, or of one image.

    Args:
        areas: pixels of each image.
        most: pixels of a group.

    Returns:
        The indices of each group.
    """
    groups: list[list[int]] = []
    room = 0
    for index in sorted(range(len(areas)), key=lambda index: areas[index]):
        if areas[index] > room:
            groups.append([])
            room = max(most, areas[index])
        groups[-1].append(index)
        room -= areas[index]
    return groups
