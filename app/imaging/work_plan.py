"""What a request will cost and become, known from its header and options before anything is decoded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.errors import ImageTooLarge, InvalidOption
from app.imaging.channels import TURNS
from app.schemas import UpscaleOptions
from app.settings import Settings
from model.padding import padded_size
from model.tiling import Tile, plan

_LANCZOS_RADIUS = 3
_BAND_ROWS = 256


@dataclass(frozen=True)
class Outline:
    """The work that one pass over an image is.

    Attributes:
        tiles: what is computed, in reading order; they cover the padded image.
        turns: 1, or 8 with the self-ensemble.
    """

    tiles: list[Tile]
    turns: int

    @property
    def cost(self) -> int:
        """Pixels that the network computes in this pass."""
        return self.turns * sum(tile.area for tile in self.tiles)


def outline(
    height: int, width: int, options: UpscaleOptions, settings: Settings, *, scale: int, window: int
) -> Outline:
    """Plan one pass over an image of ``height`` x ``width`` pixels; the same work if the image stands on its side.

    Raises:
        ImageTooLarge: if the upscaled image would have too many pixels.
        InvalidOption: if the wished tile is larger than can be had.
    """
    pixels = height * width * scale * scale
    if pixels > settings.max_output_pixels:
        raise ImageTooLarge(
            f"{width}x{height} would become {width * scale}x{height * scale}, and an upscaled image may have "
            f"{settings.max_output_pixels} pixels at most. Send a smaller image.",
            limit=settings.max_output_pixels,
            actual=pixels,
        )
    tile_size, overlap = settings.tile_size, settings.tile_overlap
    if options.tile != "auto":
        tile_size, overlap = options.tile, min(overlap, options.tile // 2)
    if tile_size > settings.tile_size:
        raise InvalidOption(
            f"A tile may have {settings.tile_size} pixels a side at most here.",
            errors=["tile: too large"],
            limit=settings.tile_size,
            actual=tile_size,
        )
    tiles = plan(padded_size(height, window), padded_size(width, window), tile_size, overlap, window)
    return Outline(tiles, TURNS if options.ensemble else 1)


def final_size(height: int, width: int, scale: int, options: UpscaleOptions) -> tuple[int, int]:
    """Height and width of the answer: the upscaled image, reduced to the wish with its aspect kept.

    Raises:
        InvalidOption: if the wish is larger than the upscaled image.
    """
    ratios = [
        wish / side
        for wish, side in ((options.width, width), (options.height, height), (options.factor, 1))
        if wish is not None
    ]
    if not ratios:
        return height * scale, width * scale
    ratio = min(ratios)
    if ratio > scale:
        raise InvalidOption(
            f"The upscaled image has {width * scale}x{height * scale} pixels and is only ever reduced. Ask for less, "
            "or for a variant of a larger scale.",
            errors=["width, height or factor: larger than the upscaled image"],
            limit=scale,
            actual=ratio,
        )
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def reduce_to(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Reduce pixels (H,W,C) uint8 or uint16 to ``height`` x ``width`` with Pillow's antialiased Lanczos.

    Band by band, because in float an image has four times its bytes.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    limit = np.iinfo(pixels.dtype).max
    ratio = pixels.shape[0] / height
    reach = math.ceil(_LANCZOS_RADIUS * max(ratio, 1)) + 1
    reduced = np.empty((height, width, pixels.shape[2]), pixels.dtype)
    for top in range(0, height, _BAND_ROWS):
        bottom = min(top + _BAND_ROWS, height)
        first = max(math.floor(top * ratio) - reach, 0)
        seen = pixels[first : math.ceil(bottom * ratio) + reach]
        box = (0, top * ratio - first, pixels.shape[1], min(bottom * ratio - first, len(seen)))
        for channel in range(pixels.shape[2]):
            values = Image.fromarray(seen[:, :, channel].astype(np.float32))
            band = np.asarray(values.resize((width, bottom - top), Image.Resampling.LANCZOS, box))
            reduced[top:bottom, :, channel] = np.rint(np.clip(band, 0, limit))
    return reduced
