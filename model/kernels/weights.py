"""Packs weights for the C kernel, in the layout of the structures of ``kernel.h``."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import Swin2SRConfig
from model.kernels import library
from model.kernels.library import BlockArguments, ConvolutionArguments, Kernel
from model.refinement import MARGIN, enlarge_weights, reduce_border, reduce_weights

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
    """The weights of a part of the network, as the kernel reads them.

    Args:
        arguments: a structure with pointers to the tensors.
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
    base_2, tokens = math.log2(math.e), bias.shape[-1]
    if (kernel := _kernel_for(tokens, bias, *weights)) is None:
        return None
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
    norm_weight, norm_bias, eps = norm or (None, None, 0.0)
    given = [*weights, *[None] * (4 - len(weights)), norm_weight, norm_bias]
    kernel = _kernel_for(window**2, *[tensor for tensor in given if tensor is not None])
    if kernel is None:
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
    if _kernel_for(window**2, *weights) is None:
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
    if _kernel_for(window**2, weight, bias) is None:
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
    if library.load_kernel() is None or not config.is_refined or config.back_projection_blur > 0:
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


def _kernel_for(tokens: int, *weights: Tensor) -> Kernel | None:
    """The kernel, if it can read these weights and has room for the tokens of a window."""
    readable = all(tensor.device.type == "cpu" and tensor.dtype is torch.float32 for tensor in weights)
    return library.load_kernel() if readable and tokens <= SLOTS else None
