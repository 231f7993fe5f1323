"""Batches that a device computes: their values arrive pack by pack."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[Any]
"""(H, W, C): float32 in about [0, 1], not clamped; or uint8 or uint16."""

DType = np.dtype[Any]


@dataclass(frozen=True)
class PendingPack:
    """A pack that a device computes.

    Attributes:
        shapes: (height, width, channels) of each tile's values.
        dtypes: of each tile's values.
        parts: for each dtype the values of its tiles, flat, one after the other; here once ``arrived`` has happened.
            Integers of 16 bits are int16.
        windows: number of windows of each tile.
        finite: (windows,) bool, whether the values of each window are finite numbers; None if no tile was rounded.
        arrived: None on a CPU.
        device: where it is computed.
    """

    shapes: list[tuple[int, int, int]]
    dtypes: list[DType]
    parts: Mapping[DType, Tensor]
    windows: list[int]
    finite: Tensor | None
    arrived: torch.cuda.Event | None
    device: torch.device

    @property
    def has_arrived(self) -> bool:
        """Whether ``receive`` need not wait, or would raise."""
        if self.arrived is None:
            return True
        try:
            with _on(self.device):
                return bool(self.arrived.query())  # type: ignore[no-untyped-call]  # not annotated
        except RuntimeError:  # the device is lost
            return True

    def receive(self) -> list[Values]:
        """Wait for its tiles' values.

        Raises:
            ValueError: if a value that was rounded was not a finite number.
        """
        if self.arrived is not None:
            with _on(self.device):
                self.arrived.synchronize()
        self._check()
        flat = {dtype: part.numpy().reshape(-1).view(dtype) for dtype, part in self.parts.items()}
        images = []
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            size = math.prod(shape)
            images.append(flat[dtype][:size].reshape(shape))
            flat[dtype] = flat[dtype][size:]
        return images

    def _check(self) -> None:
        if self.finite is None:
            return
        finite = torch.split(self.finite, self.windows)
        rounded = [each for each, dtype in zip(finite, self.dtypes, strict=True) if dtype != np.float32]
        if not all(each.all() for each in rounded):
            raise ValueError("the output holds values that are not finite numbers")


class PendingBatch:
    """A batch that a device computes. Whoever launched it can do something else, and launch another one after it.

    Args:
        packs: in the order of their launch, with the places of their tiles in the batch.
    """

    def __init__(self, packs: Sequence[tuple[list[int], PendingPack]]) -> None:
        self._packs = packs
        self._arrived = 0

    def fraction_done(self) -> float:
        """Share of the packs that have arrived; 1 also if waiting for them is in vain."""
        while self._arrived < len(self._packs) and self._packs[self._arrived][1].has_arrived:
            self._arrived += 1
        return self._arrived / len(self._packs) if self._packs else 1.0

    def results(self) -> list[Values]:
        """Wait for the values of every tile, in the order of the batch.

        Raises:
            ValueError: if a value that was rounded was not a finite number.
        """
        found: dict[int, Values] = {}
        for places, pack in self._packs:
            found.update(zip(places, pack.receive(), strict=True))
        return [found[place] for place in range(len(found))]


def _on(device: torch.device) -> AbstractContextManager[object]:
    """The device is current: a call about an event would open a context on the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
