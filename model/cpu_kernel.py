"""The body on a CPU in few calls: a window passes a whole block, or a stage's convolution, while it is in the cache.

The kernel (``model/kernels/block.c``) is built when the package is installed where there is a C compiler. Without it,
and on a GPU, in training and in other dtypes, PyTorch's operators compute the same.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from model.hooks import is_watched
from model.kernels.library import BlockArguments, ConvolutionArguments, Kernel, load_kernel
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
    kernel = load_kernel()
    assert kernel is not None
    tokens = tokens.contiguous()
    output = torch.empty_like(tokens) if out is None else out
    weights = _block_weights(kernel, block)
    kinds = (ctypes.c_long * MASK_KINDS)(*counts)
    with record_function("swin_block"):
        failed = kernel.block(
            ctypes.byref(weights.arguments),
            tokens.data_ptr(),
            None if gather is None else gather.data_ptr(),
            output.data_ptr(),
            tokens.shape[0] // block.attn.window**2,
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
    kernel = load_kernel()
    assert halo is not None
    assert kernel is not None
    tokens, residual = tokens.contiguous(), residual.contiguous()
    output = torch.empty_like(tokens) if out is None else out
    weights = _convolution_weights(kernel, layers, math.isqrt(halo.shape[1]) - 2)
    with record_function("swin_convolution"):
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


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("There is no memory for the scratch space of a window: use fewer threads.")


# Weights in the kernel's form.

PARTS = {"fast": 1, "high": 2}
"""Precisions that AMX computes, and how many bfloat16 stand for a float32 in them."""


class _Weights:
    """The weights of a block or of a convolution as the kernel reads them.

    Args:
        tensors: contiguous; kept, so that no other tensor comes to lie where they do.
        arguments: with pointers to them.
    """

    def __init__(
        self, version: tuple[int, ...], tensors: list[Tensor], arguments: BlockArguments | ConvolutionArguments
    ) -> None:
        self.version, self.tensors, self.arguments = version, tensors, arguments

    def pack(self, kernel: Kernel, pack: Callable[..., int | None], *how: int) -> None:
        """Pack the weights for AMX, if that is possible; they are freed with this object."""
        self.arguments.packed = packed = pack(ctypes.byref(self.arguments), *how)
        if packed:
            weakref.finalize(self, kernel.free_packed, packed)


class _State:
    """What is kept with a block or a convolution: its precision, and its weights in the kernel's form.

    Copies of the module have the precision alone.
    """

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.weights: _Weights | None = None

    def __reduce__(self) -> tuple[type[_State], tuple[str]]:
        return _State, (self.precision,)


_KEPT = "kernel_state"
"""Attribute of a module that holds its ``_State``."""


def prepare(network: nn.Module, precision: str) -> str:
    """Choose the precision of a network's blocks and 3x3 convolutions, and keep their weights in the kernel's form.

    Weights may be replaced afterwards, or changed by operations on them; changes that PyTorch does not count (through
    ``.data`` or a NumPy array) need another call.

    Args:
        network: in evaluation mode, on a CPU.
        precision: ``exact``, ``high`` or ``fast``.

    Returns:
        The precision that is computed with: ``exact`` where there is no AMX, or a block does not fit it.
    """
    kernel = load_kernel()
    for module in network.modules():
        vars(module)[_KEPT] = _State(precision)
    blocks = [module for module in network.modules() if hasattr(module, "attn")]
    if precision == "exact" or (
        kernel and all(_can_pack(kernel, cast("SwinTransformerBlock", each)) for each in blocks)
    ):
        return precision
    return prepare(network, "exact")


def _can_pack(kernel: Kernel, block: SwinTransformerBlock) -> bool:
    fits = block.attn.kernel_tables is not None and _is_plain(block)
    return fits and bool(_block_weights(kernel, block).arguments.packed)


def _block_weights(kernel: Kernel, block: SwinTransformerBlock) -> _Weights:
    attn, mlp, tables = block.attn, block.mlp, block.attn.kernel_tables
    assert tables is not None
    tensors = (
        attn.qkv.weight, tables.qkv_bias, tables.scale, tables.bias,
        attn.proj.weight, attn.proj.bias, block.norm1.weight, block.norm1.bias,
        mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias, block.norm2.weight, block.norm2.bias,
    )  # fmt: skip

    def build(version: tuple[int, ...]) -> _Weights:
        kept = [tensor.detach().contiguous() for tensor in tensors]
        sizes = attn.dim, attn.heads, mlp.fc1.out_features, attn.window**2
        arguments = BlockArguments(*sizes, *(tensor.data_ptr() for tensor in kept), block.norm1.eps)
        return _Weights(version, kept, arguments)

    def pack(weights: _Weights, parts: int) -> None:
        weights.pack(kernel, kernel.pack_block, tables.bias.shape[0], parts)

    return _keep(block, tensors, build, pack)


def _convolution_weights(kernel: Kernel, layers: tuple[nn.Module, nn.Conv2d | None], window: int) -> _Weights:
    conv, linear = layers
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    tensors = [conv.weight, conv.bias]
    if linear is not None:
        assert linear.bias is not None
        tensors += [linear.weight, linear.bias]

    def build(version: tuple[int, ...]) -> _Weights:
        kept = [tensor.detach() for tensor in tensors]
        kept = [kept[0].permute(0, 2, 3, 1).contiguous(), *(tensor.contiguous() for tensor in kept[1:])]
        pointers = [tensor.data_ptr() for tensor in kept]
        return _Weights(version, kept, ConvolutionArguments(conv.in_channels, window, *pointers))

    def pack(weights: _Weights, parts: int) -> None:
        weights.pack(kernel, kernel.pack_convolution, parts)

    return _keep(conv, tensors, build, pack)


def _keep(
    module: nn.Module,
    tensors: Sequence[Tensor],
    build: Callable[[tuple[int, ...]], _Weights],
    pack: Callable[[_Weights, int], None],
) -> _Weights:
    """The weights that are kept with a module; new ones where they changed, or nothing is kept."""
    state: _State | None = vars(module).get(_KEPT)
    if state is None or any(tensor.is_inference() for tensor in tensors):  # nothing counts changes of those
        return build(())
    version = tuple(value for tensor in tensors for value in (tensor.data_ptr(), tensor._version))  # noqa: SLF001
    weights = state.weights
    if weights is None or weights.version != version:
        weights = build(version)
        if state.precision in PARTS:
            pack(weights, PARTS[state.precision])
        state.weights = weights
    return weights
