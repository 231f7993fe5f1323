"""Bytes per pixel of upscaled photographs in each format: ``python -m tests.page.file_sizes PHOTO...``.

The page predicts file sizes with these figures (``BYTES_PER_PIXEL`` in app/web/choices.js).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import PIL.Image

from app import codec
from model import Upscaler
from model.variants import embedded_path

FORMATS = ("png", "tiff", "jpeg", "webp", "avif", "jxl")


def measure(photos: list[Path]) -> dict[str, float]:
    """The median over some photos, doubled by ``small-x2``, at the default quality."""
    upscaler = Upscaler.from_pretrained(embedded_path("small-x2"))
    found: dict[str, list[float]] = {name: [] for name in FORMATS}
    for photo in photos:
        with PIL.Image.open(photo) as image:
            [upscaled] = upscaler([np.asarray(image.convert("RGB"))])
        for name in FORMATS:
            encoded = codec.encode(codec.Image(upscaled), codec.EncodeOptions(format=name))
            found[name].append(len(encoded.body) / (upscaled.shape[0] * upscaled.shape[1]))
    return {name: float(np.median(values)) for name, values in found.items()}


if __name__ == "__main__":
    for name, value in measure([Path(argument) for argument in sys.argv[1:]]).items():
        print(f"{name:5} {value:.2f}")
