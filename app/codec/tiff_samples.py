"""Makes colours and alpha of TIFF's samples: palettes, any depth, inverted gray, alpha that was multiplied in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.codec import planes
from app.codec import tiff_tags as tags
from app.codec.errors import BrokenImage
from app.codec.tiff_picture import TiffPicture


def channels(picture: TiffPicture, stored: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Colours and alpha of (H,W,samples), with white at the top and alpha not multiplied in; how many are colours."""
    colors = picture.colors
    if picture.photometric == tags.WHITE_IS_ZERO:
        stored[:, :, 0] = np.invert(stored[:, :, 0])
    if not picture.has_alpha:
        return stored[:, :, :colors], colors
    pixels, alpha = stored[:, :, :colors], stored[:, :, colors]
    associated = picture.number(tags.EXTRA) == tags.ASSOCIATED_ALPHA
    pixels = planes.without_premultiplication(pixels, alpha) if associated else pixels
    return np.concatenate((pixels, alpha[:, :, None]), axis=2), colors


def with_palette(picture: TiffPicture, stored: NDArray[Any]) -> NDArray[np.uint8]:
    """(H,W,3) or, with alpha behind the indices, (H,W,4)."""
    table = np.array(picture.numbers(tags.COLOR_MAP)).reshape(3, -1)
    table = table * 257 if table.max() < 256 else table
    if table.shape[1] <= int(stored[:, :, 0].max()):
        raise BrokenImage("The TIFF's pixels are outside its palette.")
    colors = (table.T[stored[:, :, 0]] >> 8).astype(np.uint8)
    if not picture.has_alpha:
        return colors
    alpha = planes.to_eight_bits(widened(stored[:, :, 1:2], picture.bits))
    if picture.number(tags.EXTRA) == tags.ASSOCIATED_ALPHA:
        colors = planes.without_premultiplication(colors, alpha[:, :, 0]).astype(np.uint8)
    return np.concatenate((colors, alpha), axis=2)


def widened(stored: NDArray[Any], bits: int) -> NDArray[Any]:
    """Samples of any depth as 8 or 16 bits whose largest is white again."""
    if bits in (8, 16):
        return stored
    full, target = 2**bits - 1, np.uint8 if bits < 8 else np.uint16
    scaled = stored.astype(np.float64) * (np.iinfo(target).max / full)
    return np.rint(scaled).astype(target)
