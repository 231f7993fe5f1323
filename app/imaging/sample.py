"""The sample image of the page and the quickstart, drawn by this module: a landscape, fine lines, and text.

``python -m app.imaging.sample FILE`` writes it as PNG.
"""

from __future__ import annotations

import argparse
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = (240, 160)
"""Width and height of the sample, pixels."""

_FINE = 4
"""The image is drawn this many times larger and then reduced, so that it looks like a photograph."""

_INK = (24, 32, 48)
_PAPER = (244, 240, 230)


def draw_sample() -> bytes:
    """Draw the sample; the same bytes on every call.

    Returns:
        A PNG of ``SIZE``, 8-bit RGB.
    """
    width, height = (side * _FINE for side in SIZE)
    image = Image.fromarray(_paint_sky(width, height))
    draw = ImageDraw.Draw(image)
    _draw_hills(draw, width, height)
    _draw_star(draw, centre=(width * 0.785, height * 0.66), radius=height * 0.26)
    _draw_text(draw, width, height)
    file = io.BytesIO()
    image.resize(SIZE, Image.Resampling.LANCZOS).save(file, "PNG")
    return file.getvalue()


def _paint_sky(width: int, height: int) -> np.ndarray:
    """A sunset, (height, width, 3) uint8."""
    down = np.linspace(0, 1, height)[:, None, None]
    sky = (1 - down) * np.array([52, 92, 158]) + down * np.array([250, 190, 128])
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(x - width * 0.66, y - height * 0.27) / height
    glow = np.clip(1.15 - distance * 6, 0, 1)[..., None] ** 0.5
    pixels: np.ndarray = np.rint(sky * (1 - glow) + np.array([255, 236, 190]) * glow).astype(np.uint8)
    return pixels


def _draw_hills(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """Three ridges, the nearest one with grass."""
    x = np.arange(0, width + _FINE, _FINE)
    for base, rise, colour in ((0.50, 0.10, (112, 120, 150)), (0.62, 0.08, (72, 98, 108)), (0.78, 0.05, (44, 74, 60))):
        ridge = height * (base - rise * (np.sin(x / width * 9 * base + rise * 70) + 0.3 * np.sin(x / width * 47)))
        outline = list(zip(x.tolist(), ridge.tolist(), strict=True))
        draw.polygon([*outline, (width, height), (0, height)], fill=colour)
    blades = np.random.default_rng(1).uniform(size=(700, 3))
    for across, down, lean in blades:
        foot = (across * width, height * (0.84 + 0.2 * down))
        tip = (foot[0] + (lean - 0.5) * 30, foot[1] - 28)
        draw.line((foot, tip), fill=(70 + int(60 * lean), 110 + int(50 * down), 70), width=3)


def _draw_star(draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float) -> None:
    """A Siemens star: spokes that converge, and show the resolution."""
    box = [centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius]
    draw.ellipse(box, fill=_PAPER)
    spokes = 28
    for spoke in range(spokes):
        draw.pieslice(box, spoke * 360 / spokes, (spoke + 0.5) * 360 / spokes, fill=_INK)
    ring = radius * 1.04
    for turn in range(60):
        angle = math.tau * turn / 60
        inner, outer = ring + 4, ring + (20 if turn % 5 == 0 else 12)
        across, down = math.cos(angle), math.sin(angle)
        start, end = ((centre[0] + r * across, centre[1] + r * down) for r in (inner, outer))
        draw.line((start, end), fill=_PAPER, width=3)


def _draw_text(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """A title and lines of smaller and smaller print."""
    left = width * 0.05
    draw.text((left, height * 0.06), "Swin2SR", fill=_PAPER, font=ImageFont.load_default(26 * _FINE))
    for row, (size, text) in enumerate(((11, "small print"), (9, "smaller print"), (7, "the smallest print"))):
        font = ImageFont.load_default(size * _FINE)
        draw.text((left, height * (0.26 + 0.085 * row)), text, fill=_PAPER, font=font)


def main() -> None:
    """Write the sample to the file named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m app.imaging.sample", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("file", type=Path)
    parser.parse_args().file.write_bytes(draw_sample())


if __name__ == "__main__":
    main()
