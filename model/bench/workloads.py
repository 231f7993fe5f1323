"""The work that is timed: networks, images, and the upscaling of a large image in tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.checkpoints import load_network
from model.config import Swin2SRConfig
from model.network import Swin2SR
from model.padding import pad
from model.tiling import Stitcher, plan
from model.types import Pixels8
from model.upscaler import Upscaler
from model.variants import VARIANTS

TILE_SIZE = 544
TILE_OVERLAP = 64
"""Largest tile and overlap in pixels: the service's defaults."""


def make_network(variant: str, checkpoint: Path | None = None) -> Swin2SR:
    """A network in evaluation mode: an official variant's architecture with random weights, or a checkpoint's.

    Raises:
        CheckpointError: if the checkpoint cannot be read.
    """
    if checkpoint is not None:
        network = load_network(checkpoint)
    else:
        torch.manual_seed(0)
        network = Swin2SR(Swin2SRConfig.from_dict(VARIANTS[variant].config or {}))
    return network.eval().requires_grad_(requires_grad=False)


def draw_pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels8:
    """Noise (H, W, C): the network takes the same time for every image."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def mixed_sizes(count: int, smallest: int, largest: int) -> list[tuple[int, int]]:
    """``count`` different sizes (height, width), evenly distributed, none square."""
    sides = [round(side) for side in np.linspace(smallest, largest, count)]
    return [(side, sides[index ^ 1 if index ^ 1 < count else index - 1]) for index, side in enumerate(sides)]


def pad_to_largest(images: Sequence[Pixels8]) -> list[Pixels8]:
    """Pad images to the largest height and width, as servers without packing do."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    return [
        np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode="edge")
        for image in images
    ]


def upscale_tiled(upscaler: Upscaler, image: Pixels8) -> NDArray[np.uint8 | np.uint16]:
    """Upscale one image (H, W, C) as the service does: in tiles if it is large."""
    height, width, channels = image.shape
    padded = pad(image, upscaler.window_size)
    tiles = plan(padded.shape[0], padded.shape[1], TILE_SIZE, TILE_OVERLAP, upscaler.window_size)
    stitcher = Stitcher(height, width, channels, scale=upscaler.scale, tiles=tiles, dtype=image.dtype)
    for tile in tiles:
        [output] = upscaler.forward([tile.cut(padded)])
        stitcher.add(tile, output)
    return stitcher.finish()
