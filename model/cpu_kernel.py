"""Calls of the C kernel: each computes a part of the network on a CPU, and a window stays in the cache meanwhile.

The kernel (``model/kernels/block.c``) is built with the package if there is a C compiler. Without it, and on a GPU, in
training and in other dtypes, PyTorch's operators compute the same. ``model.kernels.weights`` packs its weights.

All calls use as many threads as PyTorch does, and raise MemoryError if the scratch memory of a thread cannot be
allocated.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from model.kernels import library
from model.kernels.weights import (
    BlockWeights,
    ConvolutionWeights,
    EmbeddingWeights,
    HeadWeights,
    KernelWeights,
    RefinementWeights,
)
from model.windows import MASK_KINDS


def run(
    block: BlockWeights,
    tokens: Tensor,
    gather: Tensor | None,
    counts: Sequence[int],
    out: Tensor | None = None,
) -> Tensor:
    """Run a block.

    Args:
        block: its weights.
        tokens: (T, C) float32 on a CPU.
        gather: (T,) int32, the row of ``tokens`` that each token of the block comes from; None for itself.
        counts: how many windows, in their order, have which kind of mask.
        out: (T, C), other memory than ``tokens``; is overwritten.

    Returns:
        (T, C), in the block's order; ``out`` if given.
    """
    tokens = tokens.contiguous()
    output = torch.empty_like(tokens) if out is None else out
    kinds = (ctypes.c_long * MASK_KINDS)(*counts)
    _call("block", block, tokens, gather, output, len(tokens) // block.arguments.tokens, kinds)
    return output


def convolve(
    weights: ConvolutionWeights, tokens: Tensor, halo: Tensor, residual: Tensor, out: Tensor | None = None
) -> Tensor:
    """A 3x3 convolution with zeros around every image, the linear layer after it, and a residual added.

    Args:
        weights: of both.
        tokens: (T, C) float32 on a CPU, in any order.
        halo: (nW, (window + 2) ** 2) int32, the rows of ``tokens`` that each window sees; -1 outside its image.
        residual: (T, C) in window order.
        out: (T, C), other memory than ``tokens``; is overwritten.

    Returns:
        (T, C) in window order; ``out`` if given.
    """
    tokens = tokens.contiguous()
    output = torch.empty_like(tokens) if out is None else out
    _call("convolution", weights, tokens, halo, residual.contiguous(), output, len(halo))
    return output


def embed(
    weights: EmbeddingWeights, pixels: Tensor, halo: Tensor, out: tuple[Tensor | None, Tensor | None] = (None, None)
) -> tuple[Tensor, Tensor]:
    """The first convolution, and the tokens that the body begins with.

    Args:
        weights: of both.
        pixels: (T, colors) float32 on a CPU, in window order, normalised.
        halo: as for ``convolve``.
        out: (T, C) both, memory for the results; is overwritten.

    Returns:
        Features (T, C) of the first convolution, and tokens (T, C), in window order.
    """
    channels = weights.arguments.channels
    shallow, tokens = (pixels.new_empty(len(pixels), channels) if memory is None else memory for memory in out)
    _call("embed", weights, pixels.contiguous(), halo, shallow, tokens, len(halo))
    return shallow, tokens


def enlarge(weights: HeadWeights, tokens: Tensor, halo: Tensor, grid: Tensor, residual: Tensor | None = None) -> Tensor:
    """The head: a 3x3 convolution and a pixel shuffle into images.

    Args:
        weights: of the convolution.
        tokens: (T, C) float32 on a CPU, in window order.
        halo: as for ``convolve``.
        grid: (nW, FIELDS) int32, as ``model.packing.lay_out`` makes it.
        residual: is added to the images; of the same shape.

    Returns:
        The images (T * scale * scale, colors), one after the other, pixels in reading order.
    """
    residual = None if residual is None else residual.contiguous()
    output = tokens.new_empty(len(tokens) * weights.arguments.scale**2, weights.arguments.colors)
    _call("enlarge", weights, tokens.contiguous(), halo, grid, residual, output, len(halo))
    return output


def refine(weights: RefinementWeights, pixels: Tensor, image: Tensor, groups: Sequence[tuple[int, int, int]]) -> None:
    """``model.refinement.refine`` in place, for images one after the other.

    Args:
        weights: of the network.
        pixels: the inputs (T, colors) float32 on a CPU, image by image in reading order.
        image: the output of the head (T * scale * scale, colors), contiguous.
        groups: (images, height, width) of each run of inputs of one size.
    """
    pixels, area = pixels.contiguous(), weights.arguments.scale**2
    assert len(image) == len(pixels) * area
    error, first = torch.empty_like(pixels), 0
    for count, height, width in groups:
        here = (pixels[first:], error[first:], image[first * area :])
        _call("refine", weights, *here, count, height, width)
        first += count * height * width


def _call(
    name: str, weights: KernelWeights[Any], *arguments: Tensor | int | ctypes.Array[ctypes.c_long] | None
) -> None:
    """Call a function of the kernel. It gets the addresses of tensors, which must be contiguous."""
    kernel = library.load_kernel()
    assert kernel is not None, "it packed the weights"
    values = [each.data_ptr() if isinstance(each, Tensor) else each for each in arguments]
    with _recorded(f"swin_{name}"):
        failed = getattr(kernel, name)(ctypes.byref(weights.arguments), *values, torch.get_num_threads())
    if failed:
        raise MemoryError("There is no memory for the scratch space of a window: use fewer threads.")


def _recorded(name: str) -> AbstractContextManager[object]:
    """A region of that name for PyTorch's profiler; nothing where none runs, because a region costs 20 us."""
    running = torch.autograd._profiler_enabled()  # type: ignore[attr-defined]  # noqa: SLF001
    return record_function(name) if running else _NOTHING


_NOTHING = nullcontext()
