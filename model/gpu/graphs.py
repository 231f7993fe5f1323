"""Forward passes that were recorded before the first request, for a few numbers of windows.

A small pack is over before the host has launched its kernels one by one; a graph launches them at once. A large one is
not, and runs as it is. All are filled up, so that there are few sizes: libraries plan anew for each that they meet.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from model.packing import lay_out

logger = logging.getLogger(__name__)

Replay = Callable[[], Tensor]
"""Computes with what is in the buffers now; its answer is overwritten by the next call."""


class Network(Protocol):
    """``model.gpu.network.WindowNetwork``, or anything that is called like it."""

    def __call__(self, pixels: Tensor, grid: Tensor) -> Tensor:
        """Pixels (T, channels) and grid (nW, 5) to values; shapes depend on nW alone."""


Capture = Callable[[Callable[[], Tensor]], Replay]
"""Records a computation on a device."""

CAPTURE_SIZES = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Numbers of windows that are recorded: no pack of more than 64 is filled by more than half of it."""

STEP = 256
"""What larger numbers of windows are multiples of."""

MEMORY_SHARE = 1 / 16
"""Of the free memory, what a network's recordings may keep for themselves."""


def sizes_that_fit(sizes: tuple[int, ...], window_bytes: int, free_bytes: int) -> tuple[int, ...]:
    """The numbers of windows that can be recorded; they share memory, so the largest decides.

    Args:
        sizes: numbers of windows.
        window_bytes: what a forward pass takes for each window at most.
        free_bytes: of the device.
    """
    return tuple(size for size in sizes if size * window_bytes <= free_bytes * MEMORY_SHARE)


@dataclass(frozen=True)
class Recorded:
    """A forward pass for so many windows: its buffers, and what computes with them."""

    pixels: Tensor
    grid: Tensor
    replay: Replay


class Graphs:
    """A network, recorded for some numbers of windows.

    Args:
        network: what is recorded.
        channels: of a pixel.
        window: side of a window.
        device: where it runs.
        capture: how it is recorded there.
        sizes: numbers of windows, in rising order; those that there is no memory for are left out.
    """

    def __init__(
        self,
        network: Network,
        *,
        channels: int,
        window: int,
        device: torch.device,
        capture: Capture,
        sizes: tuple[int, ...] = CAPTURE_SIZES,
    ) -> None:
        self._network, self._channels, self._window, self._device = network, channels, window, device
        self._recorded: dict[int, Recorded] = {}
        gc.collect()  # nothing may be freed while recording
        for count in reversed(sizes):  # the largest first: the others find its memory
            try:
                self._recorded[count] = self._record(count, capture)
            except torch.OutOfMemoryError:
                logger.warning("there is no memory to record a forward pass of %d windows", count)

    def _record(self, count: int, capture: Capture) -> Recorded:
        pixels = torch.zeros(count * self._window**2, self._channels, device=self._device)
        grid = torch.from_numpy(lay_out([], self._window, count)).to(self._device)
        return Recorded(pixels, grid, capture(lambda: self._network(pixels, grid)))

    def fitting(self, count: int) -> int:
        """How many windows a pack of ``count`` is filled up to: a capture size, recorded or not, or a large number."""
        known = [known for known in (*self._recorded, *CAPTURE_SIZES) if known >= count]
        return min(known, default=-(-count // STEP) * STEP)

    def __call__(self, pixels: Tensor, grid: Tensor) -> Tensor:
        """As the network; with a recorded number of windows the answer is overwritten by the next call."""
        recorded = self._recorded.get(len(grid))
        if recorded is None:
            return self._network(pixels, grid)
        recorded.pixels[: len(pixels)].copy_(pixels)
        recorded.grid.copy_(grid)
        return recorded.replay()


class CudaCapture:
    """Records CUDA graphs on one stream; they share memory, because only one runs at a time."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._pool: Any = None

    def __call__(self, compute: Callable[[], Tensor]) -> Replay:
        """Record ``compute``, which has run once by then: libraries set themselves up in their first call.

        Raises:
            torch.OutOfMemoryError: if there is not enough; nothing is kept.
        """
        with torch.cuda.stream(self._stream):
            compute()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            answer = compute()
        self._pool = self._pool or graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return answer

        return replay


def eager(compute: Callable[[], Tensor]) -> Replay:
    """Takes the place of a recording on a CPU: computes."""
    return compute
