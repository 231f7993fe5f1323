"""Pixels to a GPU and values back: what ``Upscaler`` does there.

Tiles go up in one copy from pinned memory as the integers they are; they are spread over windows and brought to [0, 1]
on the device. A large batch goes in several packs: while one is computed, the next is on its way up and the one before
on its way down, each on a stream of its own.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.gpu.autotune import choose_operators, load_kernels, time_on_cuda
from model.gpu.graphs import COUNTS, Capture, CudaCapture, Graphs, affordable, as_it_is
from model.gpu.network import WindowNetwork
from model.network import Swin2SR
from model.operators import PLAIN, Operators
from model.packing import lay_out, pixel_rows, split_by_area

P = TypeVar("P")
V = TypeVar("V")
Pixels = NDArray[Any]
Values = NDArray[np.float32]

logger = logging.getLogger(__name__)

PACK_PIXELS = 2**19
"""Pixels of a pack: enough to keep any card busy for milliseconds; batches of more overlap their copies."""


@dataclass(frozen=True)
class Pack:
    """A pack on its way.

    Attributes:
        shapes: of its tiles' values, (height, width, channels).
        values: in the machine's memory, once ``arrived`` has happened.
        arrived: None on a CPU.
    """

    shapes: list[tuple[int, int, int]]
    values: Tensor
    arrived: torch.cuda.Event | None

    @property
    def has_arrived(self) -> bool:
        """Whether ``receive`` need not wait, or would raise."""
        if self.arrived is None:
            return True
        try:
            return bool(self.arrived.query())  # type: ignore[no-untyped-call]  # not annotated
        except RuntimeError:  # the device is lost
            return True

    def receive(self) -> list[Values]:
        """Wait for its tiles' values."""
        if self.arrived is not None:
            self.arrived.synchronize()
        values, at, images = self.values.numpy().reshape(-1), 0, []
        for shape in self.shapes:
            size = math.prod(shape)
            images.append(values[at : at + size].reshape(shape))
            at += size
        return images


class Flight:
    """A batch on its way: whoever launched it is free to do something else, and to launch another behind it.

    Args:
        packs: in the order in which they were launched, with the places of their tiles among those of the batch.
    """

    def __init__(self, packs: Sequence[tuple[list[int], Pack]]) -> None:
        self._packs = packs
        self._arrived = 0

    def fraction_done(self) -> float:
        """How many of the packs have arrived, of all; 1 also if waiting for them is in vain."""
        while self._arrived < len(self._packs) and self._packs[self._arrived][1].has_arrived:
            self._arrived += 1
        return self._arrived / len(self._packs) if self._packs else 1.0

    def results(self) -> list[Values]:
        """Wait for the values of every tile, in the order in which they were launched."""
        found: dict[int, Values] = {}
        for places, pack in self._packs:
            found.update(zip(places, pack.receive(), strict=True))
        return [found[place] for place in range(len(found))]


class Forward:
    """A network on its device, its kernels chosen and its graphs captured; safe to call from several threads.

    Args:
        network: in evaluation mode, on its device; on a CPU everything is computed as on a GPU, without its means.
        dtype: bfloat16 or float32, of the body's matrix products and convolutions.
        tf32: whether products of float32 may be computed in TF32.
        bytes_per_pixel: what a forward pass takes at most; decides which numbers of windows there is memory to record.
        counts: numbers of windows that are recorded if so.
    """

    def __init__(
        self,
        network: Swin2SR,
        dtype: torch.dtype,
        *,
        tf32: bool = False,
        bytes_per_pixel: int = 0,
        counts: tuple[int, ...] = COUNTS,
    ) -> None:
        config = network.config
        self.window, self.scale, self.channels = config.window_size, config.upscale, config.num_channels
        self.out_channels = config.out_channels
        self._device = next(network.parameters()).device
        # The head, whose inputs are the image itself, is good to 10 bits where the body is to 8.
        self._precision: Precision = "ieee" if dtype is torch.float32 and not tf32 else "tf32"
        self._products: Precision = "tf32" if tf32 else "ieee"
        self._streams: Streams | None = None
        with _making:
            self._graphs = self._make(network, dtype, bytes_per_pixel, counts)

    def _make(self, network: Swin2SR, dtype: torch.dtype, bytes_per_pixel: int, counts: tuple[int, ...]) -> Graphs:
        capture: Capture = as_it_is
        if self._device.type == "cuda":
            self._streams = Streams.on(self._device)
            torch.cuda.synchronize(self._device)  # the network came on another stream
            free_bytes, _ = torch.cuda.mem_get_info(self._device)
            counts = affordable(counts, self.window**2 * bytes_per_pixel, free_bytes)
            capture = self._in_private(CudaCapture(self._streams.compute))
        with self._computing(), torch.inference_mode():
            windowed = WindowNetwork(network, dtype)
            if self._streams is not None:
                windowed.operators = self._choose(windowed, max(counts, default=COUNTS[0]))
            return Graphs(
                windowed,
                channels=self.channels,
                window=self.window,
                device=self._device,
                capture=capture,
                counts=counts,
            )

    def _choose(self, windowed: WindowNetwork, windows: int) -> Operators:
        kernels = load_kernels(self._device, windowed.body.stages[0].blocks[0])
        try:
            return choose_operators(windowed, self._in_private(time_on_cuda), kernels, windows)
        except torch.OutOfMemoryError:
            logger.warning("there is no memory to compare kernels; PyTorch's operators are used")
            return PLAIN

    def launch(self, tiles: Sequence[Pixels]) -> Flight:
        """Give tiles to the device; as ``Upscaler.launch``.

        Raises:
            ValueError: if a side is off the window grid, or the type is neither uint8 nor uint16.
        """
        groups = split_by_area([tile.shape[0] * tile.shape[1] for tile in tiles], PACK_PIXELS)
        with float32_precision(self._precision, self._products):
            packs = [self._launch([tiles[index] for index in group]) for group in groups]
        return Flight(list(zip(groups, packs, strict=True)))

    def _launch(self, tiles: Sequence[Pixels]) -> Pack:
        sizes = [tile.shape[:2] for tile in tiles]
        shapes = [(height * self.scale, width * self.scale, self.out_channels) for height, width in sizes]
        own = sum(height * width for height, width in sizes) // self.window**2
        table = lay_out(sizes, self.window, self._graphs.fitting(own))
        with self._uploading():
            staged = self._stage(tiles, len(table) * self.window**2), self._pin(torch.from_numpy(table))
            pixels, grid = (each.to(self._device, non_blocking=True) for each in staged)
        with self._computing(pixels, grid):
            values = self._compute(pixels, grid, own)
        with self._downloading(values):
            arrived = torch.empty(values.shape, pin_memory=self._streams is not None)
            arrived.copy_(values, non_blocking=True)
            event = self._streams.down.record_event() if self._streams else None
        return Pack(shapes, arrived, event)

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

    @torch.inference_mode()
    def _compute(self, pixels: Tensor, grid: Tensor, own: int) -> Tensor:
        """Values (rows, scale * out_channels) of the tiles in reading order, without what was filled up."""
        whole = pixels.float() / 255 if pixels.dtype is torch.uint8 else (pixels.int() & 0xFFFF).float() / 65535
        values = self._graphs(whole.index_select(0, pixel_rows(grid, self.window)), grid)
        target = pixel_rows(grid[:own], self.window, self.scale)
        ordered = values.new_empty(len(target), self.scale * self.out_channels)
        return ordered.index_copy_(0, target, values.view(-1, ordered.shape[1])[: len(target)])

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


@dataclass(frozen=True)
class Streams:
    """Copies up, computing, copies down: each waits for what the one before has been given so far.

    What one of them reads that another has made is not given to others before it was read, whoever lets go of it.
    """

    up: torch.cuda.Stream
    compute: torch.cuda.Stream
    down: torch.cuda.Stream

    @classmethod
    @functools.cache
    def on(cls, device: torch.device) -> Streams:
        """Those of a device, the same for all: PyTorch has a few, and would let others share one of them by chance."""
        return cls(*(torch.cuda.Stream(device) for _ in range(3)))  # type: ignore[no-untyped-call]

    def after_upload(self, *read: Tensor) -> AbstractContextManager[object]:
        """The stream that computes, once what is on its way up has come."""
        return self._after(self.up, self.compute, read)

    def after_compute(self, *read: Tensor) -> AbstractContextManager[object]:
        """The stream that copies down, once everything is computed."""
        return self._after(self.compute, self.down, read)

    @staticmethod
    def _after(
        before: torch.cuda.Stream, stream: torch.cuda.Stream, read: Sequence[Tensor]
    ) -> AbstractContextManager[object]:
        stream.wait_stream(before)
        for tensor in read:
            tensor.record_stream(stream)
        return torch.cuda.stream(stream)


_one_at_a_time = threading.RLock()
"""Held by whoever launches something that must not be recorded, records, or measures."""

_making = threading.Lock()
"""Held by whoever makes a network ready: what it launches between two recordings must not come into a third."""


Precision = Literal["ieee", "tf32"]
"""What is made of float32 numbers: all of them, or the ten bits of TF32."""


@contextlib.contextmanager
def float32_precision(convolutions: Precision, products: Precision) -> Iterator[None]:
    """What cuDNN's convolutions and cuBLAS's matrix products may make of float32. One thread at a time.

    PyTorch has one setting for the whole process: who restores it while another still needs it takes it away.
    """
    cudnn, cublas = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]  # properties
    with _one_at_a_time:
        before = cudnn.fp32_precision, cublas.fp32_precision
        cudnn.fp32_precision, cublas.fp32_precision = convolutions, products
        try:
            yield
        finally:
            cudnn.fp32_precision, cublas.fp32_precision = before
