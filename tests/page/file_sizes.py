"""Bytes per pixel of upscaled photographs in each format: ``python -m tests.page.file_sizes PHOTO...``.

The page predicts file sizes with these figures (``BYTES_PER_PIXEL`` and ``sizeAt`` in app/web/choices.js).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import PIL.Image

from app import codec
from model import Upscaler
from model.variants import embedded_path

QUALITIES = (100, 90, 80, 70, 60, 50, 30, 10)
LOSSY = ("jpeg", "webp", "avif", "jxl")
FORMATS = ("png", "tiff", "jpeg", "webp", "avif", "jxl")


def upscale(photos: list[Path]) -> list[np.ndarray]:
    """Some photos, doubled by ``small-x2``."""
    upscaler = Upscaler.from_pretrained(embedded_path("small-x2"))
    return [upscaler([np.asarray(PIL.Image.open(photo).convert("RGB"))])[0] for photo in photos]


def measure(images: list[np.ndarray], name: str, quality: int) -> float:
    """Bytes per pixel of a format, the median over some images."""
    options = codec.EncodeOptions(format=name, quality=quality)
    sizes = [
        len(codec.encode(codec.Image(image), options).body) / (image.shape[0] * image.shape[1]) for image in images
    ]
    return float(np.median(sizes))


if __name__ == "__main__":
    images = upscale([Path(argument) for argument in sys.argv[1:]])
    for name in FORMATS:
        usual = measure(images, name, 95)
        others = {each: measure(images, name, each) / usual for each in (QUALITIES if name in LOSSY else ())}
        print(f"{name:5} {usual:.2f}", *(f"{each}:{value:.2f}" for each, value in others.items()))
