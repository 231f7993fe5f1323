"""Images of any sizes as one exact batch.

Everything in a Swin block is per token or per window, so a batch is not (B, C, H, W) but all windows of all images.
Convolutions see a canvas: images side by side with gaps of zeros, which are what zero padding would have put there.
A ``PackedLayout`` holds the index tables between the three orders of tokens:

    canvas   <->   windows   <->   shifted windows (sorted by the kind of their attention mask)
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model import windows

Size = tuple[int, int]
CACHE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Place:
    """Where an image lies on the canvas: which sheet, and its rectangle there in low-resolution pixels."""

    sheet: int
    top: int
    left: int
    height: int
    width: int

    def crop(self, canvas: Tensor, scale: int = 1) -> Tensor:
        """The image (C, scale * height, scale * width) on a canvas (S, C, scale * H, scale * W), as a view."""
        rows = slice(scale * self.top, scale * (self.top + self.height))
        columns = slice(scale * self.left, scale * (self.left + self.width))
        return canvas[self.sheet, :, rows, columns]


class PackedLayout:
    """The index tables that take images of the given sizes through one forward pass.

    Args:
        sizes: (height, width) of each image in pixels, multiples of ``window``.
        window: side of an attention window.
        shift: pixels by which odd blocks shift the window grid.
        device: where the tables live.

    Attributes:
        sheets, height, width: the canvas is (sheets, C, height, width). Images of one size have a sheet each.
        places: where each image lies.
        windows_count: nW, the windows of all images.
        counts: how many windows of each mask kind the shifted order has.

    Raises:
        ValueError: if there is no image, or a size is not a multiple of the window.
    """

    def __init__(
        self, sizes: Sequence[Size], window: int, shift: int, device: torch.device | str | None = None
    ) -> None:
        if not sizes:
            raise ValueError("A pack needs at least one image.")
        for height, width in sizes:
            if height < 1 or width < 1 or height % window or width % window:
                raise ValueError(
                    f"Size {height}x{width} is not a multiple of the window {window}: pad the image first."
                )
        self.sizes, self.window, self.shift = tuple(sizes), window, shift
        self.places, (self.sheets, self.height, self.width) = _arrange(self.sizes)
        self.windows_count = sum(height * width for height, width in sizes) // window**2
        self._build_tables(torch.device(device or "cpu"))

    def _build_tables(self, device: torch.device) -> None:
        positions = torch.arange(self.sheets * self.height * self.width).view(self.sheets, self.height, self.width)
        plain, shifted, kinds = [], [], []
        for place in self.places:
            grid = place.crop(positions[:, None])[0]
            plain.append(windows.partition(grid, self.window))
            shifted.append(windows.partition(windows.cyclic_shift(grid, self.shift), self.window))
            kinds.append(windows.mask_kinds(place.height, place.width, self.window))
        kind = torch.cat(kinds)
        by_kind = torch.argsort(kind, stable=True)
        self.counts = tuple(torch.bincount(kind, minlength=windows.MASK_KINDS).tolist())
        canvas_of_plain = torch.cat(plain).view(-1)
        canvas_of_shifted = torch.cat(shifted)[by_kind].reshape(-1)
        plain_of_canvas = _invert(canvas_of_plain, positions.numel())
        shifted_of_canvas = _invert(canvas_of_shifted, positions.numel())

        def table(indices: Tensor) -> Tensor:
            return indices.to(device=device, dtype=torch.int32)

        self.windows_from_canvas = table(canvas_of_plain)
        self.canvas_from_windows = table(plain_of_canvas)
        self.canvas_from_shifted = table(shifted_of_canvas)
        self.shifted_from_windows = table(plain_of_canvas[canvas_of_shifted])
        self.windows_from_shifted = table(shifted_of_canvas[canvas_of_plain])
        self.halo_from_windows: Tensor | None = None
        self.halo_from_shifted: Tensor | None = None
        self.gaps: Tensor | None = None
        covered = torch.zeros(positions.numel(), dtype=torch.bool)
        covered[canvas_of_plain] = True
        if self.windows_from_canvas.device.type == "cpu":
            self.halo_from_windows = table(self._halos(torch.where(covered, plain_of_canvas, -1)))
            self.halo_from_shifted = table(self._halos(torch.where(covered, shifted_of_canvas, -1)))
        if canvas_of_plain.numel() < positions.numel():
            self.gaps = ~covered.view(self.sheets, 1, self.height, self.width).to(device)

    def _halos(self, tokens: Tensor) -> Tensor:
        """What the windows see of a canvas of rows of tokens, -1 in gaps: (nW, (window + 2) ** 2), in window order."""
        canvas = tokens.view(self.sheets, 1, self.height, self.width)
        padded, side = F.pad(canvas, (1, 1, 1, 1), value=-1), self.window + 2
        seen = []
        for place in self.places:
            around = replace(place, height=place.height + 2, width=place.width + 2).crop(padded)[0]
            windows = around.unfold(0, side, self.window).unfold(1, side, self.window)
            seen.append(windows.reshape(-1, side * side))
        return torch.cat(seen)

    def halo(self, *, shifted: bool) -> Tensor | None:
        """Which tokens, in window order or in shifted order, each window sees in a 3x3 convolution.

        Returns:
            (nW, (window + 2) ** 2) int32, windows in window order, -1 outside the image; None on a GPU, where the
            canvas is convolved.
        """
        return self.halo_from_shifted if shifted else self.halo_from_windows

    @property
    def nbytes(self) -> int:
        """Memory of the tables in bytes."""
        tables = [value for value in vars(self).values() if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tables)

    def pack(self, images: Sequence[Tensor]) -> Tensor:
        """Lay images (C, H, W), in the order of ``sizes``, onto a zeroed canvas (S, C, height, width).

        Raises:
            ValueError: if sizes, channels or dtypes are not what they should be.
        """
        kinds = {(image.shape[0], image.dtype) for image in images}
        if len(kinds) != 1 or tuple((image.shape[1], image.shape[2]) for image in images) != self.sizes:
            raise ValueError("Images of a pack need the layout's sizes, and channels and a dtype in common.")
        if self.gaps is None:
            return torch.stack(list(images)).contiguous(memory_format=torch.channels_last)
        first = images[0]
        canvas = first.new_zeros(self.sheets, first.shape[0], self.height, self.width)
        canvas = canvas.contiguous(memory_format=torch.channels_last)
        for place, image in zip(self.places, images, strict=True):
            place.crop(canvas).copy_(image)
        return canvas

    def check(self, canvas: Tensor, window: int, shift: int) -> None:
        """Make sure that a canvas and a network belong to this layout.

        Raises:
            ValueError: if not.
        """
        if (self.window, self.shift) != (window, shift):
            raise ValueError(
                f"The layout is for window {self.window} and shift {self.shift}, not {window} and {shift}."
            )
        if (canvas.shape[0], *canvas.shape[2:]) != (self.sheets, self.height, self.width):
            raise ValueError(f"The layout is for a canvas ({self.sheets}, C, {self.height}, {self.width}).")

    def unpack(self, canvas: Tensor, scale: int = 1) -> list[Tensor]:
        """The images (C, scale * H, scale * W) of a canvas (S, C, scale * height, scale * width), as views."""
        return [place.crop(canvas, scale) for place in self.places]

    def clear_gaps(self, canvas: Tensor, scale: int = 1) -> Tensor:
        """Put zeros between the images of a canvas (S, C, scale * height, scale * width); it is copied if needed."""
        if self.gaps is None:
            return canvas
        gaps = self.gaps
        if scale > 1:
            gaps = gaps.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        return canvas.masked_fill(gaps, 0.0)

    def to_windows(self, canvas: Tensor) -> Tensor:
        """Canvas (S, C, height, width) to tokens (T, C) in window order."""
        pixels = canvas.permute(0, 2, 3, 1).reshape(-1, canvas.shape[1])
        return pixels.index_select(0, self.windows_from_canvas)

    def to_canvas(self, tokens: Tensor, *, shifted: bool) -> Tensor:
        """Tokens (T, C) in window order, or in shifted order, to a canvas (S, C, height, width) with clear gaps."""
        source = self.canvas_from_shifted if shifted else self.canvas_from_windows
        pixels = tokens.index_select(0, source)
        canvas = pixels.view(self.sheets, self.height, self.width, tokens.shape[1]).permute(0, 3, 1, 2)
        return self.clear_gaps(canvas)


class LayoutCache:
    """Layouts by their sizes, least recently used ones dropped above a bound on their memory.

    Safe to call from several threads. A copy begins empty.

    Args:
        window, shift: as for ``PackedLayout``.
        max_bytes: bound on the tables' memory; the newest layout is kept even where it alone is larger.
    """

    def __init__(self, window: int, shift: int, max_bytes: int = CACHE_BYTES) -> None:
        self.window, self.shift, self.max_bytes = window, shift, max_bytes
        self.nbytes = 0
        self._layouts: OrderedDict[tuple[torch.device, tuple[Size, ...]], PackedLayout] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, sizes: Sequence[Size], device: torch.device) -> PackedLayout:
        """The layout for these sizes on this device; it is built at the first call."""
        key = (device, tuple(sizes))
        with self._lock:
            if key in self._layouts:
                self._layouts.move_to_end(key)
                return self._layouts[key]
        with torch.inference_mode(mode=False):  # whoever asks first, tables may meet gradients later
            layout = PackedLayout(sizes, self.window, self.shift, device)
        with self._lock:
            if key not in self._layouts:
                self._layouts[key] = layout
                self.nbytes += layout.nbytes
            while self.nbytes > self.max_bytes and len(self._layouts) > 1:
                self.nbytes -= self._layouts.popitem(last=False)[1].nbytes
        return layout

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


def _invert(indices: Tensor, size: int) -> Tensor:
    """The inverse of a table into ``size`` places; a place that nothing goes to points at the first entry."""
    inverse = torch.zeros(size, dtype=torch.int64)
    inverse[indices] = torch.arange(indices.numel())
    return inverse


def _arrange(sizes: tuple[Size, ...]) -> tuple[tuple[Place, ...], tuple[int, int, int]]:
    """Places on a canvas and its (sheets, height, width): a sheet each for equal images, else shelves on one sheet."""
    if len(set(sizes)) == 1:
        height, width = sizes[0]
        return tuple(Place(sheet, 0, 0, height, width) for sheet in range(len(sizes))), (len(sizes), height, width)
    widest = max(width for _, width in sizes)
    area = sum(height * width for height, width in sizes)
    candidates = {max(widest, int(math.sqrt(area) * factor / 16)) for factor in range(14, 33)}
    return min((_shelve(sizes, width) for width in candidates), key=lambda shelved: math.prod(shelved[1]))


def _shelve(sizes: tuple[Size, ...], width: int) -> tuple[tuple[Place, ...], tuple[int, int, int]]:
    """Put images on shelves of at most ``width`` pixels, the tallest first, one pixel apart on every side."""
    places: dict[int, Place] = {}
    top, left, shelf, right = 0, 0, 0, 0
    for index in sorted(range(len(sizes)), key=lambda index: sizes[index], reverse=True):
        image_height, image_width = sizes[index]
        if left and left + image_width > width:
            top, left, shelf = top + shelf + 1, 0, 0
        places[index] = Place(0, top, left, image_height, image_width)
        left, shelf = left + image_width + 1, max(shelf, image_height)
        right = max(right, left - 1)
    return tuple(places[index] for index in range(len(sizes))), (1, top + shelf, right)
