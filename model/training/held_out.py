"""Images that are never trained on, always the same, on which progress is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.degradations import resize_bicubic
from model.evaluate import psnr_y
from model.network import Swin2SR
from model.training.graphics import draw_graphic
from model.training.pairs import Batch, Photo, cut, stack

HELD_OUT_CROP = 96
GRAPHICS = 36
GRAPHIC_SIDE = 64
GRAPHICS_SEED = 20_000
BEST_PSNR = 60.0
"""Counted for an image that comes out exact, whose PSNR is infinite."""


@dataclass(frozen=True)
class Score:
    """Mean PSNR on Y in dB of the network, and of bicubic interpolation or of the JPEG itself."""

    psnr: float
    baseline: float


def draw_held_out(scale: int, channels: int) -> list[Photo]:
    """Draw the graphics on which progress is measured, with Pillow's own font."""
    generators = (np.random.default_rng((GRAPHICS_SEED, number)) for number in range(GRAPHICS))
    return [draw_graphic(generator, GRAPHIC_SIDE, scale, channels) for generator in generators]


class HeldOut:
    """One fixed crop of each image.

    Args:
        photos: photographs that are not trained on.
        graphics: drawn with other seeds than those trained on.
        quality: JPEG qualities of the inputs, or None.
        window: of the network.
    """

    def __init__(
        self, photos: Sequence[Photo], graphics: Sequence[Photo], quality: tuple[int, int] | None, window: int
    ) -> None:
        self._photos = [_cut(photo, n, quality, window) for n, photo in enumerate(photos)]
        self._graphics = [_cut(photo, n, quality, window) for n, photo in enumerate(graphics)]

    def measure(self, network: Swin2SR) -> tuple[Score, Score]:
        """Score a network on the photographs and on the graphics."""
        return _score(network, self._photos), _score(network, self._graphics)


def _cut(photo: Photo, number: int, quality: tuple[int, int] | None, window: int) -> tuple[Batch, float]:
    crop = min(HELD_OUT_CROP, *photo.reduced.shape[:2]) // window * window
    sample = cut(photo, crop, quality, np.random.default_rng(number))
    height, width = sample.sharp.shape[:2]
    plain = resize_bicubic(np.ascontiguousarray(sample.degraded), height, width)
    return stack([sample]), min(psnr_y(plain, sample.sharp, _border(stack([sample]))), BEST_PSNR)


def _border(batch: Batch) -> int:
    scale = batch.sharp.shape[2] // batch.degraded.shape[2]
    return scale if scale > 1 else 0


@torch.inference_mode()
def _score(network: Swin2SR, cuts: Sequence[tuple[Batch, float]]) -> Score:
    device = next(network.parameters()).device
    found = []
    for batch, _ in cuts:
        image = network(batch.degraded.to(device).float() / 255).image
        rounded = (image * 255).round().clamp(0, 255).to(torch.uint8).cpu()
        ours, sharp = (i[0].permute(1, 2, 0).numpy() for i in (rounded, batch.sharp))
        found.append(min(psnr_y(ours, sharp, _border(batch)), BEST_PSNR))
    if not found:
        return Score(0.0, 0.0)
    return Score(float(np.mean(found)), float(np.mean([baseline for _, baseline in cuts])))
