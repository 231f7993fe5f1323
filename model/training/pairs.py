"""Training pairs: a random crop of an image and of its low-resolution input, compressed and padded as in serving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.degradations import Subsampling, compress
from model.padding import pad
from model.types import Pixels8

JPEG_BLOCK = 8
RAGGED_SHARE = 1 / 4


@dataclass(frozen=True)
class Photo:
    """An image and its low-resolution version, before JPEG or restored from it, both (H, W, C) uint8."""

    name: str
    sharp: Pixels8
    reduced: Pixels8


@dataclass(frozen=True)
class Sample:
    """A training pair: network input, the same without JPEG, and the wanted output; each (h, w, C) uint8.

    ``size`` is the low-resolution height and width of the image. What lies beyond it is padding.
    """

    degraded: Pixels8
    clean: Pixels8
    sharp: Pixels8
    size: tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """Stacked samples: degraded and clean are uint8 (B, C, h, w), sharp is uint8 (B, C, s h, s w), sizes (B, 2)."""

    degraded: Tensor
    clean: Tensor
    sharp: Tensor
    sizes: Tensor


def turn(pixels: Pixels8, way: int) -> Pixels8:
    """Return one of the eight flips and quarter turns, ``way`` being 0 to 7."""
    pixels = np.rot90(pixels, way % 4)
    return pixels[:, ::-1] if way >= 4 else pixels


def cut(
    photo: Photo, crop: int, quality: tuple[int, int] | None, generator: np.random.Generator, window: int = 1
) -> Sample:
    """Cut a random crop, turn it at random, and compress its input where a range of qualities is given.

    One crop in four represents an image whose sides are not multiples of the window: it is cut smaller and padded as
    serving pads, by reflection on the right and at the bottom.

    Args:
        photo: what to cut from, at least ``crop`` pixels wide and high at low resolution.
        crop: low-resolution side in pixels, a multiple of the window.
        quality: lowest and highest JPEG quality, or None.
        generator: of everything drawn.
        window: of the network in pixels; with 1 no crop is padded.
    """
    scale = photo.sharp.shape[0] // photo.reduced.shape[0]
    height, width = photo.reduced.shape[:2]
    top, left = int(generator.integers(height - crop + 1)), int(generator.integers(width - crop + 1))
    way = int(generator.integers(8))
    clean = turn(photo.reduced[top : top + crop, left : left + crop], way)
    sharp = turn(photo.sharp[scale * top : scale * (top + crop), scale * left : scale * (left + crop)], way)
    size = (crop, crop)
    if window > 1 and generator.random() < RAGGED_SHARE:
        size = (crop - int(generator.integers(window)), crop - int(generator.integers(window)))
        clean, sharp = clean[: size[0], : size[1]], sharp[: scale * size[0], : scale * size[1]]
    degraded = clean if quality is None else compress_at_random(clean, quality, generator)
    return Sample(pad(degraded, window), pad(clean, window), pad(sharp, scale * window), size)


def compress_at_random(clean: Pixels8, quality: tuple[int, int], generator: np.random.Generator) -> Pixels8:
    """Compress an image (H, W, C) to JPEG at a random quality, and decode it.

    A crop of a JPEG rarely begins where an 8x8 block does, an uploaded JPEG always: one image in four gets a random
    offset into its blocks. Two in three are stored with reduced chroma, as most files are. Every doubling of the
    quality is as likely: the loss of JPEG is proportional to the inverse of the quality, and an even draw would make
    strong compression rare.
    """
    level = round(quality[0] * (quality[1] / quality[0]) ** generator.random())
    subsampling: Subsampling = "4:2:0" if generator.random() < 2 / 3 else "4:4:4"
    down, right = generator.integers(JPEG_BLOCK, size=2) if generator.random() < 1 / 4 else (0, 0)
    padded = np.pad(clean, ((down, 0), (right, 0), (0, 0)), mode="reflect")
    return compress(padded, level, subsampling)[down:, right:]


def stack(samples: Sequence[Sample]) -> Batch:
    """Put samples of one padded size together, channels first."""

    def together(images: Sequence[Pixels8]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))

    return Batch(
        together([sample.degraded for sample in samples]),
        together([sample.clean for sample in samples]),
        together([sample.sharp for sample in samples]),
        torch.tensor([sample.size for sample in samples]),
    )
