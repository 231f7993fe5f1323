"""PSNR and SSIM of an upscaler on a folder of images, by the protocol of the published Swin2SR figures.

Outputs are rounded to 8 bit, ``scale`` pixels are left out at every border (none for restoration), and Y is BT.601's
studio-range luma. Low-resolution inputs come with the folder (``HR/`` and ``LR_bicubic/X2/`` as the super-resolution
benchmarks are laid out) or are made from its photos: MATLAB's bicubic, then JPEG where a quality is given.
"""

from __future__ import annotations

import argparse
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.degradations import Subsampling, compress, crop_to_multiple, reduce, resize_bicubic
from model.types import Pixels8

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
RESTORATION_QUALITY = 40
Plane = npt.NDArray[np.float64]
# Exceptions of Pillow for files that are not images, broken or truncated.
_UNREADABLE = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, OverflowError, RuntimeError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


class ImageUpscaler(Protocol):
    """The interface of ``model.upscaler.Upscaler`` that is evaluated."""

    @property
    def scale(self) -> int:
        """Output over input side; 1 for restoration."""

    @property
    def channels(self) -> int:
        """1 (gray) or 3 (RGB)."""

    def __call__(self, images: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Upscale images (H, W, C) uint8 to (scale H, scale W, C) uint8."""


@dataclass(frozen=True)
class Fidelity:
    """Similarity of an image to its reference: PSNR in dB (infinite if equal), SSIM at most 1."""

    psnr_y: float
    ssim_y: float
    psnr_rgb: float
    ssim_rgb: float


@dataclass(frozen=True)
class ImageScore:
    """The fidelity of one image, and of the baseline without a network: bicubic enlargement, or the JPEG itself."""

    name: str
    upscaled: Fidelity
    baseline: Fidelity


@dataclass(frozen=True)
class Evaluation:
    """The scores of a folder's images, in the order of their names."""

    images: tuple[ImageScore, ...]

    @property
    def upscaled(self) -> Fidelity:
        """Arithmetic mean over the images, as published figures are."""
        return _mean([image.upscaled for image in self.images])

    @property
    def baseline(self) -> Fidelity:
        """Arithmetic mean over the images of the baseline."""
        return _mean([image.baseline for image in self.images])


@dataclass(frozen=True)
class Pair:
    """A reference and the input made of it, both (H, W, C) uint8."""

    name: str
    reference: Pixels8
    reduced: Pixels8


def _mean(scores: Sequence[Fidelity]) -> Fidelity:
    def mean(field: str) -> float:
        return float(np.mean([getattr(score, field) for score in scores]))

    return Fidelity(mean("psnr_y"), mean("ssim_y"), mean("psnr_rgb"), mean("ssim_rgb"))


def luma(pixels: Pixels8) -> Plane:
    """Return Y in [16, 235], (H, W, 1): 65.481 R + 128.553 G + 24.966 B + 16; gray pixels are Y already."""
    if pixels.shape[2] == 1:
        return pixels.astype(np.float64)
    return np.asarray(pixels @ np.array([[65.481], [128.553], [24.966]]) / 255 + 16)


def psnr(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Return the peak signal-to-noise ratio in dB of values in [0, 255]; infinite where they are equal."""
    error = float(np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def _blur(plane: Plane) -> Plane:
    """Filter (H, W, C) with SSIM's 11x11 Gaussian of sigma 1.5, where the window fits."""
    offset = np.arange(11) - 5
    weight = np.exp(-(offset**2) / (2 * 1.5**2))
    weight /= weight.sum()
    height, width = plane.shape[0] - 10, plane.shape[1] - 10
    rows = sum(w * plane[i : i + height] for i, w in enumerate(weight))
    return np.asarray(sum(w * rows[:, i : i + width] for i, w in enumerate(weight)))


def ssim(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Return the structural similarity of values (H, W, C) in [0, 255], the mean over channels.

    Source: Wang et al. 2004, with K1 = 0.01, K2 = 0.03.

    Raises:
        ValueError: if a side is under 11 pixels, the window's.
    """
    if min(first.shape[:2]) < 11:
        raise ValueError(f"SSIM needs 11x11 pixels, got {first.shape[0]}x{first.shape[1]}")
    x, y = first.astype(np.float64), second.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))))


def _inner(image: Pixels8, reference: Pixels8, border: int) -> tuple[Pixels8, Pixels8]:
    if image.shape != reference.shape:
        raise ValueError(f"an image of {image.shape} cannot be measured against one of {reference.shape}")
    inner = (slice(border, image.shape[0] - border), slice(border, image.shape[1] - border))
    return image[inner], reference[inner]


def psnr_y(image: Pixels8, reference: Pixels8, border: int) -> float:
    """Return the PSNR on Y in dB of (H, W, C) uint8 without ``border`` pixels on each side.

    Raises:
        ValueError: if the shapes differ.
    """
    image, reference = _inner(image, reference, border)
    return psnr(luma(image), luma(reference))


def measure(image: Pixels8, reference: Pixels8, border: int) -> Fidelity:
    """Compare an image with its reference, both (H, W, C) uint8, without ``border`` pixels on each side.

    Raises:
        ValueError: if the shapes differ or the border leaves less than SSIM's 11x11 window.
    """
    image, reference = _inner(image, reference, border)
    y, reference_y = luma(image), luma(reference)
    return Fidelity(psnr(y, reference_y), ssim(y, reference_y), psnr(image, reference), ssim(image, reference))


def read_photo(file: Path, channels: int) -> Pixels8:
    """Decode a file to (H, W, channels) uint8: RGB, or gray for one channel.

    Raises:
        ValueError: if it is not an image, or broken; the message names the file.
    """
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    except _UNREADABLE as error:
        raise ValueError(f"{file} cannot be read as an image: {error or type(error).__name__}") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def list_photos(folder: Path) -> list[Path]:
    """Return the folder's image files by name.

    Raises:
        ValueError: if there are none, naming the folder.
    """
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"no images in {folder}")
    return files


def read_pairs(
    folder: Path, scale: int, channels: int, quality: int | None, subsampling: Subsampling = "4:2:0"
) -> Iterator[Pair]:
    """Read a folder's references with their low-resolution inputs.

    Raises:
        ValueError: if the folder holds no images or a broken one, or lacks the low-resolution image of one of them.
    """
    benchmark = folder / "HR"
    given = folder / "LR_bicubic" / f"X{scale}"
    for file in list_photos(benchmark if benchmark.is_dir() else folder):
        reference = read_photo(file, channels)
        if benchmark.is_dir() and scale > 1:
            source = given / f"{file.stem}x{scale}.png"
            if not source.is_file():
                raise ValueError(f"{file} has no low-resolution image {source}")
            reduced = read_photo(source, channels)
            reference = reference[: reduced.shape[0] * scale, : reduced.shape[1] * scale]
        else:
            reference = crop_to_multiple(reference, scale)
            reduced = reduce(reference, scale)
        if quality is not None:
            reduced = compress(reduced, quality, subsampling)
        yield Pair(file.stem, reference, reduced)


def evaluate_folder(
    upscaler: ImageUpscaler, folder: Path, *, quality: int | None = None, subsampling: Subsampling = "4:2:0"
) -> Evaluation:
    """Measure an upscaler, image by image, against a folder of references.

    Args:
        upscaler: what is measured; its scale and channels decide how the folder is read.
        folder: ``HR/`` with ``LR_bicubic/X{scale}/NAMEx{scale}.png``, or photos.
        quality: JPEG quality of the inputs; None leaves them uncompressed, and means 40 for restoration.
        subsampling: chroma of that JPEG.

    Raises:
        ValueError: if the folder holds no images or a broken one, or lacks the low-resolution image of one of them.
    """
    scale = upscaler.scale
    if scale == 1 and quality is None:
        quality = RESTORATION_QUALITY
    border = scale if scale > 1 else 0
    scores = []
    for pair in read_pairs(folder, scale, upscaler.channels, quality, subsampling):
        height, width = pair.reference.shape[:2]
        (upscaled,) = upscaler([pair.reduced])
        scores.append(
            ImageScore(
                pair.name,
                measure(upscaled, pair.reference, border),
                measure(resize_bicubic(pair.reduced, height, width), pair.reference, border),
            )
        )
    return Evaluation(tuple(scores))


def tabulate(evaluation: Evaluation) -> str:
    """Return the evaluation as a Markdown table: upscaled, baseline, and the gain in Y-PSNR."""
    lines = [
        "| image | Y-PSNR | Y-SSIM | RGB-PSNR | RGB-SSIM | baseline Y-PSNR | baseline RGB-PSNR | gain Y | gain RGB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = (*evaluation.images, ImageScore("mean", evaluation.upscaled, evaluation.baseline))
    for row in rows:
        ours, plain = row.upscaled, row.baseline
        lines.append(
            f"| {row.name} | {ours.psnr_y:.2f} | {ours.ssim_y:.4f} | {ours.psnr_rgb:.2f} | {ours.ssim_rgb:.4f} "
            f"| {plain.psnr_y:.2f} | {plain.psnr_rgb:.2f} "
            f"| {ours.psnr_y - plain.psnr_y:+.2f} | {ours.psnr_rgb - plain.psnr_rgb:+.2f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m model.evaluate CHECKPOINT FOLDER``, which needs torch, numpy, pillow and safetensors alone."""
    from model.upscaler import Upscaler  # noqa: PLC0415 - the measures above need no torch

    parser = argparse.ArgumentParser(prog="python -m model.evaluate", description="PSNR and SSIM on a folder.")
    parser.add_argument("checkpoint", type=Path, help="Hugging Face folder, or .safetensors or .pth file")
    parser.add_argument("folder", type=Path, help="photos, or HR/ with LR_bicubic/X2/")
    parser.add_argument("--quality", type=int, help="JPEG quality of the inputs (restoration: 40)")
    parser.add_argument("--subsampling", choices=["4:2:0", "4:4:4"], default="4:2:0")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    try:
        upscaler = Upscaler.from_pretrained(options.checkpoint, device=options.device)
        evaluation = evaluate_folder(upscaler, options.folder, quality=options.quality, subsampling=options.subsampling)
    except ValueError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    sys.stdout.write(tabulate(evaluation) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
