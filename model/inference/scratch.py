"""Memory for tokens that is kept between forward passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

KEPT_BYTES = 256 * 2**20
"""Bound on the memory that is kept between forward passes."""


class Buffers:
    """Free buffers of one forward pass, each like its tokens.

    Args:
        free: the buffers; None if results get new memory.
    """

    def __init__(self, free: list[Tensor] | None = None) -> None:
        self._free = free

    @property
    def reused(self) -> bool:
        """Whether memory that is given back is used again."""
        return self._free is not None

    def take(self) -> Tensor | None:
        """A free buffer, if there is one."""
        return self._free.pop() if self._free else None

    def give(self, tensor: Tensor) -> None:
        """Free the memory of a tensor that nothing reads any more."""
        if self._free is not None:
            self._free.append(tensor)


class Scratch:
    """Buffers for tokens on a CPU, where allocating new pages takes longer than computing a block.

    One set of at most ``KEPT_BYTES`` is kept. Concurrent calls have their own. A copy is empty.
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    @contextmanager
    def borrow(self, tokens: Tensor, count: int) -> Iterator[Buffers]:
        """``count`` uninitialised buffers like the float32 tokens (T, C). None is kept after an error."""
        size = tokens.numel()
        memory = self._take(count * size)
        yield Buffers([memory[index * size : (index + 1) * size].view_as(tokens) for index in range(count)])
        if not self._kept and memory.nbytes <= KEPT_BYTES:
            self._kept.append(memory)

    def _take(self, size: int) -> Tensor:
        try:
            memory = self._kept.pop()
        except IndexError:
            memory = torch.empty(0, dtype=torch.float32, device="cpu")
        if memory.numel() >= size:
            return memory
        del memory  # before more is allocated
        with torch.inference_mode(mode=False):
            return torch.empty(size, dtype=torch.float32, device="cpu")

    @property
    def nbytes(self) -> int:
        """Memory that is kept now, in bytes."""
        return sum(memory.nbytes for memory in self._kept)

    def __reduce__(self) -> tuple[Any, ...]:
        return Scratch, ()
