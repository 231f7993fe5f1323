"""Photos in memory with their low-resolution versions, and which of them are held out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from model.bench.workloads import upscale_tiled
from model.degradations import crop_to_multiple, reduce, resize_bicubic
from model.evaluate import list_photos, read_photo
from model.training.pairs import Photo, compress_at_random
from model.upscaler import Upscaler

HELD_OUT_EVERY = 40
RESTORED_QUALITY = (10, 90)
"""Lowest and highest JPEG quality before restoring; above it there is little to restore."""

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


def with_smaller(photos: Sequence[Photo], sizes: Sequence[float], scale: int, least: int) -> list[Photo]:
    """Return the photos and copies of other sizes, which show finer detail and sharper edges.

    Args:
        photos: as ``read_photos`` returns them.
        sizes: of the copies, over the photo's own, each between 0 and 1.
        scale: by how much low-resolution versions are reduced.
        least: shortest low-resolution side in pixels; smaller copies are left out.
    """
    found = list(photos)
    for size in sizes:
        for photo in photos:
            height, width = (int(side * size) // scale * scale for side in photo.sharp.shape[:2])
            if min(height, width) >= scale * least:
                sharp = resize_bicubic(photo.sharp, height, width)
                found.append(Photo(f"{photo.name} at {size:g}", sharp, reduce(sharp, scale)))
    return found


def learned_from(teacher: Upscaler, photos: Sequence[Photo]) -> list[Photo]:
    """Return the photos with what a teacher makes of their low-resolution versions in place of the sharp ones.

    What cannot be known from a low-resolution version is noise in training. A teacher's image has little of it (Hinton,
    Vinyals and Dean 2015, arXiv 1503.02531).

    Args:
        teacher: is applied again until its image has the size of the photo.
        photos: as ``read_photos`` returns them.

    Raises:
        ValueError: if the images of the teacher cannot have that size.
    """
    scale = photos[0].sharp.shape[0] // photos[0].reduced.shape[0]
    times = next((times for times in range(1, scale) if teacher.scale**times == scale), 0)
    if not times:
        raise ValueError(
            f"--teacher enlarges {teacher.scale} times and cannot teach a variant that enlarges {scale} times: "
            "use weights that enlarge by that, or by 2 for a variant that enlarges 4 times"
            if scale > 1
            else "--teacher is for variants that enlarge: a restoring variant has none"
        )

    def teach(photo: Photo) -> Photo:
        image = photo.reduced
        for _ in range(times):
            image = np.asarray(upscale_tiled(teacher, image), np.uint8)
        return Photo(photo.name, image, photo.reduced)

    return [teach(photo) for photo in photos]


def with_restored(photos: Sequence[Photo], restorer: Upscaler, seed: int) -> list[Photo]:
    """Return the photos, and each once more with a low-resolution version that was compressed and then restored.

    A variant that enlarges after a restoring one receives such inputs. Every doubling of the quality is as likely.

    Args:
        photos: as ``read_photos`` returns them.
        restorer: removes artefacts of JPEG, at scale 1.
        seed: of the qualities.
    """
    generator = np.random.default_rng(seed)

    def restored(photo: Photo) -> Photo:
        compressed = compress_at_random(photo.reduced, RESTORED_QUALITY, generator)
        image = np.asarray(upscale_tiled(restorer, compressed), np.uint8)
        return Photo(f"{photo.name}, restored", photo.sharp, image)

    return [*photos, *(restored(photo) for photo in photos)]


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
