"""How an upscaler treats graphics: flat colours, spots, checkerboards, and 50 drawn images.

``python -m model.training.evaluate_graphics FILE...`` prints a table. The images are drawn with other seeds than those
for training and with Pillow's own font, which training uses only on a machine without fonts.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.degradations import compress, resize_bicubic
from model.evaluate import ImageUpscaler, psnr_y
from model.training.graphics import draw_graphic
from model.training.held_out import BEST_PSNR
from model.training.pairs import Photo
from model.types import Pixels8

SIDE = 96
MARGIN = 16
"""Width of the rim in low-resolution pixels, and distance from a spot at which gray must be gray again."""
SPOT = 8
GRAY = 128
COLOURS = tuple(colour for colour in itertools.product((0, 128, 255), repeat=3) if len(set(colour)) > 1)
"""The 24 colours of these levels that are not gray."""
SATURATED = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255))
BOARDS = ((0, 255), (90, 170), (30, 225))
GRAPHICS = 50
GRAPHIC_SIDE = 96
SEED = 30_000
QUALITY = 40


@dataclass(frozen=True)
class Flatness:
    """Largest error in levels over the images of a kind: inside and at the rim; or at a spot and away from it."""

    inside: int
    outside: int


@dataclass(frozen=True)
class Gain:
    """Y-PSNR in dB over plain enlargement, or over the JPEG: mean over images, and the worst with its name."""

    mean: float
    worst: float
    worst_name: str


def _flat(colour: Sequence[int]) -> Pixels8:
    return np.full((SIDE, SIDE, 3), colour, np.uint8)


def _errors(image: Pixels8, wanted: Pixels8) -> Pixels8:
    return np.abs(image.astype(np.int16) - wanted).astype(np.uint8)


def _enlarge(image: Pixels8, scale: int) -> Pixels8:
    return image.repeat(scale, 0).repeat(scale, 1)


def measure_flat(upscaler: ImageUpscaler) -> Flatness:
    """Upscale flat images of 96x96 pixels: errors inside, and in the rim of 16 low-resolution pixels."""
    inside = rim = 0
    margin = MARGIN * upscaler.scale
    for colour in COLOURS:
        (image,) = upscaler([_flat(colour)])
        errors = _errors(image, np.array(colour, np.uint8))
        inside = max(inside, int(errors[margin:-margin, margin:-margin].max()))
        errors[margin:-margin, margin:-margin] = 0
        rim = max(rim, int(errors.max()))
    return Flatness(inside, rim)


def measure_spots(upscaler: ImageUpscaler) -> Flatness:
    """Upscale gray images with a saturated spot of 8x8 pixels in the middle.

    Returns:
        The errors within the spot, at least one low-resolution pixel from its edge, and those of the gray at least 16
        pixels from it (the rim of the image left out).
    """
    at_spot = away = 0
    scale, first = upscaler.scale, (SIDE - SPOT) // 2
    spot = slice((first + 1) * scale, (first + SPOT - 1) * scale)
    near = slice((first - MARGIN) * scale, (first + SPOT + MARGIN) * scale)
    margin = MARGIN * scale
    for colour in SATURATED:
        low = _flat((GRAY,) * 3)
        low[first : first + SPOT, first : first + SPOT] = colour
        (image,) = upscaler([low])
        errors = _errors(image, _enlarge(low, scale))
        at_spot = max(at_spot, int(errors[spot, spot].max()))
        errors[near, near] = 0
        away = max(away, int(errors[margin:-margin, margin:-margin].max()))
    return Flatness(at_spot, away)


def measure_boards(upscaler: ImageUpscaler) -> float:
    """Upscale one-pixel checkerboards of two grays: largest error of the mean in levels, the rim left out."""
    worst = 0.0
    margin = MARGIN * upscaler.scale
    odd = np.add.outer(np.arange(SIDE), np.arange(SIDE)) % 2
    for dark, light in BOARDS:
        low = np.where(odd, light, dark).astype(np.uint8)[:, :, None].repeat(3, 2)
        (image,) = upscaler([low])
        mean = image[margin:-margin, margin:-margin].mean((0, 1))
        worst = max(worst, float(np.abs(mean - (dark + light) / 2).max()))
    return worst


def draw_test_set(scale: int) -> list[Photo]:
    """Draw the 50 graphics, each named after its number and kind."""
    drawn = []
    for number in range(GRAPHICS):
        photo = draw_graphic(np.random.default_rng((SEED, number)), GRAPHIC_SIDE, scale)
        drawn.append(Photo(f"{number:02d}-{photo.name}", photo.sharp, photo.reduced))
    return drawn


def measure_graphics(upscaler: ImageUpscaler, quality: int | None = None) -> Gain:
    """Upscale the 50 graphics and compare with bicubic enlargement of the same input.

    Args:
        upscaler: with three channels.
        quality: JPEG quality of the inputs; None leaves them uncompressed. For restoration, the baseline is the JPEG.
    """
    gains = []
    for photo in draw_test_set(upscaler.scale):
        low = photo.reduced if quality is None else compress(photo.reduced, quality)
        (image,) = upscaler([low])
        plain = resize_bicubic(low, *photo.sharp.shape[:2])
        border = upscaler.scale if upscaler.scale > 1 else 0
        ours, theirs = (min(psnr_y(i, photo.sharp, border), BEST_PSNR) for i in (image, plain))
        gains.append((ours - theirs, photo.name))
    worst, name = min(gains)
    return Gain(float(np.mean([gain for gain, _ in gains])), worst, name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the process's exit code."""
    from model.upscaler import Upscaler  # noqa: PLC0415 - the measures above need no torch

    parser = argparse.ArgumentParser(
        prog="python -m model.training.evaluate_graphics", description="How networks treat graphics, in a table."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="weights")
    parser.add_argument("--quality", type=int, help=f"JPEG quality of the 50 graphics (restoration: {QUALITY})")
    options = parser.parse_args(arguments)
    lines = [
        "| file | flat: inside | flat: rim | spot | gray around it | checkerboard mean | graphics: mean gain | worst |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for file in options.files:
        upscaler = Upscaler.from_pretrained(file, device="cpu")
        quality = QUALITY if options.quality is None and upscaler.scale == 1 else options.quality
        flat, spots, gain = measure_flat(upscaler), measure_spots(upscaler), measure_graphics(upscaler, quality)
        lines.append(
            f"| {file.stem} | {flat.inside} | {flat.outside} | {spots.inside} | {spots.outside} "
            f"| {measure_boards(upscaler):.1f} | {gain.mean:+.2f} dB | {gain.worst:+.2f} dB ({gain.worst_name}) |"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
