"""Batches of crops: photographs mixed with drawn graphics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from model.training.fonts import Font, built_in
from model.training.graphics import draw_graphic
from model.training.pairs import Batch, Photo, Sample, cut, stack

GRAPHIC_MARGIN = 8
"""Low-resolution pixels by which a drawn graphic is larger than the crop taken from it."""


class Crops:
    """An endless series of batches, prepared ahead in threads; batch n depends on the seed and n alone.

    Args:
        photos: what to cut from.
        crop: low-resolution side in pixels.
        batch: crops in a batch.
        quality: JPEG qualities of the inputs, or None.
        graphics: share of the crops that are drawn graphics, 0 to 1.
        fonts: for text in graphics.
        window: of the network; one crop in four is padded to it as serving pads. With 1 none is.
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
        graphics: float = 0.0,
        fonts: Sequence[Font] = (built_in,),
        window: int = 1,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        self._photos = photos
        self._crop = crop
        self._batch = batch
        self._quality = quality
        self._graphics = graphics
        self._fonts = fonts
        self._window = window
        self._seed = seed
        self._threads = threads
        first = photos[0]
        self._scale = first.sharp.shape[0] // first.reduced.shape[0]
        self._channels = first.sharp.shape[2]

    def batch(self, step: int) -> Batch:
        """Return the batch of a step; steps of training count from 0, negative ones are other batches."""
        generator = np.random.default_rng((self._seed, step) if step >= 0 else (self._seed, -step, 1))
        return stack([self._sample(generator) for _ in range(self._batch)])

    def _sample(self, generator: np.random.Generator) -> Sample:
        if generator.random() < self._graphics:
            side = self._crop + GRAPHIC_MARGIN
            photo = draw_graphic(generator, side, self._scale, self._channels, self._fonts)
        else:
            photo = self._photos[int(generator.integers(len(self._photos)))]
        return cut(photo, self._crop, self._quality, generator, self._window)

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
