"""BMP's run-length encoding of 4, 8 and 24 bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.codec.errors import BrokenImage

_END_OF_LINE, _END, _DELTA = 0, 1, 2


def decode_rle(body: bytes, at: int, width: int, height: int, bits: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The rows in the order of the file, and which pixels were drawn.

    Args:
        body: the file.
        at: where the pixel data begins.
        width, height: in pixels.
        bits: 4, 8 or 24.

    Returns:
        (H,W,1) of palette indices or (H,W,3) of RGB; (H,W), false where a pixel was skipped.

    Raises:
        BrokenImage: if the data ends before the picture does.
    """
    channels = 3 if bits == 24 else 1
    samples = np.zeros((height, width, channels), np.uint8)
    drawn = np.zeros((height, width), np.bool_)
    x = y = 0
    while y < height and not (x >= width and y == height - 1):
        count, code = _read(body, at, 2)
        if count:
            _draw(samples, drawn, (x, y), _repeat(_read(body, at + 1, channels), count, bits))
            x, at = x + count, at + 1 + channels
        elif code == _END_OF_LINE:
            x, y, at = 0, y + 1, at + 2
        elif code == _END:
            break
        elif code == _DELTA:
            right, down = _read(body, at + 2, 2)
            x, y, at = x + right, y + down, at + 4
        else:
            size = (code * bits + 7) // 8
            _draw(samples, drawn, (x, y), _absolute(_read(body, at + 2, size), code, bits))
            x, at = x + code, at + 2 + size + size % 2
    return samples, drawn


def _read(body: bytes, at: int, size: int) -> bytes:
    if at + size > len(body):
        raise BrokenImage("The BMP is truncated; send the whole file.")
    return body[at : at + size]


def _repeat(values: bytes, count: int, bits: int) -> NDArray[np.uint8]:
    """(count, channels) of a run."""
    if bits == 4:
        pair = np.array((values[0] >> 4, values[0] & 15), np.uint8)
        return np.resize(pair, count)[:, None]
    return np.tile(np.frombuffer(values, np.uint8)[::-1], (count, 1))


def _absolute(values: bytes, count: int, bits: int) -> NDArray[np.uint8]:
    """(count, channels) of pixels one by one."""
    found = np.frombuffer(values, np.uint8)
    if bits == 4:
        return np.stack((found >> 4, found & 15), axis=1).reshape(-1)[:count, None]
    return found[:, None] if bits == 8 else found.reshape(-1, 3)[:, ::-1]


def _draw(samples: NDArray[np.uint8], drawn: NDArray[np.bool_], place: tuple[int, int], run: NDArray[np.uint8]) -> None:
    x, y = place
    end = min(x + len(run), samples.shape[1])
    if x < end:
        samples[y, x:end] = run[: end - x]
        drawn[y, x:end] = True
