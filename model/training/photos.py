"""The photos in memory, and crops of them with the low-resolution inputs that they were reduced to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.degradations import Pixels, Subsampling, compress, crop_to_multiple, reduce
from model.evaluate import list_photos, read_photo

HELD_OUT_EVERY = 40
JPEG_BLOCK = 8


@dataclass(frozen=True)
class Photo:
    """A photo and what it was reduced to before any JPEG, both (H, W, C) uint8."""

    name: str
    sharp: Pixels
    reduced: Pixels


@dataclass(frozen=True)
class Sample:
    """A training pair: network input, the same without JPEG, and the wanted output; each (h, w, C) uint8."""

    degraded: Pixels
    clean: Pixels
    sharp: Pixels


@dataclass(frozen=True)
class Batch:
    """Stacked samples, uint8: degraded and clean are (B, C, h, w), sharp is (B, C, s h, s w)."""

    degraded: Tensor
    clean: Tensor
    sharp: Tensor


def read_photos(folder: Path, scale: int, channels: int, least: int, threads: int) -> list[Photo]:
    """Decode and reduce a folder's photos once, by name; those too small for a crop are passed over.

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


def split(photos: Sequence[Photo]) -> tuple[list[Photo], list[Photo]]:
    """Part the photos into those to train on and every fortieth, held out to watch progress.

    With a single photo, both parts are that photo.
    """
    held_out = list(photos[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]) or [photos[-1]]
    names = {photo.name for photo in held_out}
    return [photo for photo in photos if photo.name not in names] or held_out, held_out


def turn(pixels: Pixels, way: int) -> Pixels:
    """Return one of the eight flips and quarter turns, ``way`` being 0 to 7."""
    pixels = np.rot90(pixels, way % 4)
    return pixels[:, ::-1] if way >= 4 else pixels


def cut(photo: Photo, crop: int, quality: tuple[int, int] | None, generator: np.random.Generator) -> Sample:
    """Cut a random crop, turned at random, and compress its input where a range of qualities is given.

    A crop of a JPEG seldom begins where an 8x8 block does, an uploaded JPEG always: one crop in four gets a random
    offset into its blocks. Two in three are stored with reduced chroma, as most files are. Every doubling of the
    quality is as likely, because what is lost goes with its inverse: drawn evenly, strong compression would be rare.
    """
    scale = photo.sharp.shape[0] // photo.reduced.shape[0]
    height, width = photo.reduced.shape[:2]
    top, left = int(generator.integers(height - crop + 1)), int(generator.integers(width - crop + 1))
    way = int(generator.integers(8))
    clean = turn(photo.reduced[top : top + crop, left : left + crop], way)
    sharp = turn(photo.sharp[scale * top : scale * (top + crop), scale * left : scale * (left + crop)], way)
    if quality is None:
        return Sample(clean, clean, sharp)
    level = round(quality[0] * (quality[1] / quality[0]) ** generator.random())
    subsampling: Subsampling = "4:2:0" if generator.random() < 2 / 3 else "4:4:4"
    down, right = generator.integers(JPEG_BLOCK, size=2) if generator.random() < 1 / 4 else (0, 0)
    padded = np.pad(clean, ((down, 0), (right, 0), (0, 0)), mode="reflect")
    return Sample(compress(padded, level, subsampling)[down:, right:], clean, sharp)


def stack(samples: Sequence[Sample]) -> Batch:
    """Put samples of one size together, channels first."""

    def together(images: Sequence[Pixels]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))

    degraded, clean = [sample.degraded for sample in samples], [sample.clean for sample in samples]
    return Batch(together(degraded), together(clean), together([sample.sharp for sample in samples]))


class Crops:
    """An endless series of batches, prepared ahead in threads; batch n depends on the seed and n alone.

    Args:
        photos: what to cut from.
        crop: low-resolution side in pixels.
        batch: crops in a batch.
        quality: JPEG qualities of the inputs, or None.
        seed: of everything drawn.
        threads: that prepare batches; as many batches again wait ready.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        *,
        crop: int,
        batch: int,
        quality: tuple[int, int] | None = None,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        self._photos = photos
        self._crop = crop
        self._batch = batch
        self._quality = quality
        self._seed = seed
        self._threads = threads

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0."""
        generator = np.random.default_rng((self._seed, step))
        chosen = generator.integers(len(self._photos), size=self._batch)
        return stack([cut(self._photos[int(n)], self._crop, self._quality, generator) for n in chosen])

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield the batches from step ``first`` on."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="crops") as pool:
            waiting: list[Future[Batch]] = []
            step = first
            try:
                while True:
                    while len(waiting) < 2 * self._threads:
                        waiting.append(pool.submit(self.batch, step))
                        step += 1
                    yield waiting.pop(0).result()
            finally:
                for future in waiting:
                    future.cancel()
