"""Memory for tokens that outlives a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

KEPT_BYTES = 256 * 2**20
"""Bound on the memory that is kept between forward passes."""


class Scratch:
    """Buffers for tokens on a CPU, where finding and clearing pages costs the system more than a block does.

    One set is kept, of ``KEPT_BYTES`` at most; calls at the same time have their own. A copy begins empty.
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    @contextmanager
    def borrow(self, tokens: Tensor, count: int) -> Iterator[list[Tensor]]:
        """``count`` buffers like the float32 tokens (T, C), with anything in them; none is kept after an error."""
        if not count:
            yield []
            return
        size = tokens.numel()
        memory = self._take(count * size)
        yield [memory[index * size : (index + 1) * size].view_as(tokens) for index in range(count)]
        if not self._kept and memory.nbytes <= KEPT_BYTES:
            self._kept.append(memory)

    def _take(self, size: int) -> Tensor:
        try:
            memory = self._kept.pop()
        except IndexError:
            memory = torch.empty(0, dtype=torch.float32, device="cpu")
        if memory.numel() >= size:
            return memory
        del memory  # before there is more
        with torch.inference_mode(mode=False):
            return torch.empty(size, dtype=torch.float32, device="cpu")

    @property
    def nbytes(self) -> int:
        """What is kept now."""
        return sum(memory.nbytes for memory in self._kept)

    def __reduce__(self) -> tuple[Any, ...]:
        return Scratch, ()
