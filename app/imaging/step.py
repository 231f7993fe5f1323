"""One pass of a network over an image: cutting into tiles, and stitching the results."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import codec
from app.imaging.channels import (
    NetworkInput,
    adapt,
    adapt_alpha,
    augment,
    deaugment,
    is_constant,
)
from app.imaging.work_plan import Step
from model.padding import pad
from model.tiling import Parallel, Stitcher
from model.types import Pixels


class StepRun:
    """The tiles of one step, and the image that their results become.

    Args:
        image: the input, of the step's size.
        step: of the plan.
        parallel: runs calls that do not depend on each other at once.
    """

    def __init__(self, image: codec.Image, step: Step, parallel: Parallel) -> None:
        self._image = image
        self._step = step
        self._inputs = list(_inputs(image, step))
        self._stitchers = [
            Stitcher(
                image.height,
                image.width,
                each.source.shape[2],
                scale=step.network.scale,
                tiles=step.tiles,
                dtype=each.source.dtype,
                parallel=parallel,
            )
            for each in self._inputs
        ]

    def tiles(self) -> Iterator[tuple[Pixels, np.dtype[Any] | None]]:
        """The inputs of the network: for each tile the colors and the alpha plane, each in every augmentation.

        With the integer type that the result may be rounded to, where it is neither blended nor converted.
        """
        alone = len(self._step.tiles) == self._step.augmentations == 1
        for tile in self._step.tiles:
            for each in self._inputs:
                for index in range(self._step.augmentations):
                    yield augment(tile.cut(each.pixels), index), each.source.dtype if alone and each.is_kept else None

    @property
    def groups(self) -> Iterator[tuple[int, int]]:
        """Tile and input of each group of results that is stitched together, in the order of ``tiles``."""
        for tile in range(len(self._step.tiles)):
            for index in range(len(self._inputs)):
                yield tile, index

    def stitch(self, group: tuple[int, int], outputs: list[NDArray[Any]]) -> None:
        """Add the results of a group: average them, convert the channels, and stitch.

        Results that were rounded are the only ones of their input, and are taken as they are.

        Raises:
            ValueError: if a value is not finite.
        """
        tile, each = self._step.tiles[group[0]], self._inputs[group[1]]
        values = deaugment(outputs[0], 0)
        if len(outputs) > 1:
            restored = [deaugment(output, index) for index, output in enumerate(outputs)]
            values = np.mean(restored, axis=0, dtype=np.float32)
        self._stitchers[group[1]].add(tile, each.restore(values, tile.cut(each.source)))

    def finish(self) -> codec.Image:
        """The image with its colors and its alpha plane upscaled."""
        results = [stitcher.finish() for stitcher in self._stitchers]
        pixels, alpha = results[0], self._image.alpha
        if len(results) > 1:
            alpha = results[1][:, :, 0]
        elif alpha is not None and self._step.network.scale > 1:
            alpha = np.full(pixels.shape[:2], alpha.flat[0], alpha.dtype)
        return dataclasses.replace(self._image, pixels=pixels, alpha=alpha)


def _inputs(image: codec.Image, step: Step) -> Iterator[NetworkInput]:
    """The colors, and the alpha plane if it has to be computed; padded to the window grid."""
    network = step.network
    yield _pad(adapt(codec.fill_transparent(image.pixels, image.alpha), network.channels), network.window_size)
    if image.alpha is not None and network.scale > 1 and not is_constant(image.alpha):
        yield _pad(adapt_alpha(image.alpha[:, :, None], network.channels), network.window_size)


def _pad(each: NetworkInput, window: int) -> NetworkInput:
    pixels = pad(each.pixels, window)
    return NetworkInput(pixels, pixels if each.source is each.pixels else pad(each.source, window), each.restore)
