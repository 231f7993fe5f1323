"""An image's channels as the network takes them, and the network's answers as channels again.

Networks have three channels or one. Gray through a colour network is replicated and averaged back; colour through a
gray network is its luma, and the chroma is kept. Transparency goes through as gray of its own. All functions are pure
and work on any rectangle, so tiles are treated as whole images are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[Any]
"""uint8 or uint16, (H,W,C)."""
Values = NDArray[np.float32]
"""About [0,1], (H,W,C)."""

TURNS = 8
"""Flips and rotations of a rectangle: the self-ensemble."""

_NEIGHBOURS = 1
"""Low-resolution pixels on each side of one that bound its transparency: two or more pixels from a hard edge the
result is exactly transparent, or exactly opaque."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of R, G, B in JPEG's Y (ITU-R BT.601)."""


@dataclass(frozen=True)
class Pass:
    """One pass of the network over an image.

    Attributes:
        seen: what the network sees, (H,W,C) with its own number of channels.
        source: the image's pixels of the same place, (H,W,C).
        restore: turns the network's answer, given the source of the same rectangle, into the image's channels.
    """

    seen: Pixels
    source: Pixels
    restore: Callable[[Values, Pixels], Values]


def fit(pixels: Pixels, channels: int) -> Pass:
    """Make pixels of one or three channels fit a network of ``channels`` channels."""
    have = pixels.shape[2]
    if have == channels:
        return Pass(pixels, pixels, _keep)
    if have == 1:
        return Pass(np.broadcast_to(pixels, (*pixels.shape[:2], channels)), pixels, _average)
    return Pass(_luma(pixels), pixels, _with_chroma)


def fit_transparency(alpha: Pixels, channels: int) -> Pass:
    """Make transparency (H,W,1) fit a network of ``channels`` channels; what comes back stays within its neighbours.

    A network draws edges well, but leaves a level or two where nothing is, and dark corners: a background that was
    wholly transparent or wholly opaque has to stay so.
    """
    each = fit(alpha, channels)
    return Pass(each.seen, each.source, _within_neighbours)


def is_constant(alpha: Pixels) -> bool:
    """Whether a transparency is the same everywhere, so that there is nothing to compute."""
    return bool((alpha == alpha.flat[0]).all())


def turn(pixels: Pixels, index: int) -> Pixels:
    """One of the eight flips and rotations of (H,W,C); index 0 leaves it as it is."""
    turned = np.rot90(pixels, index % 4)
    return turned[:, ::-1] if index >= 4 else turned


def turn_back(values: Values, index: int) -> Values:
    """Undo :func:`turn`."""
    return np.rot90(values[:, ::-1] if index >= 4 else values, -(index % 4))


def _keep(values: Values, _source: Pixels) -> Values:
    return values


def _average(values: Values, _source: Pixels) -> Values:
    mean: Values = values.mean(axis=2, keepdims=True, dtype=np.float32)
    return mean


def _within_neighbours(values: Values, source: Pixels) -> Values:
    """The mean of the channels, no less and no more than the source has within one pixel."""
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
    """Y in 16 bit, so that rounding it costs nothing that 8-bit colours could show."""
    luma: Pixels = np.rint(_unit(pixels) @ _LUMA[:, None] * np.float32(65535)).astype(np.uint16)
    return luma


def _with_chroma(luma: Values, source: Pixels) -> Values:
    """RGB of a restored luma and the source's chroma, which is enlarged bicubically where the network enlarges."""
    rgb = _unit(source)
    difference = rgb - rgb @ _LUMA[:, None]  # R - Y, G - Y, B - Y: the chroma, free of brightness
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
