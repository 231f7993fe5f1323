"""A loaded model, and the items that the batcher runs with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from app.variants.device import is_out_of_memory
from model.gpu.pending import PendingBatch
from model.official.fetch import file_digest

logger = logging.getLogger(__name__)

WARM_UP_SIDES = (64, 48)
"""Sides of the warm-up images in pixels; rounded up to multiples of the window."""


class TileUpscaler(Protocol):
    """The part of ``model.upscaler.Upscaler`` that the service uses."""

    scale: int
    window_size: int
    channels: int
    device: Any

    @property
    def bytes_per_pixel(self) -> int:
        """Upper bound on the memory of a forward pass for each pixel of its tiles."""

    @property
    def runs_ahead(self) -> bool:
        """Whether the device is asynchronous, so that ``launch`` can be used."""

    def forward(self, tiles: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Reconstruct tiles (H,W,C) on the window grid in one forward pass: (s H, s W, C) in about [0,1]."""

    def launch(
        self, tiles: Sequence[NDArray[Any]], dtypes: Sequence[np.dtype[Any] | None] | None = None
    ) -> PendingBatch:
        """Begin ``forward`` and return at once, if ``runs_ahead``; if it ``rounds``, round results to their dtypes."""


Load = Callable[[str, Path], TileUpscaler]
"""Loads the weights of a variant from a path. Raises ValueError if they cannot be used."""


@dataclass(eq=False)
class Throughput:
    """Measured speed of a variant. Each forward pass counts 10 % less than the one after it."""

    _pixels: float = 0.0
    _seconds: float = 0.0

    def record(self, pixels: int, seconds: float) -> None:
        """Add a forward pass."""
        self._pixels = 0.9 * self._pixels + pixels
        self._seconds = 0.9 * self._seconds + seconds

    @property
    def pixels_per_second(self) -> float | None:
        """Input pixels per second; None before the first forward pass."""
        return self._pixels / self._seconds if self._seconds else None


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A loaded model. A reload creates another one; requests keep the one they were admitted with."""

    key: str
    """Tiles of the same key may share a batch."""
    upscaler: TileUpscaler
    digest: str | None = None
    """SHA-256 of the file of weights, in hexadecimal."""
    parameters: int | None = None
    throughput: Throughput = field(default_factory=Throughput)

    @property
    def precision(self) -> str:
        """Precision of the computation. Stand-ins without this attribute compute in float32."""
        return getattr(self.upscaler, "precision", "exact")

    @property
    def rounds(self) -> bool:
        """Whether a device can round results to integers. A stand-in that does not say cannot."""
        return getattr(self.upscaler, "rounds", False)


@dataclass(frozen=True, eq=False)
class TileJob:
    """An item of the batcher: a tile (H,W,C), and the model that its request was admitted with."""

    upscaler: TileUpscaler
    tile: NDArray[Any]
    dtype: np.dtype[Any] | None = None
    """What a device may round the result to; None where it is blended or converted."""


def weights_digest(path: Path) -> str | None:
    """SHA-256 of a file of weights, or of the one in a Hugging Face folder; None if there is no such file."""
    files = (path,) if not path.is_dir() else (path / "model.safetensors", path / "pytorch_model.bin")
    return next((file_digest(file) for file in files if file.is_file()), None)


def count_parameters(upscaler: object) -> int | None:
    """The number of trained values; None if the upscaler has no network, as stand-ins in tests."""
    network = getattr(upscaler, "network", None)
    return sum(each.numel() for each in network.parameters()) if isinstance(network, nn.Module) else None


def warm_up(upscaler: TileUpscaler, tile_size: int) -> None:
    """Run the first forward passes, which are slower, and check that the output is finite.

    On a device a whole tile is one of them, if there is memory for it: its libraries plan anew for each size.

    Raises:
        ValueError: if an output is not finite.
    """
    window = upscaler.window_size
    whole = tile_size // window * window
    sides = [-(-side // window) * window for side in WARM_UP_SIDES]
    for batch in (sides[:1], sides, *([[whole]] if upscaler.runs_ahead and whole else [])):
        try:
            outputs = upscaler.forward([np.full((side, side, upscaler.channels), 128, np.uint8) for side in batch])
        except (MemoryError, RuntimeError) as error:
            if not upscaler.runs_ahead or batch != [whole] or not is_out_of_memory(error):
                raise
            logger.warning("the device has no memory for a tile of TILE_SIZE %d: lower it", tile_size)
            return
        if not all(np.isfinite(output).all() for output in outputs):
            raise ValueError("the network's output for a gray image is not finite")
