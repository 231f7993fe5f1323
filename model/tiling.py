"""How an image that does not fit is cut into tiles, and how the upscaled tiles become one image again.

A tile is only the same function of its pixels as the whole image if it sees the same window grid, so origins and sides
are multiples of the window. Pixels near a tile's edge lack neighbours and are the wrong ones, so every tile is used up
to the middle of what it shares with its neighbour, with a narrow linear blend around that seam.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.padding import quantise

BLEND = 8
"""Width of the blend around a seam, in low-resolution pixels."""

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
Values = NDArray[np.float32]


@dataclass(frozen=True)
class Tile:
    """A rectangle of the padded image in low-resolution pixels, and its place in the grid of tiles."""

    top: int
    left: int
    height: int
    width: int
    row: int
    column: int

    @property
    def area(self) -> int:
        """Pixels in this tile."""
        return self.height * self.width

    def cut(self, pixels: Pixels) -> Pixels:
        """This tile's part, a view (h,w,C), of the padded image (H,W,C)."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


def plan(height: int, width: int, tile_size: int, overlap: int, window: int) -> list[Tile]:
    """Cover a padded image with equal overlapping rectangles in reading order.

    Origins and sides are multiples of the window, because a tile off the window grid is another function of its pixels.

    Args:
        height, width: padded low-resolution size in pixels, multiples of the window.
        tile_size: largest side of a tile in pixels; the smallest that needs no more tiles is used.
        overlap: least number of pixels shared by neighbours; rounded up to the window grid.
        window: side of the network's attention window in pixels.

    Raises:
        ValueError: if a size is off the window grid or ``overlap`` leaves a tile nothing of its own.
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
        raise ValueError(f"an overlap of {overlap} pixels leaves a tile of {tile_size} nothing of its own")
    count = -(-(cells - shared) // (most - shared))
    side = -(-(cells + (count - 1) * shared) // count)
    return side * window, [index * (cells - side) // (count - 1) * window for index in range(count)]


@dataclass(frozen=True)
class _Span:
    """What a tile contributes along one axis in low-resolution pixels, from its first ramp to its last."""

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
    """Joins upscaled tiles, added in reading order, into one image of whole numbers.

    Only the seams are held in float: the strip under the row of tiles being added and the side of the last tile. So an
    image of any size costs its own bytes and little more.

    Args:
        height, width: low-resolution size of the image in pixels, without padding.
        channels: channels of the tiles' outputs.
        scale: upscaled pixels per low-resolution pixel.
        tiles: the plan; all of its tiles have to be added in this order.
        dtype: ``uint8`` or ``uint16``.
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
    ) -> None:
        rows = [tile for tile in tiles if tile.column == 0]
        columns = [tile for tile in tiles if tile.row == 0]
        self._rows = _spans([tile.top for tile in rows], rows[0].height, height)
        self._columns = _spans([tile.left for tile in columns], columns[0].width, width)
        self._tiles = list(tiles)
        self._added = 0
        self._scale = scale
        self._image: Pixels = np.empty((height * scale, width * scale, channels), dtype)
        ramp = max(span.ramp_after for span in self._rows) * scale
        self._above: Values = np.empty((ramp, width * scale, channels), np.float32)
        self._below: Values = np.empty_like(self._above)
        self._side: Values = np.empty((0, 0, channels), np.float32)

    def add(self, tile: Tile, output: Values) -> None:
        """Take in the upscaled tile, (s h, s w, C) with values in about [0,1].

        Raises:
            ValueError: if this is not the next tile of the plan or its output has another size.
        """
        scale = self._scale
        if self._added == len(self._tiles) or tile != self._tiles[self._added]:
            raise ValueError(f"{tile} is not the next tile in reading order")
        if output.shape != (tile.height * scale, tile.width * scale, self._image.shape[2]):
            raise ValueError(f"the output of {tile} has the shape {output.shape}")
        rows, columns = self._rows[tile.row], self._columns[tile.column]
        if tile.column == 0:
            self._above, self._below = self._below, self._above
        part = output[
            (rows.start - tile.top) * scale : (rows.stop - tile.top) * scale,
            (columns.start - tile.left) * scale : (columns.stop - tile.left) * scale,
        ].copy()
        part = self._join_left(part, columns)
        part = self._join_above(part, rows, columns.start * scale)
        top, left = rows.start * scale, columns.start * scale
        self._image[top : top + part.shape[0], left : left + part.shape[1]] = quantise(part, self._image.dtype)
        self._added += 1

    def finish(self) -> Pixels:
        """The image (s H, s W, C).

        Raises:
            ValueError: if tiles are missing.
        """
        if self._added != len(self._tiles):
            raise ValueError(f"{len(self._tiles) - self._added} of {len(self._tiles)} tiles are missing")
        return self._image

    def _join_left(self, part: Values, span: _Span) -> Values:
        """Blend with the side that the tile on the left held back, and hold back this one's."""
        if before := span.ramp_before * self._scale:
            part[:, :before] = _blend(self._side, part[:, :before], _ramp(before)[:, None])
        if after := span.ramp_after * self._scale:
            self._side = part[:, -after:]
            return part[:, :-after]
        return part

    def _join_above(self, part: Values, span: _Span, left: int) -> Values:
        """Blend with the strip that the row of tiles above held back, and hold back this one's."""
        columns = slice(left, left + part.shape[1])
        if before := span.ramp_before * self._scale:
            part[:before] = _blend(self._above[:before, columns], part[:before], _ramp(before)[:, None, None])
        if after := span.ramp_after * self._scale:
            self._below[:after, columns] = part[-after:]
            return part[:-after]
        return part


def _ramp(length: int) -> Values:
    """Weights of the later tile over a seam, rising from near 0 to near 1."""
    return (np.arange(length, dtype=np.float32) + 0.5) / np.float32(length)


def _blend(earlier: Values, later: Values, weight: Values) -> Values:
    return earlier + (later - earlier) * weight
