"""Up to which JPEG quality restoring an image before enlarging it pays off.

``python -m model.training.restore_threshold PHOTOS`` compresses crops of the photos that training holds out, enlarges
them with and without restoring them first, and prints the gain by quality. It uses no published test set.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from model.degradations import Subsampling, compress, crop_to_multiple, reduce
from model.evaluate import ImageUpscaler, list_photos, luma, psnr, read_photo
from model.training.photos import hold_out
from model.types import Pixels8

QUALITIES = (30, 40, 50, 60, 70, 75, 80, 85, 90, 95)
SIDE = 256
WEIGHTS = Path(__file__).parents[1] / "weights"
WORST_SHARE = 0.05


@dataclass(frozen=True)
class Gain:
    """What restoring first adds to the Y-PSNR in dB: mean, mean of the worst twentieth of the images, and least."""

    mean: float
    worst: float
    least: float


def summarise(gains: Sequence[float]) -> Gain:
    """Return mean, mean over the worst 5 % (at least one image) and least of gains in dB.

    Raises:
        ValueError: if there is none.
    """
    if not gains:
        raise ValueError("no image to summarise")
    ordered = sorted(gains)
    worst = ordered[: max(1, round(WORST_SHARE * len(ordered)))]
    return Gain(float(np.mean(ordered)), float(np.mean(worst)), ordered[0])


def cut_crops(photo: Pixels8, side: int = SIDE) -> Iterator[Pixels8]:
    """Yield the squares of a side that fit a photo (H, W, C) without overlap; all of it where none fits."""
    height, width = photo.shape[:2]
    if min(height, width) < side:
        yield photo
        return
    for top in range(0, height - side + 1, side):
        for left in range(0, width - side + 1, side):
            yield photo[top : top + side, left : left + side]


def measure_gain(
    restorer: ImageUpscaler,
    enlarger: ImageUpscaler,
    references: Sequence[Pixels8],
    quality: int,
    subsampling: Subsampling,
) -> Gain:
    """Reduce and compress references, enlarge them with and without restoring them first, and compare.

    Args:
        restorer: of scale 1.
        enlarger: of the scale by which references are reduced.
        references: (H, W, 3) uint8, sides multiples of the scale.
        quality, subsampling: of the JPEG.
    """
    gains = []
    scale = enlarger.scale
    inner = slice(scale, -scale)
    for reference in references:
        small = compress(reduce(reference, scale), quality, subsampling)
        plain, restored = enlarger([small])[0], enlarger(restorer([small]))[0]
        wanted = luma(reference[inner, inner])
        without, with_it = (psnr(luma(image[inner, inner]), wanted) for image in (plain, restored))
        gains.append(with_it - without)
    return summarise(gains)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the process's exit code."""
    from model.upscaler import Upscaler  # noqa: PLC0415 - the measures above need no torch

    parser = argparse.ArgumentParser(
        prog="python -m model.training.restore_threshold", description="Gain of restoring before enlarging, by quality."
    )
    parser.add_argument("photos", type=Path, help="folder that training read its photos from")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder with small-jpeg, small-x2 and small-x4")
    parser.add_argument("--all", action="store_true", help="use all photos, not only those that training holds out")
    parser.add_argument("--qualities", type=int, nargs="+", default=QUALITIES, help="JPEG qualities, 1 to 100")
    options = parser.parse_args(arguments)
    restorer, *enlargers = (
        Upscaler.from_pretrained(options.weights / f"{name}.safetensors", device="cpu")
        for name in ("small-jpeg", "small-x2", "small-x4")
    )
    files = list_photos(options.photos)
    chosen = files if options.all else hold_out(files)
    references = [
        crop_to_multiple(crop, enlargers[-1].scale) for file in chosen for crop in cut_crops(read_photo(file, 3))
    ]
    sys.stdout.write(
        f"{len(references)} images; dB on Y: mean (worst 5 %)\n\n| quality | "
        + " | ".join(f"x{enlarger.scale}, {chroma}" for enlarger in enlargers for chroma in get_args(Subsampling))
        + " |\n| --- | --- | --- | --- | --- |\n"
    )
    for quality in options.qualities:
        cells = []
        for enlarger in enlargers:
            for chroma in get_args(Subsampling):
                gain = measure_gain(restorer, enlarger, references, quality, chroma)
                cells.append(f"{gain.mean:+.2f} ({gain.worst:+.2f})")
        sys.stdout.write(f"| {quality} | {' | '.join(cells)} |\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
