"""Cuts an image into overlapping tiles, and stitches the upscaled tiles.

A tile is the same function of its pixels as the whole image only if it has the same window grid, so origins and sides
are multiples of the window. Pixels near the edge of a tile lack neighbours and are inaccurate, so every tile is used up
to the middle of what it shares with its neighbour, with a narrow linear blend around that seam.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.padding import quantise_into
from model.types import Pixels, Values

BLEND = 8
"""Width of the blend around a seam, in low-resolution pixels."""

BAND_SAMPLES = 2**20
"""Samples of a band that one thread quantises: enough that handing it over costs little."""

Parallel = Callable[[Sequence[Callable[[], None]]], None]
"""Runs calls that do not depend on each other, in any order or at once, and returns when all have returned."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of the padded image in low-resolution pixels, and its row and column in the grid of tiles."""

    top: int
    left: int
    height: int
    width: int
    row: int
    column: int

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    def cut(self, pixels: Pixels) -> Pixels:
        """This tile's part, a view (h,w,C), of the padded image (H,W,C)."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


def plan(height: int, width: int, tile_size: int, overlap: int, window: int) -> list[Tile]:
    """Cover a padded image with equal overlapping rectangles in reading order.

    Origins and sides are multiples of the window: a tile off the window grid computes a different function.

    Args:
        height, width: padded low-resolution size in pixels, multiples of the window.
        tile_size: largest side of a tile in pixels. The smallest size that needs no more tiles is used.
        overlap: minimum number of pixels shared by neighbours; rounded up to the window grid.
        window: side of the network's attention window in pixels.

    Raises:
        ValueError: if a size is off the window grid, or ``overlap`` leaves a tile no pixels of its own.
    """
    if height < window or width < window or height % window or width % window:
        raise ValueError(f"{height}x{width} is not on the window grid of {window} pixels")
    tall, tops = _intervals(height, tile_size, overlap, window)
    wide, lefts = _intervals(width, tile_size, overlap, window)
    return [
        Tile(top, left, tall, wide, row, column) for row, top in enumerate(tops) for column, left in enumerate(lefts)
    ]


def _intervals(length: int, tile_size: int, overlap: int, window: int) -> tuple[int, list[int]]:
    """Side and origins of the fewest equal intervals that cover ``length``, counted in whole windows."""
    cells = length // window
    most = tile_size // window
    shared = -(-overlap // window)
    if most < 1 or overlap < 0:
        raise ValueError(f"a tile of {tile_size} pixels with {overlap} shared holds no window of {window} pixels")
    if cells <= most:
        return length, [0]
    if most <= shared:
        raise ValueError(f"an overlap of {overlap} pixels leaves a tile of {tile_size} no pixels of its own")
    count = -(-(cells - shared) // (most - shared))
    side = -(-(cells + (count - 1) * shared) // count)
    return side * window, [index * (cells - side) // (count - 1) * window for index in range(count)]


@dataclass(frozen=True)
class _Span:
    """The part of a tile that is used, along one axis in low-resolution pixels, ramps included."""

    start: int
    stop: int
    ramp_before: int  # 0 at the image's border
    ramp_after: int


def _spans(origins: Sequence[int], side: int, length: int) -> list[_Span]:
    pairs = list(itertools.pairwise(origins))
    room = [first + side - second for first, second in pairs] + [second - first for first, second in pairs]
    ramp = min([BLEND, *room]) // 2 * 2
    middles = [(first + side + second) // 2 for first, second in pairs]
    starts = [0, *(middle - ramp // 2 for middle in middles)]
    stops = [*(middle + ramp // 2 for middle in middles), length]
    last = len(origins) - 1
    return [
        _Span(starts[index], stops[index], ramp if index else 0, ramp if index < last else 0)
        for index in range(len(origins))
    ]


class Stitcher:
    """Stitches upscaled tiles, added in reading order, into one image of integers.

    Only the seams are held in floating point: the strip below the row of tiles being added, and the right side of the
    latest tile. The rest of a tile is quantised from the network's output into the image in one pass over memory. So an
    image of any size costs its own bytes and little more.

    Args:
        height, width: low-resolution size of the image in pixels, without padding.
        channels: channels of the tiles' outputs.
        scale: upscaled pixels per low-resolution pixel.
        tiles: the plan; all of its tiles have to be added in this order.
        dtype: ``uint8`` or ``uint16``.
        parallel: runs the quantisation of several bands at once; one after the other by default.
    """

    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        *,
        scale: int,
        tiles: Sequence[Tile],
        dtype: np.dtype[np.generic] | type,
        parallel: Parallel | None = None,
    ) -> None:
        rows = [tile for tile in tiles if tile.column == 0]
        columns = [tile for tile in tiles if tile.row == 0]
        self._rows = _spans([tile.top for tile in rows], rows[0].height, height)
        self._columns = _spans([tile.left for tile in columns], columns[0].width, width)
        self._tiles = list(tiles)
        self._added = 0
        self._scale = scale
        self._parallel = parallel or _run_in_turn
        self._image: Pixels = np.empty((height * scale, width * scale, channels), dtype)
        ramp = max(span.ramp_after for span in self._rows) * scale
        self._above: Values = np.empty((ramp, width * scale, channels), np.float32)
        self._below: Values = np.empty_like(self._above)
        self._side: Values = np.empty((0, 0, channels), np.float32)

    def add(self, tile: Tile, output: NDArray[Any]) -> None:
        """Add the upscaled tile, (s h, s w, C) with values in about [0, 1], or of the image's dtype if it is alone.

        Raises:
            ValueError: if this is not the next tile of the plan, its output has another size or type, or a value is not
                finite.
        """
        scale = self._scale
        if self._added == len(self._tiles) or tile != self._tiles[self._added]:
            raise ValueError(f"{tile} is not the next tile in reading order")
        if output.shape != (tile.height * scale, tile.width * scale, self._image.shape[2]):
            raise ValueError(f"the output of {tile} has the shape {output.shape}")
        if not np.issubdtype(output.dtype, np.floating):
            self._take(output)
            return
        rows, columns = self._rows[tile.row], self._columns[tile.column]
        if tile.column == 0:
            self._above, self._below = self._below, self._above
        part = output[
            (rows.start - tile.top) * scale : (rows.stop - tile.top) * scale,
            (columns.start - tile.left) * scale : (columns.stop - tile.left) * scale,
        ]
        left, calls = columns.start * scale, list[Callable[[], None]]()
        if before := columns.ramp_before * scale:
            blended = _blend(self._side, part[:, :before], _ramp(before)[:, None])
            calls += self._place_columns(blended, rows, left)
        after = part.shape[1] - columns.ramp_after * scale
        self._side = part[:, after:].copy()
        calls += self._place_columns(part[:, before:after], rows, left + before)
        self._parallel(calls)
        self._added += 1

    def _take(self, output: NDArray[Any]) -> None:
        """Take the rounded output of the only tile."""
        if len(self._tiles) > 1 or output.dtype != self._image.dtype:
            raise ValueError(
                f"{len(self._tiles)} tiles of {output.dtype} cannot become an image of {self._image.dtype}"
            )
        self._image[...] = output[: self._image.shape[0], : self._image.shape[1]]
        self._added += 1

    def finish(self) -> Pixels:
        """The image (s H, s W, C).

        Raises:
            ValueError: if tiles are missing.
        """
        if self._added != len(self._tiles):
            raise ValueError(f"{len(self._tiles) - self._added} of {len(self._tiles)} tiles are missing")
        return self._image

    def _place_columns(self, values: Values, span: _Span, left: int) -> list[Callable[[], None]]:
        """Blend with the strip above, keep the strip below, and return the calls that quantise the rest."""
        top, columns = span.start * self._scale, slice(left, left + values.shape[1])
        before, after = span.ramp_before * self._scale, values.shape[0] - span.ramp_after * self._scale
        self._below[: values.shape[0] - after, columns] = values[after:]
        calls = self._quantise_bands(values[before:after], top + before, columns)
        if before:
            blended = _blend(self._above[:before, columns], values[:before], _ramp(before)[:, None, None])
            calls += self._quantise_bands(blended, top, columns)
        return calls

    def _quantise_bands(self, values: Values, top: int, columns: slice) -> list[Callable[[], None]]:
        target = self._image[top : top + len(values), columns]
        rows = max(1, BAND_SAMPLES // max(1, values[:1].size))
        bands = [slice(row, row + rows) for row in range(0, len(values), rows)]
        return [partial(quantise_into, target[band], values[band]) for band in bands]


def _run_in_turn(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _ramp(length: int) -> Values:
    """Weights of the later tile across a seam, rising from near 0 to near 1."""
    return (np.arange(length, dtype=np.float32) + 0.5) / np.float32(length)


def _blend(earlier: Values, later: Values, weight: Values) -> Values:
    with np.errstate(invalid="ignore"):  # infinite values become NaN, which quantise_into refuses
        return earlier + (later - earlier) * weight
