"""Error of tiled results against whole images, by size and overlap of the tiles.

``python -m model.bench.seams PHOTO... --checkpoint FOLDER`` prints the table from which the defaults were chosen.
Without a checkpoint the weights of an official architecture are random. The output of a random network is stretched to
the contrast of the photo, so that levels are comparable.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.checkpoints import load_network
from model.config import Swin2SRConfig
from model.evaluate import read_photo
from model.network import Swin2SR
from model.padding import pad, quantise
from model.tiling import Stitcher, Tile, plan
from model.types import Pixels8, Values
from model.upscaler import Upscaler
from model.variants import VARIANTS

TILINGS = ((128, 32), (128, 48), (128, 64), (192, 32), (192, 64), (256, 32), (256, 64), (384, 64), (544, 32), (544, 64))
"""Largest sides of tiles and overlaps, in pixels; the last is the service's default."""


@dataclass(frozen=True)
class Difference:
    """Difference of two 8-bit images: the largest in levels, and the share of samples that differ."""

    largest: int
    share: float

    @classmethod
    def between(cls, first: Pixels8, second: Pixels8) -> Difference:
        """Of two images of the same shape."""
        levels = np.abs(first.astype(np.int16) - second)
        return cls(int(levels.max()), float(np.count_nonzero(levels) / levels.size))

    def __str__(self) -> str:
        return f"{self.largest}, {self.share:.2%}"


@dataclass(frozen=True)
class Tiling:
    """One tiling of an image: its work, and its error with two ways of joining tiles."""

    tile_size: int
    overlap: int
    tiles: int
    work: float
    """Pixels8 computed over pixels of the image."""
    middles: Difference
    """Joined as the service does: middles, with a narrow blend."""
    feathered: Difference
    """Joined by a raised cosine over all that tiles share."""


def compare_tilings(
    upscaler: Upscaler, pixels: Pixels8, tilings: Sequence[tuple[int, int]], *, stretch: bool = False
) -> Iterator[Tiling]:
    """Upscale an image as a whole, and then in tiles of each size and overlap.

    Args:
        upscaler: of any scale.
        pixels: (H,W,C) uint8.
        tilings: largest side and overlap of tiles, pixels.
        stretch: give the outputs the mean and contrast of the image before rounding.
    """
    padded = pad(pixels, upscaler.window_size)
    [whole] = upscaler.forward([padded])
    gain = float(pixels.std() / 255 / whole.std()) if stretch else 1.0
    shift = float(pixels.mean() / 255 - whole.mean() * gain) if stretch else 0.0
    height, width = pixels.shape[:2]
    expected = quantise(whole[: height * upscaler.scale, : width * upscaler.scale] * gain + shift)
    for tile_size, overlap in tilings:
        tiles = plan(padded.shape[0], padded.shape[1], tile_size, overlap, upscaler.window_size)
        outputs = [upscaler.forward([tile.cut(padded)])[0] * np.float32(gain) + np.float32(shift) for tile in tiles]
        middles, feathered = (
            Difference.between(join(tiles, outputs, (height, width), upscaler.scale), expected)
            for join in (join_middles, join_feathered)
        )
        work = sum(tile.area for tile in tiles) / (height * width)
        yield Tiling(tile_size, overlap, len(tiles), work, middles, feathered)


def join_middles(tiles: Sequence[Tile], outputs: Sequence[Values], size: tuple[int, int], scale: int) -> Pixels8:
    """Join tiles as the service does."""
    stitcher = Stitcher(*size, outputs[0].shape[2], scale=scale, tiles=tiles, dtype=np.uint8)
    for tile, output in zip(tiles, outputs, strict=True):
        stitcher.add(tile, output)
    return stitcher.finish().astype(np.uint8)


def join_feathered(tiles: Sequence[Tile], outputs: Sequence[Values], size: tuple[int, int], scale: int) -> Pixels8:
    """Join tiles with a raised cosine over the whole overlap, as many programs do."""
    bottom, right = tiles[-1].top + tiles[-1].height, tiles[-1].left + tiles[-1].width
    total = np.zeros((bottom * scale, right * scale, outputs[0].shape[2]), np.float64)
    weights = np.zeros((*total.shape[:2], 1))
    tops, lefts = sorted({tile.top for tile in tiles}), sorted({tile.left for tile in tiles})
    for tile, output in zip(tiles, outputs, strict=True):
        down = _feather(tops, tile.top, tile.height).repeat(scale)
        across = _feather(lefts, tile.left, tile.width).repeat(scale)
        place = (
            slice(tile.top * scale, (tile.top + tile.height) * scale),
            slice(tile.left * scale, (tile.left + tile.width) * scale),
        )
        weight = (down[:, None] * across)[:, :, None]
        total[place] += output * weight
        weights[place] += weight
    height, width = size
    return quantise((total / weights)[: height * scale, : width * scale]).astype(np.uint8)


def _feather(origins: Sequence[int], origin: int, side: int) -> NDArray[np.float64]:
    """Weights of a tile along one axis: rising from its start and falling to its end over what neighbours share."""
    weights = np.ones(side)
    index = origins.index(origin)
    for neighbour in (*origins[max(index - 1, 0) : index], *origins[index + 1 : index + 2]):
        shared = side - abs(neighbour - origin)
        ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(shared) + 0.5) / shared)
        if neighbour < origin:
            weights[:shared] *= ramp
        else:
            weights[-shared:] *= ramp[::-1]
    return weights


def random_network(variant: str) -> Swin2SR:
    """An official architecture with random weights, large enough for attention and every part to matter."""
    torch.manual_seed(0)
    network = Swin2SR(Swin2SRConfig.from_dict(VARIANTS[variant].config or {}))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return network.eval()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, worst of all photos, row by row."""
    parser = argparse.ArgumentParser(prog="python -m model.bench.seams", description=__doc__)
    parser.add_argument("photos", nargs="+", type=Path, help="images larger than the largest tile")
    parser.add_argument("--checkpoint", type=Path, help="weights; random ones without it")
    parser.add_argument("--variant", default="classical-x2", help="architecture of random weights")
    parser.add_argument("--crop", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="measure this corner alone")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    options = parser.parse_args(arguments)
    network = load_network(options.checkpoint) if options.checkpoint else random_network(options.variant)
    upscaler = Upscaler(network, device=options.device, precision="exact")
    rows, columns = (slice(side) for side in options.crop or (None, None))
    photos = [read_photo(file, upscaler.channels)[rows, columns] for file in options.photos]
    runs = [compare_tilings(upscaler, photo, TILINGS, stretch=options.checkpoint is None) for photo in photos]
    sys.stdout.write("| tile, overlap | tiles | work | middles with a blend | raised cosine |\n|---|---|---|---|---|\n")
    for row in zip(*runs, strict=True):
        one = row[0]
        sides = [
            Difference(max(each.largest for each in side), max(each.share for each in side))
            for side in ([each.middles for each in row], [each.feathered for each in row])
        ]
        size = f"{one.tile_size}, {one.overlap}"
        sys.stdout.write(f"| {size} | {one.tiles} | {one.work:.2f} | {sides[0]} | {sides[1]} |\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
