"""Converts between the arrays of decoders and the planes of an image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from app.codec import color
from app.codec.errors import UnsupportedImage
from app.codec.image import Metadata, Pixels


def split(samples: NDArray[Any]) -> tuple[Pixels, Pixels | None]:
    """Colour planes and alpha of (H,W), or of (H,W,C) with 1 to 4 samples a pixel."""
    if samples.ndim == 2:
        return cast("Pixels", samples[:, :, None]), None
    if samples.shape[2] in (2, 4):
        return cast("Pixels", samples[:, :, :-1]), cast("Pixels", samples[:, :, -1])
    return cast("Pixels", samples), None


def join(pixels: Pixels, alpha: Pixels | None) -> NDArray[Any]:
    """(H,W) for plain gray, else (H,W,C) with alpha last; what encoders take."""
    if alpha is not None:
        return np.concatenate((pixels, alpha[:, :, None]), axis=2)
    return np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def of_picture(picture: PIL.Image.Image, metadata: Metadata) -> tuple[Pixels, Pixels | None, Metadata, tuple[str, ...]]:
    """Planes, metadata and notices of a loaded picture. CMYK is converted to sRGB without its profile."""
    if picture.mode == "CMYK":
        pixels, notice = color.cmyk_to_srgb(np.asarray(picture), metadata.icc)
        return pixels, None, replace(metadata, icc=None), (notice,)
    of_rgb = metadata.icc is not None and color.profile_space(metadata.icc) == "RGB"
    return *from_pillow(picture, palette_may_be_gray=not of_rgb), metadata, ()


def from_pillow(picture: PIL.Image.Image, *, palette_may_be_gray: bool) -> tuple[Pixels, Pixels | None]:
    """Colour planes and alpha of a loaded picture of any mode but CMYK.

    Args:
        picture: loaded.
        palette_may_be_gray: make one plane of a palette that contains grays only.

    Raises:
        UnsupportedImage: if the mode is not gray or RGB of 8 or 16 bits.
    """
    palette = picture.mode in ("P", "PA")
    transparent = "transparency" in picture.info
    match picture.mode:
        case "1" | "L":
            picture = picture.convert("LA" if transparent else "L")
        case "La":
            picture = picture.convert("LA")
        case "P":
            picture = picture.convert("RGBA" if transparent else "RGB")
        case "RGB" if transparent:
            picture = picture.convert("RGBA")
        case "PA" | "RGBa":
            picture = picture.convert("RGBA")
        case "RGBX" | "YCbCr":
            picture = picture.convert("RGB")
        case "LA" | "RGB" | "RGBA":
            pass
        case _:
            raise UnsupportedImage(f"Samples of the kind {picture.mode} are not supported; send RGB or gray.")
    pixels, alpha = split(np.asarray(picture))
    if palette and palette_may_be_gray and not np.any(pixels != pixels[:, :, :1]):
        pixels = pixels[:, :, :1]
    return pixels, alpha


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Apply EXIF's orientation, 1 to 8, to (H,W) or (H,W,C)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return cast("Pixels", np.ascontiguousarray(pixels))


def key_alpha(pixels: Pixels, key: tuple[int, ...]) -> Pixels:
    """Alpha of a picture in which one colour is transparent."""
    visible = np.any(pixels != np.array(key, pixels.dtype), axis=2)
    return cast("Pixels", visible.astype(pixels.dtype) * np.iinfo(pixels.dtype).max)


def without_premultiplication(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Colours that were stored multiplied by their alpha."""
    full = int(np.iinfo(pixels.dtype).max)
    weight = np.maximum(alpha, 1).astype(np.uint64)[:, :, None]
    colors = (pixels.astype(np.uint64) * full + weight // 2) // weight
    return cast("Pixels", np.minimum(colors, full).astype(pixels.dtype))


def widen(samples: NDArray[Any], bits: int) -> NDArray[Any]:
    """Samples of 9 to 16 bits, stored in 16, as samples of 16 whose largest is white again; 8 bits stay 8."""
    if samples.dtype == np.uint8 or bits >= 16:
        return samples
    return samples << (16 - bits) | samples >> (2 * bits - 16)


def to_eight_bits(pixels: Pixels) -> NDArray[np.uint8]:
    """65535 to 255, rounded."""
    if pixels.dtype == np.uint8:
        return cast("NDArray[np.uint8]", pixels)
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def flatten(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Colours over white, mixed without linearising them, as browsers do."""
    full = int(np.iinfo(pixels.dtype).max)
    mixed = np.empty_like(pixels)
    weight = alpha.astype(np.uint32)
    for channel in range(pixels.shape[2]):
        plane = pixels[:, :, channel].astype(np.uint32) * weight + full * (full - weight)
        mixed[:, :, channel] = (plane + full // 2) // full
    return mixed


def fill_transparent(pixels: Pixels, alpha: Pixels | None) -> Pixels:
    """Give fully transparent pixels the colours of their neighbours.

    The stored colours are arbitrary, often black, and a network would blend them into the edges of visible areas.
    Visible pixels are not changed.

    Args:
        pixels: (H,W,C).
        alpha: (H,W), 0 is transparent.
    """
    if alpha is None or alpha.all() or not alpha.any():
        return pixels
    visible = alpha > 0
    filled = pixels.copy()
    for channel in range(pixels.shape[2]):
        plane = filled[:, :, channel]
        around = _push_pull(np.where(visible, plane, 0).astype(np.float32), visible.astype(np.float32))
        np.copyto(plane, np.rint(around).astype(pixels.dtype), where=~visible)
    return filled


def _push_pull(total: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weighted means, over larger and larger squares around pixels without weight. Some weight must be positive."""
    mean = np.asarray(total / np.maximum(weight, 1), np.float32)
    if weight.all():
        return mean
    height, width = weight.shape
    coarse = _push_pull(_quarter(total), _quarter(weight))
    spread = coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return np.asarray(np.where(weight > 0, mean, spread), np.float32)


def _quarter(values: NDArray[np.float32]) -> NDArray[np.float32]:
    height, width = values.shape
    even = np.pad(values, ((0, height % 2), (0, width % 2)))
    return even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
