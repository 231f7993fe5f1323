"""Pixels to a GPU and values back: what ``Upscaler`` does there.

Tiles go up in one copy from pinned memory as the integers they are; they are spread over windows and brought to [0, 1]
on the device. Values come down as float32, or as integers where nobody blends them. A large batch goes in several
packs: while one is computed, the next is on its way up and the one before on its way down, each on a stream of its own.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from model.gpu.autotune import choose_operators, compile_kernels, load_kernels, time_on_cuda
from model.gpu.graphs import CAPTURE_SIZES, Capture, CudaCapture, Graphs, eager, sizes_that_fit
from model.gpu.network import WindowNetwork
from model.gpu.pending import DType, PendingBatch, PendingPack
from model.gpu.streams import DeviceThread, Precision, Streams, float32_precision
from model.inference.operators import PLAIN, Operators
from model.network import Swin2SR
from model.packing import lay_out, split_by_area

P = TypeVar("P")
V = TypeVar("V")
Pixels = NDArray[Any]

logger = logging.getLogger(__name__)

PACK_PIXELS = 2**19
"""Pixels of a pack: enough to keep any card busy for milliseconds; batches of more overlap their copies."""

_making = threading.Lock()
"""Held while a network is made ready: what it launches between two recordings must not come into a third."""


class GpuRunner:
    """A network on its device, its kernels chosen and its graphs captured; safe to call from several threads.

    Args:
        network: in evaluation mode, on its device; on a CPU everything is computed as on a GPU, without its means.
        dtype: bfloat16 or float32, of the body's matrix products and convolutions.
        tf32: whether products of float32 may be computed in TF32.
        bytes_per_pixel: what a forward pass takes at most; decides which numbers of windows there is memory to record.
        capture_sizes: numbers of windows that are recorded if so.
    """

    def __init__(
        self,
        network: Swin2SR,
        dtype: torch.dtype,
        *,
        tf32: bool = False,
        bytes_per_pixel: int = 0,
        capture_sizes: tuple[int, ...] = CAPTURE_SIZES,
    ) -> None:
        config = network.config
        self.window, self.scale, self.channels = config.window_size, config.upscale, config.num_channels
        self.out_channels = config.out_channels
        self._device = next(network.parameters()).device
        # The head, whose inputs are the image itself, is good to 10 bits where the body is to 8.
        self._precision: Precision = "ieee" if dtype is torch.float32 and not tf32 else "tf32"
        self._products: Precision = "tf32" if tf32 else "ieee"
        self._thread = DeviceThread.of(self._device)
        self._streams: Streams | None = None
        with _making:
            self._graphs = self._make(network, dtype, bytes_per_pixel, capture_sizes)

    def _make(self, network: Swin2SR, dtype: torch.dtype, bytes_per_pixel: int, sizes: tuple[int, ...]) -> Graphs:
        capture: Capture = eager
        if self._device.type == "cuda":
            self._streams = Streams.on(self._device)
            torch.cuda.synchronize(self._device)  # the network came on another stream
            free_bytes, _ = torch.cuda.mem_get_info(self._device)
            sizes = sizes_that_fit(sizes, self.window**2 * bytes_per_pixel, free_bytes)
            capture = self._in_private(CudaCapture(self._streams.compute))
        with self._computing(), torch.inference_mode():
            windowed = WindowNetwork(network, dtype)
            if self._streams is not None:
                windowed.operators = self._choose(windowed, max(sizes, default=CAPTURE_SIZES[0]))
                compile_kernels(windowed)
            self._index = windowed.operators.index
            return Graphs(
                windowed,
                channels=self.channels,
                window=self.window,
                device=self._device,
                capture=capture,
                sizes=sizes,
            )

    def _choose(self, windowed: WindowNetwork, windows: int) -> Operators:
        kernels = load_kernels(self._device, windowed.body.stages[0].blocks[0])
        try:
            return choose_operators(windowed, self._in_private(time_on_cuda), kernels, windows)
        except torch.OutOfMemoryError:
            logger.warning("there is no memory to compare kernels; PyTorch's operators are used")
            return PLAIN

    def launch(self, tiles: Sequence[Pixels], dtypes: Sequence[DTypeLike | None] | None = None) -> PendingBatch:
        """Give tiles to the device; as ``Upscaler.launch``.

        Raises:
            ValueError: if a side is off the window grid, or a type is neither uint8 nor uint16.
        """
        kinds = [np.dtype(np.float32 if dtype is None else dtype) for dtype in dtypes or [None] * len(tiles)]
        groups = split_by_area([tile.shape[0] * tile.shape[1] for tile in tiles], PACK_PIXELS)
        for group in groups:
            group.sort(key=lambda index: kinds[index].str)
        packs = [([tiles[index] for index in group], [kinds[index] for index in group]) for group in groups]
        launched = self._thread.run(partial(self._launch_all, packs))
        return PendingBatch(list(zip(groups, launched, strict=True)))

    @torch.inference_mode()
    def _launch_all(self, packs: Sequence[tuple[list[Pixels], list[DType]]]) -> list[PendingPack]:
        with float32_precision(self._precision, self._products):
            return [self._launch(tiles, dtypes) for tiles, dtypes in packs]

    def _launch(self, tiles: Sequence[Pixels], dtypes: list[DType]) -> PendingPack:
        """Launch a pack, whose tiles of one dtype follow each other."""
        sizes = [tile.shape[:2] for tile in tiles]
        windows = [height * width // self.window**2 for height, width in sizes]
        table = lay_out(sizes, self.window, self._graphs.fitting(sum(windows)))
        with self._uploading():
            staged = self._stage(tiles, len(table) * self.window**2), self._pin(torch.from_numpy(table))
            pixels, grid = (each.to(self._device, non_blocking=True) for each in staged)
        rounds = any(dtype != np.float32 for dtype in dtypes)
        with self._computing(pixels, grid):
            values, ordered = self._compute(pixels, grid, sum(windows))
            parts = self._round(ordered, windows, dtypes)
            finite = [values.view(sum(windows), -1).isfinite().all(1)] if rounds else []
        with self._downloading(*parts.values(), *finite):
            arrived = {dtype: self._download(part) for dtype, part in parts.items()}
            checked = self._download(finite[0]) if rounds else None
            event = self._streams.down.record_event() if self._streams else None
        shapes = [(height * self.scale, width * self.scale, self.out_channels) for height, width in sizes]
        return PendingPack(shapes, dtypes, arrived, windows, checked, event, self._device)

    def _stage(self, tiles: Sequence[Pixels], rows: int) -> Tensor:
        """All pixels (rows, channels) one after the other, then zeros, as integers in pinned memory."""
        for tile in tiles:
            if tile.dtype not in (np.uint8, np.uint16):
                raise ValueError(f"pixels must be uint8 or uint16 of shape (H, W, C), not {tile.dtype} {tile.shape}")
        deep = any(tile.dtype == np.uint16 for tile in tiles)
        dtype = torch.int16 if deep else torch.uint8
        staged = torch.empty(rows, self.channels, dtype=dtype, pin_memory=self._streams is not None)
        target, at = staged.numpy().view(np.uint16 if deep else np.uint8), 0
        for tile in tiles:
            count = tile.shape[0] * tile.shape[1]
            shallow = deep and tile.dtype == np.uint8
            target[at : at + count] = (tile.astype(np.uint16) * 257 if shallow else tile).reshape(count, -1)
            at += count
        target[at:] = 0
        return staged

    def _pin(self, tensor: Tensor) -> Tensor:
        return tensor if self._streams is None else tensor.pin_memory()

    def _download(self, values: Tensor) -> Tensor:
        here = torch.empty(values.shape, dtype=values.dtype, pin_memory=self._streams is not None)
        return here.copy_(values, non_blocking=True)

    def _compute(self, pixels: Tensor, grid: Tensor, own: int) -> tuple[Tensor, Tensor]:
        """Values (rows, scale * out_channels) of the ``own`` first windows, in window order and in reading order."""
        whole = pixels.float() / 255 if pixels.dtype is torch.uint8 else (pixels.int() & 0xFFFF).float() / 65535
        values = self._graphs(whole.index_select(0, self._index.pixel_rows(grid, self.window)), grid)
        target = self._index.pixel_rows(grid[:own], self.window, self.scale)
        ordered = values.new_empty(len(target), self.scale * self.out_channels)
        values = values.view(-1, ordered.shape[1])[: len(target)]
        return values, ordered.index_copy_(0, target, values)

    def _round(self, values: Tensor, windows: Sequence[int], dtypes: Sequence[DType]) -> dict[DType, Tensor]:
        """The values (rows, scale * out_channels) of the tiles of each dtype, rounded to it; 16 bits become int16."""
        parts, first = {}, 0
        for dtype in dict.fromkeys(dtypes):
            count = sum(each for each, kind in zip(windows, dtypes, strict=True) if kind == dtype)
            rows = count * self.window**2 * self.scale
            parts[dtype] = round_to(values[first : first + rows], dtype)
            first += rows
        return parts

    # The three streams; on a CPU there is none.

    def _uploading(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext() if self._streams is None else torch.cuda.stream(self._streams.up)

    def _computing(self, *read: Tensor) -> AbstractContextManager[object]:
        return contextlib.nullcontext() if self._streams is None else self._streams.after_upload(*read)

    def _downloading(self, *read: Tensor) -> AbstractContextManager[object]:
        return contextlib.nullcontext() if self._streams is None else self._streams.after_compute(*read)

    def _in_private(self, work: Callable[[P], V]) -> Callable[[P], V]:
        """Record, or measure, while nobody else launches anything: on the same streams, it would be part of it."""

        def alone(given: P) -> V:
            with float32_precision(self._precision, self._products):
                return work(given)

        return alone


def round_to(values: Tensor, dtype: DType) -> Tensor:
    """Clamp values to [0, 1] and round them as ``model.padding.quantise``, in place; float32 stays as it is.

    Raises:
        ValueError: if the type is none of float32, uint8 and uint16, which becomes int16.
    """
    if dtype == np.float32:
        return values
    if dtype not in (np.uint8, np.uint16):
        raise ValueError(f"values are float32, uint8 or uint16, not {dtype}")
    limit = int(np.iinfo(dtype).max)
    rounded = values.mul_(limit).clamp_(0, limit).round_()
    return rounded.to(torch.uint8) if dtype == np.uint8 else rounded.int().to(torch.int16)
