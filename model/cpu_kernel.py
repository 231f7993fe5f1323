"""Blocks and convolutions of the body on a CPU in one call each: a window passes all of it while it is in the cache.

The kernel (``model/kernels/block.c``) is built when the package is installed where there is a C compiler. Without it,
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

from model.kernels.library import BlockArguments, ConvolutionArguments, load_kernel
from model.windows import MASK_KINDS

SLOTS = 64
"""Tokens of a window that the kernel has room for."""

PARTS = {"fast": 1, "high": 2}
"""Precisions that AMX computes, and how many bfloat16 stand for a float32 in them."""

Arguments = TypeVar("Arguments", BlockArguments, ConvolutionArguments)


class KernelWeights(Generic[Arguments]):
    """The weights of a block or of a convolution as the kernel reads them.

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


def pack_block(
    bias: Tensor, scale: Tensor, weights: Sequence[Tensor], eps: float, precision: str = "exact"
) -> BlockWeights | None:
    """Bring a block's weights into the kernel's form.

    Args:
        bias: (kinds, nH, N of query, N of key), position bias and mask.
        scale: (nH,), the factor on cosines.
        weights: weight and bias of qkv (3 C, C), projection, first norm, both layers of the MLP, second norm.
        eps: of the norms.
        precision: ``exact``, or ``high`` or ``fast`` by AMX, where that can compute the block.

    Returns:
        None where the kernel cannot compute the block: it was not built, the weights are not float32 on a CPU, or a
        window has more than ``SLOTS`` tokens.
    """
    kernel = load_kernel()
    if kernel is None or bias.shape[-1] > SLOTS or not _can_read(bias, *weights):
        return None
    key_major = F.pad(bias.transpose(-1, -2), (0, SLOTS - bias.shape[-1]))  # (kinds, nH, N, SLOTS)
    base_2 = math.log2(math.e)
    tables = (scale * base_2, key_major * base_2)
    tensors = [tensor.contiguous() for tensor in (*weights[:2], *tables, *weights[2:])]
    sizes = (len(weights[2]), bias.shape[1], len(weights[6]), bias.shape[-1])
    found = KernelWeights(BlockArguments(*sizes, *(tensor.data_ptr() for tensor in tensors), eps), tensors)
    if precision in PARTS:
        found.pack(kernel.free_packed, kernel.pack_block, len(bias), PARTS[precision])
    return found


def pack_convolution(weights: Sequence[Tensor], window: int, precision: str = "exact") -> ConvolutionWeights | None:
    """Bring a 3x3 convolution of C to C channels, and the linear layer behind it, into the kernel's form.

    Args:
        weights: weight (C, C, 3, 3) and bias; with a layer behind it, that layer's weight (C, C) and bias.
        window: side of a window.
        precision: as for ``pack_block``.

    Returns:
        None where the kernel cannot compute it, as for ``pack_block``.
    """
    kernel = load_kernel()
    if kernel is None or window**2 > SLOTS or not _can_read(*weights):
        return None
    convolution, *others = weights
    tensors = [convolution.permute(0, 2, 3, 1).contiguous(), *(tensor.contiguous() for tensor in others)]
    pointers = [tensor.data_ptr() for tensor in tensors]
    found = KernelWeights(ConvolutionArguments(len(convolution), window, *pointers), tensors)
    if precision in PARTS:
        found.pack(kernel.free_packed, kernel.pack_convolution, PARTS[precision])
    return found


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
        gather: (T,) int32, the row of ``tokens`` that each token of the block comes from; None where that is itself.
        counts: how many windows, in their order, have which kind of mask.
        out: (T, C), other memory than ``tokens``; is overwritten.

    Returns:
        (T, C), in the block's order; ``out`` where that was given.

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
    """A 3x3 convolution with zeros around every image, the linear layer behind it, and a residual added.

    Args:
        weights: of both.
        tokens: (T, C) float32 on a CPU, in any order.
        halo: (nW, (window + 2) ** 2) int32, the rows of ``tokens`` that each window sees; -1 outside its image.
        residual: (T, C) in window order.
        out: (T, C), other memory than ``tokens``; is overwritten.

    Returns:
        (T, C) in window order; ``out`` where that was given.

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


def _recorded(name: str) -> AbstractContextManager[object]:
    """A region of that name for PyTorch's profiler; nothing where none runs, because a region costs 20 us."""
    running = torch.autograd._profiler_enabled()  # type: ignore[attr-defined]  # noqa: SLF001
    return record_function(name) if running else _NOTHING


_NOTHING = nullcontext()


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("There is no memory for the scratch space of a window: use fewer threads.")
