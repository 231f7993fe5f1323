"""Time and size of encoders and of their settings: ``python -m tests.encoder_effort [FOLDER]``.

The set: the photos of the folder (``../shared/testsets/Kodak`` has four), each enlarged to twice its size by
`small-x2`, and ten drawn graphics of 512x512. Times are of the processor, the least of two.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image

from app.codec import png_writer
from model import Upscaler
from model.training.graphics import draw_graphic

WEIGHTS = Path(__file__).parents[1] / "model" / "weights" / "small-x2.safetensors"

Encoder = Callable[[np.ndarray], bytes]


def through_pillow(name: str, **options: object) -> Encoder:
    """An encoder of Pillow's with its options."""

    def encode(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels).save(buffer, name, **options)
        return buffer.getvalue()

    return encode


ENCODERS: dict[str, Encoder] = {
    "PNG, 0.1.0": lambda pixels: imagecodecs.png_encode(pixels, level=1, filter=imagecodecs.PNG.FILTER.PAETH),
    "PNG": lambda pixels: png_writer.encode(pixels, 1),
    **{f"WebP 95, method {effort}": through_pillow("WEBP", quality=95, method=effort) for effort in (0, 2, 4, 6)},
    **{
        f"WebP lossless, method {effort}, quality 20": through_pillow("WEBP", lossless=True, quality=20, method=effort)
        for effort in (0, 1, 4)
    },
    **{
        f"AVIF 95, speed {speed}": through_pillow("AVIF", quality=95, speed=speed, max_threads=1)
        for speed in (10, 9, 8, 6)
    },
}


def draw_set(folder: Path) -> dict[str, list[np.ndarray]]:
    """The images (H, W, 3) uint8 of the set, by their kind."""
    photos = [np.asarray(PIL.Image.open(file).convert("RGB")) for file in sorted(folder.glob("*.png"))]
    upscaler = Upscaler.from_pretrained(WEIGHTS, device="cpu")
    graphics = [draw_graphic(np.random.default_rng(seed), 256, 2).sharp for seed in range(10)]
    return {
        "photos": photos,
        "twice their size": [upscaler([photo])[0] for photo in photos],
        "graphics": graphics,
    }


def measure(encode: Encoder, images: list[np.ndarray]) -> tuple[float, int]:
    """Seconds and bytes of all images."""
    seconds, size = 0.0, 0
    for image in images:
        times = []
        for _ in range(2):
            started = time.process_time()
            size_of_one = len(encode(image))
            times.append(time.process_time() - started)
        seconds, size = seconds + min(times), size + size_of_one
    return seconds, size


def main() -> None:
    """Print a row for each encoder: milliseconds and kB of each kind of image, and of all."""
    kinds = draw_set(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/testsets/Kodak"))
    sys.stdout.write(f"| encoder | {' | '.join(kinds)} | all |\n")
    for name, encode in ENCODERS.items():
        found = [measure(encode, images) for images in kinds.values()]
        found.append((sum(seconds for seconds, _ in found), sum(size for _, size in found)))
        cells = [f"{seconds * 1e3:.0f} ms, {size / 1e3:.0f} kB" for seconds, size in found]
        sys.stdout.write(f"| {name} | {' | '.join(cells)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
