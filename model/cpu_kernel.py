"""The body on a CPU in few calls: a window passes a whole block, or a stage's convolution, while it is in the cache.

The kernel (``model/kernels/block.c``) is built when the package is installed where there is a C compiler. Without it,
and on a GPU, in training and in other dtypes, PyTorch's operators compute the same.
"""

from __future__ import annotations

import ctypes
import functools
import math
import platform
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from model.hooks import is_watched
from model.windows import MASK_KINDS

if TYPE_CHECKING:
    from model.network import SwinTransformerBlock

SLOTS = 64
"""Tokens of a window that the kernel has room for."""


@dataclass(frozen=True)
class KernelTables:
    """What the kernel reads beside the weights themselves.

    Attributes:
        qkv_bias: (3 C).
        scale: (nH,), the factor on cosines, for logits to the base of 2.
        bias: (MASK_KINDS or 1, nH, N of key, SLOTS of query), position bias and mask, to the base of 2.
    """

    qkv_bias: Tensor
    scale: Tensor
    bias: Tensor


LEAST_WIDTH = 128 if platform.machine().lower() in ("aarch64", "arm64") else 256
"""Bits of a vector below which PyTorch's own operators are faster."""


def build_tables(qkv_bias: Tensor, scale: Tensor, bias: Tensor) -> KernelTables | None:
    """Bring an attention's tables into the kernel's form.

    Args:
        qkv_bias: (3 C).
        scale: (nH, 1, 1).
        bias: (kinds, nH, N of query, N of key).

    Returns:
        None where the kernel cannot serve: it was not built, or the weights are not float32 on a CPU, or a window has
        more than ``SLOTS`` tokens.
    """
    fits = bias.device.type == "cpu" and bias.dtype is torch.float32 and bias.shape[-1] <= SLOTS
    if not fits or load_kernel() is None:
        return None
    key_major = F.pad(bias.transpose(-1, -2), (0, SLOTS - bias.shape[-1]))
    base_2 = math.log2(math.e)
    return KernelTables(qkv_bias.contiguous(), scale.flatten() * base_2, (key_major * base_2).contiguous())


def can_run(block: SwinTransformerBlock, tokens: Tensor) -> bool:
    """Whether the kernel may compute this block for these tokens (T, C) now."""
    return block.attn.kernel_tables is not None and _are_plain(tokens) and _is_plain(block)


def _are_plain(tokens: Tensor) -> bool:
    """Whether tokens are what the kernel computes with, and nobody wants to know how they come about."""
    return (
        tokens.dtype is torch.float32
        and tokens.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch._C._get_tracing_state() is None  # noqa: SLF001
        and not torch.compiler.is_compiling()
    )


def can_serve(tokens: Tensor) -> bool:
    """Whether the kernel is here and computes with such tokens now."""
    return _are_plain(tokens) and load_kernel() is not None


def _is_plain(block: SwinTransformerBlock) -> bool:
    """Whether nobody put another layer, another dtype or a hook into the block."""
    attn, mlp = block.attn, block.mlp
    layers: tuple[tuple[nn.Module, type[nn.Module]], ...] = (
        (attn.qkv, nn.Linear), (attn.proj, nn.Linear), (mlp.fc1, nn.Linear), (mlp.fc2, nn.Linear),
        (block.norm1, nn.LayerNorm), (block.norm2, nn.LayerNorm), (mlp.act, nn.GELU),
    )  # fmt: skip
    if is_watched(block) or not all(type(layer) is expected for layer, expected in layers):
        return False
    exact = all(parameter.dtype is torch.float32 for layer, _ in layers for parameter in layer.parameters())
    return exact and mlp.act.approximate == "none"


def run(
    block: SwinTransformerBlock,
    tokens: Tensor,
    gather: Tensor | None,
    counts: tuple[int, ...],
    out: Tensor | None = None,
) -> Tensor:
    """Run a block for which ``can_run`` holds, with as many threads as PyTorch uses.

    Args:
        block: in evaluation mode.
        tokens: (T, C).
        gather: (T,) int32, the row of ``tokens`` that each token of the block comes from; None where that is itself.
        counts: how many windows, in their order, have which kind of mask.
        out: (T, C), other memory than ``tokens``; is overwritten.

    Returns:
        (T, C), in the block's order; ``out`` where that was given.

    Raises:
        MemoryError: if the scratch memory of a thread cannot be had.
    """
    kernel, attn, tables = load_kernel(), block.attn, block.attn.kernel_tables
    assert kernel is not None
    assert tables is not None
    tokens = tokens.contiguous()
    output = torch.empty_like(tokens) if out is None else out
    weights = _contiguous(
        attn.qkv.weight, tables.qkv_bias, tables.scale, tables.bias,
        attn.proj.weight, attn.proj.bias, block.norm1.weight, block.norm1.bias,
        block.mlp.fc1.weight, block.mlp.fc1.bias, block.mlp.fc2.weight, block.mlp.fc2.bias,
        block.norm2.weight, block.norm2.bias,
    )  # fmt: skip
    arguments = _Block(
        attn.dim, attn.heads, block.mlp.fc1.out_features, attn.window**2,
        *(weight.data_ptr() for weight in weights), block.norm1.eps,
    )  # fmt: skip
    kinds = (ctypes.c_long * MASK_KINDS)(*counts)
    with record_function("swin_block"):
        failed = kernel.block(
            ctypes.byref(arguments),
            tokens.data_ptr(),
            None if gather is None else gather.data_ptr(),
            output.data_ptr(),
            tokens.shape[0] // attn.window**2,
            kinds,
            torch.get_num_threads(),
        )
    _check(failed)
    return output


def can_convolve(layers: tuple[nn.Module, nn.Conv2d | None], tokens: Tensor, halo: Tensor | None) -> bool:
    """Whether ``convolve`` may compute these layers for these tokens (T, C) and this halo, if there is one, now."""
    fits = halo is not None and halo.shape[1] <= (math.isqrt(SLOTS) + 2) ** 2
    plain = all(_is_plain_convolution(layer) for layer in layers if layer is not None)
    return fits and plain and can_serve(tokens)


def _is_plain_convolution(layer: nn.Module) -> bool:
    """Whether it is a convolution like all those of the body, in float32, and nobody watches it."""
    return (
        type(layer) is nn.Conv2d
        and layer.weight.dtype is torch.float32
        and layer.bias is not None
        and not is_watched(layer)
    )


def convolve(
    layers: tuple[nn.Module, nn.Conv2d | None],
    tokens: Tensor,
    halo: Tensor | None,
    residual: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """A 3x3 convolution with zeros around every image, a 1x1 convolution behind it, and a residual added.

    ``can_convolve`` must hold.

    Args:
        layers: 3x3 and, unless it is None, 1x1; C to C channels.
        tokens: (T, C) in any order.
        halo: (nW, (window + 2) ** 2) int32, the rows of ``tokens`` that each window sees; -1 outside its image.
        residual: (T, C) in window order.
        out: (T, C), other memory than ``tokens``; is overwritten.

    Returns:
        (T, C) in window order; ``out`` where that was given.

    Raises:
        MemoryError: if the scratch memory of a thread cannot be had.
    """
    assert halo is not None
    kernel, window, (conv, linear) = load_kernel(), math.isqrt(halo.shape[1]) - 2, layers
    assert kernel is not None
    assert isinstance(conv, nn.Conv2d)
    tokens, residual = tokens.contiguous(), residual.contiguous()
    output = torch.empty_like(tokens) if out is None else out
    weights = _contiguous(conv.weight.permute(0, 2, 3, 1), conv.bias)
    weights += _contiguous(linear.weight, linear.bias) if linear is not None else []
    pointers = [weight.data_ptr() for weight in weights]
    arguments = _Convolution(tokens.shape[1], window, *pointers, *[None] * (4 - len(pointers)))
    with record_function("swin_convolution"):
        failed = kernel.convolution(
            ctypes.byref(arguments),
            tokens.data_ptr(),
            halo.data_ptr(),
            residual.data_ptr(),
            output.data_ptr(),
            halo.shape[0],
            torch.get_num_threads(),
        )
    _check(failed)
    return output


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("There is no memory for the scratch space of a window: use fewer threads.")


class _Block(ctypes.Structure):
    """``struct block`` of the kernel."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("channels", "heads", "hidden", "tokens")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "qkv_weight", "qkv_bias", "scale", "bias", "proj_weight", "proj_bias", "norm1_weight", "norm1_bias",
                "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "norm2_weight", "norm2_bias",
            )
        ),
        ("eps", ctypes.c_float),
    )  # fmt: skip


class _Convolution(ctypes.Structure):
    """``struct convolution`` of the kernel."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("channels", "window")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "linear_weight", "linear_bias")),
    )


@dataclass(frozen=True)
class Kernel:
    """The functions of the kernel."""

    block: ctypes._NamedFuncPointer
    convolution: ctypes._NamedFuncPointer


def _contiguous(*weights: Tensor | None) -> list[Tensor]:
    return [weight.detach().contiguous() for weight in weights if weight is not None]


@functools.cache
def load_kernel() -> Kernel | None:
    """The kernel; None where the package was installed without it, or with one that would be slower."""
    folder = Path(__file__).with_name("kernels")
    for suffix in EXTENSION_SUFFIXES:
        try:
            library = ctypes.CDLL(str(folder / f"block{suffix}"))
            sizes = library.swin_block_size(), library.swin_convolution_size()
            same = sizes == (ctypes.sizeof(_Block), ctypes.sizeof(_Convolution))
            if same and library.swin_block_width() >= LEAST_WIDTH:
                return Kernel(_block_of(library), _convolution_of(library))
        except (OSError, AttributeError):  # absent, or built for something else
            continue
    return None


def _block_of(library: ctypes.CDLL) -> ctypes._NamedFuncPointer:
    function = library.swin_block
    function.argtypes = [
        ctypes.POINTER(_Block), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_long, ctypes.POINTER(ctypes.c_long), ctypes.c_int,
    ]  # fmt: skip
    function.restype = ctypes.c_int
    return function


def _convolution_of(library: ctypes.CDLL) -> ctypes._NamedFuncPointer:
    function = library.swin_convolution
    function.argtypes = [
        ctypes.POINTER(_Convolution), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_long, ctypes.c_int,
    ]  # fmt: skip
    function.restype = ctypes.c_int
    return function
