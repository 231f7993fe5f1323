"""A SwinTransformerBlock on a CPU in one call: every window passes the whole block while it lies in the cache.

The kernel (``model/kernels/block.c``) is built when the package is installed where there is a C compiler. Without it,
and on a GPU, in training and in other dtypes, PyTorch's operators compute the same.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        scale: (nH,), the factor on cosines.
        bias: (MASK_KINDS or 1, nH, N of key, SLOTS of query), position bias and mask.
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
    return KernelTables(qkv_bias.contiguous(), scale.flatten().contiguous(), key_major.contiguous())


def can_run(block: SwinTransformerBlock, tokens: Tensor) -> bool:
    """Whether the kernel may compute this block for these tokens (T, C) now."""
    return (
        block.attn.kernel_tables is not None
        and tokens.dtype is torch.float32
        and tokens.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and _is_plain(block)
    )


def _is_plain(block: SwinTransformerBlock) -> bool:
    """Whether nobody put another layer, another dtype or a hook into the block."""
    attn, mlp = block.attn, block.mlp
    layers: tuple[tuple[nn.Module, type[nn.Module]], ...] = (
        (attn.qkv, nn.Linear), (attn.proj, nn.Linear), (mlp.fc1, nn.Linear), (mlp.fc2, nn.Linear),
        (block.norm1, nn.LayerNorm), (block.norm2, nn.LayerNorm), (mlp.act, nn.GELU),
    )  # fmt: skip
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in block.modules())  # noqa: SLF001
    if hooked or not all(type(layer) is expected for layer, expected in layers):
        return False
    exact = all(parameter.dtype is torch.float32 for layer, _ in layers for parameter in layer.parameters())
    return exact and mlp.act.approximate == "none"


def run(block: SwinTransformerBlock, tokens: Tensor, gather: Tensor | None, counts: tuple[int, ...]) -> Tensor:
    """Run a block for which ``can_run`` holds, with as many threads as PyTorch uses.

    Args:
        block: in evaluation mode.
        tokens: (T, C).
        gather: (T,) int32, the row of ``tokens`` that each token of the block comes from; None where that is itself.
        counts: how many windows, in their order, have which kind of mask.

    Returns:
        (T, C), in the block's order.

    Raises:
        MemoryError: if the scratch memory of a thread cannot be had.
    """
    kernel, attn, tables = load_kernel(), block.attn, block.attn.kernel_tables
    assert kernel is not None
    assert tables is not None
    tokens = tokens.contiguous()
    output = torch.empty_like(tokens)
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
    failed = kernel(
        ctypes.byref(arguments),
        tokens.data_ptr(),
        None if gather is None else gather.data_ptr(),
        output.data_ptr(),
        tokens.shape[0] // attn.window**2,
        kinds,
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError("There is no memory for the scratch space of a window: use fewer threads.")
    return output


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


def _contiguous(*weights: Tensor) -> list[Tensor]:
    return [weight.detach().contiguous() for weight in weights]


@functools.cache
def load_kernel() -> ctypes._NamedFuncPointer | None:
    """The kernel's function; None where the package was installed without it, or with one that would be slower."""
    folder = Path(__file__).with_name("kernels")
    for suffix in EXTENSION_SUFFIXES:
        try:
            library = ctypes.CDLL(str(folder / f"block{suffix}"))
            if library.swin_block_size() == ctypes.sizeof(_Block) and library.swin_block_width() >= LEAST_WIDTH:
                return _typed(library.swin_block)
        except (OSError, AttributeError):  # absent, or built for something else
            continue
    return None


def _typed(function: ctypes._NamedFuncPointer) -> ctypes._NamedFuncPointer:
    function.argtypes = [
        ctypes.POINTER(_Block), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_long, ctypes.POINTER(ctypes.c_long), ctypes.c_int,
    ]  # fmt: skip
    function.restype = ctypes.c_int
    return function
