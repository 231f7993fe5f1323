"""The parts of the network on a CPU in one call each: a window passes all of a part while it is in the cache.

The kernel (``model/kernels/block.c``) is built with the package if there is a C compiler. Without it,
and on a GPU, in training and in other dtypes, PyTorch's operators compute the same.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from model.config import Swin2SRConfig
from model.kernels import library
from model.kernels.library import BlockArguments, ConvolutionArguments, load_kernel
from model.refinement import MARGIN, enlarge_weights, reduce_border, reduce_weights
from model.windows import MASK_KINDS

SLOTS = 64
"""Tokens of a window that the kernel has room for."""

PARTS = {"fast": 1, "high": 2}
"""Precisions that AMX computes, and how many bfloat16 values represent a float32 in them."""

Arguments = TypeVar(
    "Arguments",
    BlockArguments,
    ConvolutionArguments,
    library.EmbeddingArguments,
    library.HeadArguments,
    library.RefinementArguments,
)


class KernelWeights(Generic[Arguments]):
    """The weights of a part as the kernel reads them.

    Args:
        arguments: with pointers to the tensors.
        tensors: contiguous float32; kept, so that no other tensor takes their memory.

    Attributes:
        packed: whether they are packed for AMX too, and computed with it.
    """

    def __init__(self, arguments: Arguments, tensors: Sequence[Tensor]) -> None:
        self.arguments: Arguments = arguments
        self.tensors, self.packed = tuple(tensors), False

    def pack(self, free: Callable[[int], None], pack: Callable[..., int | None], *how: int) -> None:
        """Pack the weights for AMX, if that is possible; they are freed with this object."""
        self.arguments.packed = packed = pack(ctypes.byref(self.arguments), *how)
        self.packed = bool(packed)
        if packed:
            weakref.finalize(self, free, packed)


BlockWeights = KernelWeights[BlockArguments]
ConvolutionWeights = KernelWeights[ConvolutionArguments]
EmbeddingWeights = KernelWeights[library.EmbeddingArguments]
HeadWeights = KernelWeights[library.HeadArguments]
RefinementWeights = KernelWeights[library.RefinementArguments]


def pack_block(
    bias: Tensor, scale: Tensor, weights: Sequence[Tensor], eps: float, precision: str = "exact"
) -> BlockWeights | None:
    """Convert a block's weights to the kernel's form.

    Args:
        bias: (kinds, nH, N of query, N of key), position bias and mask.
        scale: (nH,), the factor on cosines.
        weights: weight and bias of qkv (3 C, C), projection, first norm, both layers of the MLP, second norm.
        eps: of the norms.
        precision: ``exact``, or ``high`` or ``fast`` by AMX, where that can compute the block.

    Returns:
        None if the kernel cannot compute the block: it was not built, the weights are not float32 on a CPU, or a
        window has more than ``SLOTS`` tokens.
    """
    kernel = load_kernel()
    if kernel is None or bias.shape[-1] > SLOTS or not _can_read(bias, *weights):
        return None
    base_2, tokens = math.log2(math.e), bias.shape[-1]
    key_major = bias.new_zeros(*bias.shape[:3], SLOTS)  # (kinds, nH, N, SLOTS)
    key_major[..., :tokens].copy_(bias.transpose(-1, -2)).mul_(base_2)
    tables = (scale * base_2, key_major)
    tensors = [tensor.contiguous() for tensor in (*weights[:2], *tables, *weights[2:])]
    sizes = (len(weights[2]), bias.shape[1], len(weights[6]), bias.shape[-1])
    found = KernelWeights(BlockArguments(*sizes, *(tensor.data_ptr() for tensor in tensors), eps), tensors)
    if precision in PARTS:
        found.pack(kernel.free_packed, kernel.pack_block, len(bias), PARTS[precision])
    return found


def pack_convolution(
    weights: Sequence[Tensor],
    window: int,
    precision: str = "exact",
    norm: tuple[Tensor, Tensor, float] | None = None,
) -> ConvolutionWeights | None:
    """Convert a 3x3 convolution of C to C channels, and a linear layer after it, to the kernel's form.

    Args:
        weights: weight (C, C, 3, 3) and bias; with a linear layer after it, that layer's weight (C, C) and bias.
        window: side of a window.
        precision: as for ``pack_block``.
        norm: weight (C,), bias (C,) and eps of the LayerNorm of the result; None without one.

    Returns:
        None if the kernel cannot compute it, as for ``pack_block``.
    """
    kernel, (norm_weight, norm_bias, eps) = load_kernel(), norm or (None, None, 0.0)
    given = [*weights, *[None] * (4 - len(weights)), norm_weight, norm_bias]
    if kernel is None or window**2 > SLOTS or not _can_read(*[tensor for tensor in given if tensor is not None]):
        return None
    tensors = [_channels_last(weights[0]), *(None if tensor is None else tensor.contiguous() for tensor in given[1:])]
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    arguments = ConvolutionArguments(len(weights[0]), window, *pointers, eps)
    found = KernelWeights(arguments, [tensor for tensor in tensors if tensor is not None])
    if precision in PARTS:
        found.pack(kernel.free_packed, kernel.pack_convolution, PARTS[precision])
    return found


def pack_embedding(weights: Sequence[Tensor], eps: float, window: int) -> EmbeddingWeights | None:
    """Convert the first convolution and the embedding to the kernel's form.

    Args:
        weights: weight (C, colors, 3, 3) and bias of the convolution, weight (C, C) and bias of the linear layer,
            weight and bias of the norm.
        eps: of the norm.
        window: side of a window.

    Returns:
        None if the kernel cannot compute it, as for ``pack_block``.
    """
    if load_kernel() is None or window**2 > SLOTS or not _can_read(*weights):
        return None
    tensors = [_channels_last(weights[0]), *(tensor.contiguous() for tensor in weights[1:])]
    pointers = [tensor.data_ptr() for tensor in tensors]
    channels, colors = weights[0].shape[:2]
    return KernelWeights(library.EmbeddingArguments(channels, window, colors, *pointers, eps), tensors)


def pack_head(weight: Tensor, bias: Tensor, scale: int, window: int) -> HeadWeights | None:
    """Convert a head of one 3x3 convolution and a pixel shuffle to the kernel's form.

    Args:
        weight: (colors * scale * scale, C, 3, 3).
        bias: (colors * scale * scale).
        scale: of the pixel shuffle.
        window: side of a window.

    Returns:
        None if the kernel cannot compute it, as for ``pack_block``.
    """
    if load_kernel() is None or window**2 > SLOTS or not _can_read(weight, bias):
        return None
    colors = len(weight) // scale**2

    def to_pixels(rows: Tensor) -> Tensor:
        """Rows in the order of an image with its channels last: row and column of a pixel, then its color."""
        return rows.view(colors, scale**2, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)

    tensors = [_channels_last(to_pixels(weight)), to_pixels(bias).contiguous()]
    pointers = [tensor.data_ptr() for tensor in tensors]
    return KernelWeights(library.HeadArguments(weight.shape[1], window, scale, colors, *pointers), tensors)


def pack_refinement(config: Swin2SRConfig) -> RefinementWeights | None:
    """The weights of ``model.refinement.refine`` in the kernel's form.

    Returns:
        None if the configuration asks for no refinement, or for one that the kernel cannot do, or it was not built.
    """
    if load_kernel() is None or not config.is_refined or config.back_projection_blur > 0:
        return None
    scale, reduced = config.upscale, torch.zeros(0)
    if config.back_projection:
        weights = reduce_weights(scale).float()
        reduced = F.pad(weights, (0, -len(weights) % 4))
    tensors = [reduced, enlarge_weights(scale).float()]
    pointers = [tensor.data_ptr() if len(tensor) else None for tensor in tensors]
    slack = -1.0 if config.range_slack is None else max(0.0, config.range_slack)
    sizes = (scale, config.num_channels, len(reduced), reduce_border(scale))
    return KernelWeights(library.RefinementArguments(*sizes, *pointers, MARGIN, slack), tensors)


def _channels_last(weight: Tensor) -> Tensor:
    """The weight (C out, C, 3, 3) of a convolution as the kernel reads it, (C out, 3, 3, C)."""
    return weight.permute(0, 2, 3, 1).contiguous()


def _can_read(*tensors: Tensor) -> bool:
    return all(tensor.device.type == "cpu" and tensor.dtype is torch.float32 for tensor in tensors)


def run(
    block: BlockWeights,
    tokens: Tensor,
    gather: Tensor | None,
    counts: Sequence[int],
    out: Tensor | None = None,
) -> Tensor:
    """Run a block with as many threads as PyTorch uses.

    Args:
        block: its weights.
        tokens: (T, C) float32 on a CPU.
        gather: (T,) int32, the row of ``tokens`` that each token of the block comes from; None for itself.
        counts: how many windows, in their order, have which kind of mask.
        out: (T, C), other memory than ``tokens``; is overwritten.

    Returns:
        (T, C), in the block's order; ``out`` if given.

    Raises:
        MemoryError: if the scratch memory of a thread cannot be allocated.
    """
    kernel = load_kernel()
    assert kernel is not None
    tokens = tokens.contiguous()
    output = torch.empty_like(tokens) if out is None else out
    kinds = (ctypes.c_long * MASK_KINDS)(*counts)
    with _recorded("swin_block"):
        failed = kernel.block(
            ctypes.byref(block.arguments),
            tokens.data_ptr(),
            None if gather is None else gather.data_ptr(),
            output.data_ptr(),
            tokens.shape[0] // block.arguments.tokens,
            kinds,
            torch.get_num_threads(),
        )
    _check(failed)
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

    Raises:
        MemoryError: if the scratch memory of a thread cannot be allocated.
    """
    kernel = load_kernel()
    assert kernel is not None
    tokens, residual = tokens.contiguous(), residual.contiguous()
    output = torch.empty_like(tokens) if out is None else out
    with _recorded("swin_convolution"):
        failed = kernel.convolution(
            ctypes.byref(weights.arguments),
            tokens.data_ptr(),
            halo.data_ptr(),
            residual.data_ptr(),
            output.data_ptr(),
            halo.shape[0],
            torch.get_num_threads(),
        )
    _check(failed)
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

    Raises:
        MemoryError: if the scratch memory of a thread cannot be allocated.
    """
    kernel = load_kernel()
    assert kernel is not None
    pixels, channels = pixels.contiguous(), weights.arguments.channels
    shallow, output = (pixels.new_empty(len(pixels), channels) if memory is None else memory for memory in out)
    with _recorded("swin_embed"):
        failed = kernel.embed(
            ctypes.byref(weights.arguments),
            pixels.data_ptr(),
            halo.data_ptr(),
            shallow.data_ptr(),
            output.data_ptr(),
            len(halo),
            torch.get_num_threads(),
        )
    _check(failed)
    return shallow, output


def enlarge(weights: HeadWeights, tokens: Tensor, halo: Tensor, grid: Tensor, residual: Tensor | None = None) -> Tensor:
    """The head: a 3x3 convolution and a pixel shuffle into images.

    Args:
        weights: of the convolution.
        tokens: (T, C) float32 on a CPU, in window order.
        halo: as for ``convolve``.
        grid: (nW, FIELDS) int32, as ``model.packing.lay_out`` makes it.
        residual: what is added to the images, in their form.

    Returns:
        The images (T * scale * scale, colors), one behind the other, pixels in reading order.

    Raises:
        MemoryError: if the scratch memory of a thread cannot be allocated.
    """
    kernel = load_kernel()
    assert kernel is not None
    tokens, residual = tokens.contiguous(), None if residual is None else residual.contiguous()
    output = tokens.new_empty(len(tokens) * weights.arguments.scale**2, weights.arguments.colors)
    with _recorded("swin_enlarge"):
        failed = kernel.enlarge(
            ctypes.byref(weights.arguments),
            tokens.data_ptr(),
            halo.data_ptr(),
            grid.data_ptr(),
            None if residual is None else residual.data_ptr(),
            output.data_ptr(),
            len(halo),
            torch.get_num_threads(),
        )
    _check(failed)
    return output


def refine(weights: RefinementWeights, pixels: Tensor, image: Tensor, groups: Sequence[tuple[int, int, int]]) -> None:
    """``model.refinement.refine`` in place, for images one behind the other.

    Args:
        weights: of the network.
        pixels: the inputs (T, colors) float32 on a CPU, image by image in reading order.
        image: what the head made of them (T * scale * scale, colors), contiguous.
        groups: (images, height, width) of each run of inputs of one size.

    Raises:
        MemoryError: if the scratch memory of a thread cannot be allocated.
    """
    kernel = load_kernel()
    assert kernel is not None
    pixels = pixels.contiguous()
    assert len(image) == len(pixels) * weights.arguments.scale**2
    error, size, place = torch.empty_like(pixels), 4 * weights.arguments.colors, 0
    with _recorded("swin_refine"):
        for count, height, width in groups:
            failed = kernel.refine(
                ctypes.byref(weights.arguments),
                pixels.data_ptr() + place * size,
                error.data_ptr() + place * size,
                image.data_ptr() + place * size * weights.arguments.scale**2,
                count,
                height,
                width,
                torch.get_num_threads(),
            )
            _check(failed)
            place += count * height * width


def _recorded(name: str) -> AbstractContextManager[object]:
    """A region of that name for PyTorch's profiler; nothing where none runs, because a region costs 20 us."""
    running = torch.autograd._profiler_enabled()  # type: ignore[attr-defined]  # noqa: SLF001
    return record_function(name) if running else _NOTHING


_NOTHING = nullcontext()


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("There is no memory for the scratch space of a window: use fewer threads.")
