"""Peak memory of a request, estimated from its header before anything is decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from app import codec

if TYPE_CHECKING:
    from app.imaging.work_plan import Step

BODY_FACTORS: Mapping[str, float] = MappingProxyType({"jpeg": 0.85, "webp": 0.85, "avif": 0.85, "jxl": 0.85})
"""Bytes of the encoded result for each byte of its planes, noise at quality 95; lossless formats have 1."""


def peak_bytes(header: codec.Header, steps: Sequence[Step], size: tuple[int, int], format_: str, quality: int) -> int:
    """Largest amount of memory for planes, unstitched results and the encoder at a time.

    Args:
        header: of the upload.
        steps: of the plan.
        size: height and width of the result in pixels.
        format_: of the result.
        quality: of lossy formats; 100 makes WebP lossless.
    """
    per_pixel = _bytes_per_pixel(header)
    peaks = [int(codec.DECODE_FACTORS[header.format] * header.pixels * per_pixel)]
    for step in steps:
        pixels = step.height * step.width
        before = pixels * per_pixel * 2  # the image, and the same padded
        if step.network.channels == 1 and header.mode != "gray":
            before += pixels * 16  # float32 of three channels and their luma
        after = step.output_size[0] * step.output_size[1] * per_pixel
        largest = max(tile.area for tile in step.tiles) * step.network.scale**2 * step.network.channels * 4
        peaks.append(before + after + largest * min(step.jobs, step.result_window))
    upscaled = steps[-1].output_size
    result = size[0] * size[1] * per_pixel
    lossless_webp = format_ == "webp" and quality == 100
    factor = codec.LOSSLESS_WEBP_FACTOR if lossless_webp else codec.ENCODE_FACTORS[format_]
    peaks.append(int(result * (1 + factor + header.alpha)))
    if size != upscaled:
        peaks.append(upscaled[0] * upscaled[1] * per_pixel + 2 * result)
    return max(peaks)


def response_bytes(header: codec.Header, size: tuple[int, int], format_: str, max_bytes: int | None) -> int:
    """Estimate of the size of the encoded result."""
    estimate = int(size[0] * size[1] * _bytes_per_pixel(header) * BODY_FACTORS.get(format_, 1.0)) + 4096
    return estimate if max_bytes is None else min(estimate, max_bytes)


def _bytes_per_pixel(header: codec.Header) -> int:
    planes = (1 if header.mode == "gray" else 3) + header.alpha
    return planes * (2 if header.bits > 8 else 1)
