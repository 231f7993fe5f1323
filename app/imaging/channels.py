"""Converts between the channels of an image and those of a network.

Networks have three channels or one. A color network sees gray replicated, and its channels are averaged afterwards. A
gray network sees the luma of colors, and their chroma is kept. An alpha plane is computed as gray of its own. All
functions are pure and work on any rectangle, so tiles and whole images are treated alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from PIL import Image

from model.types import Pixels, Values

AUGMENTATIONS = 8
"""Number of flips and rotations of a rectangle: the self-ensemble."""

_NEIGHBOURS = 1
"""Low-resolution pixels on each side of one that bound its alpha: two or more pixels from a hard edge the result is
exactly transparent, or exactly opaque."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of R, G, B in JPEG's Y (ITU-R BT.601)."""


@dataclass(frozen=True)
class NetworkInput:
    """The input of a network, and how its output becomes the image's channels again.

    Attributes:
        pixels: (H,W,C) with the network's number of channels.
        source: the image's pixels of the same rectangle, (H,W,C).
        restore: turns the network's output, given the source of the same rectangle, into the image's channels.
    """

    pixels: Pixels
    source: Pixels
    restore: Callable[[Values, Pixels], Values]

    @property
    def is_kept(self) -> bool:
        """Whether the network's output has the image's channels as it is."""
        return self.restore is _keep


def adapt(pixels: Pixels, channels: int) -> NetworkInput:
    """Convert pixels of one or three channels for a network of ``channels`` channels."""
    have = pixels.shape[2]
    if have == channels:
        return NetworkInput(pixels, pixels, _keep)
    if have == 1:
        replicated = cast("Pixels", np.broadcast_to(pixels, (*pixels.shape[:2], channels)))
        return NetworkInput(replicated, pixels, _average)
    return NetworkInput(_luma(pixels), pixels, _with_chroma)


def adapt_alpha(alpha: Pixels, channels: int) -> NetworkInput:
    """Convert alpha (H,W,1) for a network of ``channels`` channels; the output is limited to the range around it.

    A network adds a level or two to empty areas, and dark corners. The limits keep a background that is fully
    transparent or fully opaque unchanged.
    """
    each = adapt(alpha, channels)
    return NetworkInput(each.pixels, each.source, _within_neighbours)


def is_constant(alpha: Pixels) -> bool:
    """Whether alpha is the same everywhere, so that it need not be computed."""
    return bool((alpha == alpha.flat[0]).all())


def augment(pixels: Pixels, index: int) -> Pixels:
    """One of the eight flips and rotations of (H,W,C); index 0 changes nothing."""
    rotated = np.rot90(pixels, index % 4)
    return rotated[:, ::-1] if index >= 4 else rotated


def deaugment(values: Values, index: int) -> Values:
    """Undo :func:`augment`."""
    return np.rot90(values[:, ::-1] if index >= 4 else values, -(index % 4))


def _keep(values: Values, _source: Pixels) -> Values:
    return values


def _average(values: Values, _source: Pixels) -> Values:
    mean: Values = values.mean(axis=2, keepdims=True, dtype=np.float32)
    return mean


def _within_neighbours(values: Values, source: Pixels) -> Values:
    """The mean of the channels, limited to the range of the source within one pixel."""
    scale = values.shape[0] // source.shape[0]
    lowest, highest = (
        _over_neighbours(source, choose).repeat(scale, 0).repeat(scale, 1) for choose in (np.minimum, np.maximum)
    )
    within: Values = np.clip(_average(values, source), _unit(lowest), _unit(highest))
    return within


def _over_neighbours(pixels: Pixels, choose: np.ufunc) -> Pixels:
    for axis in (0, 1):
        margins = [(_NEIGHBOURS, _NEIGHBOURS) if each == axis else (0, 0) for each in range(3)]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(pixels, margins, "edge"), 2 * _NEIGHBOURS + 1, axis)
        pixels = choose.reduce(windows, axis=-1)
    return pixels


def _unit(pixels: Pixels) -> Values:
    values: Values = pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    return values


def _luma(pixels: Pixels) -> Pixels:
    """Y in 16 bits, so that rounding loses nothing of 8-bit colors."""
    luma: Pixels = np.rint(_unit(pixels) @ _LUMA[:, None] * np.float32(65535)).astype(np.uint16)
    return luma


def _with_chroma(luma: Values, source: Pixels) -> Values:
    """RGB of a restored luma and the source's chroma, resized with a bicubic filter if the network enlarges."""
    rgb = _unit(source)
    difference = rgb - rgb @ _LUMA[:, None]  # R - Y, G - Y, B - Y: the chroma
    height, width = luma.shape[:2]
    if (height, width) != source.shape[:2]:
        enlarged = [
            Image.fromarray(np.ascontiguousarray(difference[:, :, channel])).resize(
                (width, height), Image.Resampling.BICUBIC
            )
            for channel in range(3)
        ]
        difference = np.stack([np.asarray(channel) for channel in enlarged], axis=2)
    return luma + difference
