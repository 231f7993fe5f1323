"""Photos in memory with their low-resolution versions, and which of them are held out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from model.degradations import crop_to_multiple, reduce
from model.evaluate import list_photos, read_photo
from model.training.pairs import Photo

HELD_OUT_EVERY = 40
T = TypeVar("T")


def read_photos(folder: Path, scale: int, channels: int, least: int, threads: int) -> list[Photo]:
    """Decode and reduce a folder's photos once, by name; those too small for a crop are left out.

    Args:
        folder: image files.
        scale: by how much they are reduced.
        channels: 3, or 1 for gray.
        least: shortest low-resolution side in pixels that is of use.
        threads: decoded at a time.

    Raises:
        ValueError: if no photo is large enough.
    """

    def read(file: Path) -> Photo | None:
        sharp = read_photo(file, channels)
        if min(sharp.shape[:2]) < scale * least:
            return None
        sharp = np.ascontiguousarray(crop_to_multiple(sharp, scale))
        return Photo(file.stem, sharp, reduce(sharp, scale))

    with ThreadPoolExecutor(threads) as pool:
        photos = [photo for photo in pool.map(read, list_photos(folder)) if photo is not None]
    if not photos:
        raise ValueError(f"no photo in {folder} is {scale * least}x{scale * least} pixels or larger")
    return photos


def hold_out(series: Sequence[T]) -> list[T]:
    """Return every fortieth of a series, or its last if it is shorter than that."""
    return list(series[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]) or [series[-1]]


def split(photos: Sequence[Photo]) -> tuple[list[Photo], list[Photo]]:
    """Part the photos into those to train on and every fortieth, held out to measure progress.

    With a single photo, both parts are that photo.
    """
    held_out = hold_out(photos)
    names = {photo.name for photo in held_out}
    return [photo for photo in photos if photo.name not in names] or held_out, held_out
