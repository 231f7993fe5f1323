"""A network's weights in the form that ``model.inference`` computes with.

On a GPU widths are padded with zeros to multiples of eight, because tensor cores need that. Packing refuses modules
that are not of the network's own classes, because they may compute something else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.inference.operators import AttentionTables, NormWeights
from model.kernels import weights as kernel_weights
from model.network import (
    Swin2SR,
    Swin2SRAttention,
    Swin2SRDropPath,
    Swin2SRIntermediate,
    Swin2SRLayer,
    Swin2SROutput,
    Swin2SRPatchEmbeddings,
    Swin2SRPatchUnEmbeddings,
    Swin2SRSelfAttention,
    Swin2SRSelfOutput,
    Swin2SRStage,
)
from model.reconstruction import DirectHead
from model.windows import mask_of_each_kind

ALIGNMENT = 8
"""On a GPU, widths are multiples of so many channels."""

_ACTIVATIONS = (nn.GELU, nn.ReLU, nn.SELU)

M = TypeVar("M", bound=nn.Module)


class NotPlainError(Exception):
    """A module is not the one that the network was built with."""


@dataclass(frozen=True)
class Form:
    """How weights are packed.

    Attributes:
        dtype: of matrix products.
        exact: dtype of everything else.
        alignment: channels that widths are multiples of.
        precision: of the C kernel.
    """

    dtype: torch.dtype
    exact: torch.dtype
    alignment: int = 1
    precision: str = "exact"

    def width(self, channels: int) -> int:
        """The width of a layer with so many channels: the next multiple of the alignment."""
        return -(-channels // self.alignment) * self.alignment


@dataclass(frozen=True)
class Weights:
    """The weights of a linear layer or a convolution."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Block:
    """The weights of a Swin transformer block. ``kernel`` has them for the C kernel, if that can compute the block."""

    shifted: bool
    tables: AttentionTables
    qkv: Weights
    proj: Weights
    norm1: NormWeights
    fc1: Weights
    act: Callable[[Tensor], Tensor]
    fc2: Weights
    norm2: NormWeights
    kernel: kernel_weights.BlockWeights | None = None


@dataclass(frozen=True)
class EndWeights:
    """The convolutions at the end of a stage or of the body, one or three, and the 1x1 convolution of a stage."""

    convolutions: tuple[Weights, ...]
    linear: Weights | None
    kernel: kernel_weights.ConvolutionWeights | None = None
    norm: NormWeights | None = None
    """The norm of the body, if the kernel computes it together with the last stage."""


@dataclass(frozen=True)
class PackedStage:
    """The weights of a stage: its blocks, and the convolutions at its end."""

    blocks: tuple[Block, ...]
    end: EndWeights


def pack_stage(stage: nn.Module, form: Form, window: int, norm: NormWeights | None = None) -> PackedStage:
    """Pack a stage of this window side, and the norm after it if there is one."""
    stage = expect(stage, Swin2SRStage)
    expect(stage.patch_unembed, Swin2SRPatchUnEmbeddings)
    blocks = tuple(pack_block(block, form) for block in stage.layers)
    embed = expect(stage.patch_embed, Swin2SRPatchEmbeddings)
    if embed.layernorm is not None or any(block.window_size != window for block in stage.layers):
        raise NotPlainError
    return PackedStage(blocks, pack_end(stage.conv, embed.projection, form, window, norm))


def pack_block(block: nn.Module, form: Form) -> Block:
    """Pack a block and compute its attention tables."""
    block = expect(block, Swin2SRLayer)
    attention, output = expect(block.attention, Swin2SRAttention), expect(block.output, Swin2SROutput)
    inner, projection = expect(attention.self, Swin2SRSelfAttention), expect(attention.output, Swin2SRSelfOutput)
    intermediate = expect(block.intermediate, Swin2SRIntermediate)
    activation = expect(intermediate.intermediate_act_fn, *_ACTIVATIONS)
    expect(block.drop_path, Swin2SRDropPath)
    for dropout in (inner.dropout, projection.dropout, output.dropout):
        expect(dropout, nn.Dropout)
    window = block.window_size
    if inner.window_size != (window, window) or inner.num_attention_heads != len(inner.logit_scale):
        raise NotPlainError
    if block.shift_size not in (0, window // 2) or block.layernorm_before.eps != block.layernorm_after.eps:
        raise NotPlainError  # an index has one shift, and a kernel one epsilon
    packed = Block(
        bool(block.shift_size),
        pack_tables(inner, block.shift_size, form.exact),
        _pack_qkv(inner, form),
        pack_linear(projection.dense, form),
        pack_norm(block.layernorm_before, form.exact),
        pack_linear(intermediate.dense, form),
        activation,
        pack_linear(output.dense, form),
        pack_norm(block.layernorm_after, form.exact),
    )
    if not (type(activation) is nn.GELU and activation.approximate == "none" and form.alignment == 1):
        return packed
    return Block(**{**vars(packed), "kernel": _pack_for_kernel(packed, form.precision)})


def _pack_for_kernel(block: Block, precision: str) -> kernel_weights.BlockWeights | None:
    layers = (block.qkv, block.proj, block.norm1, block.fc1, block.fc2, block.norm2)
    weights = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
    return kernel_weights.pack_block(block.tables.bias, block.tables.scale, weights, block.norm1.eps, precision)


def pack_tables(attention: Swin2SRSelfAttention, shift: int, dtype: torch.dtype) -> AttentionTables:
    """The tables that depend on an attention's weights: position bias with masks, and scale."""
    bias = attention.position_bias()[None]  # (1, nH, N, N)
    if shift:
        bias = bias + _masks(attention.window_size[0], shift).to(bias)[:, None]
    return AttentionTables(
        bias.to(dtype).contiguous(),
        attention.scale().flatten().to(dtype),
        expect(attention.query, nn.Linear).in_features,
    )


@functools.cache
def _masks(window: int, shift: int) -> Tensor:
    return mask_of_each_kind(window, shift)


def _pad(tensor: Tensor, padding: tuple[int, ...]) -> Tensor:
    return F.pad(tensor, padding) if any(padding) else tensor


def _pack_qkv(attention: Swin2SRSelfAttention, form: Form) -> Weights:
    layers = [expect(layer, nn.Linear) for layer in (attention.query, attention.key, attention.value)]
    fill = form.width(layers[0].in_features) - layers[0].in_features
    weights = [_pad(layer.weight, (0, fill, 0, fill)) for layer in layers]
    biases = [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
    bias = torch.cat([_pad(bias, (0, fill)) for bias in biases])
    return Weights(torch.cat(weights).detach().to(form.dtype), bias.detach().to(form.dtype))


def pack_end(
    connection: nn.Module, linear: nn.Module | None, form: Form, window: int, norm: NormWeights | None = None
) -> EndWeights:
    """Pack the convolutions at the end of a stage or of the body, and the norm after them if there is one."""
    last_linear = None if linear is None else pack_linear(linear, form)
    if type(connection) is not nn.Sequential:
        convolution = pack_convolution(connection, form)
        layers = [convolution, *([] if last_linear is None else [last_linear])]
        weights = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
        if form.alignment > 1:
            return EndWeights((convolution,), last_linear)
        given = None if norm is None else (norm.weight, norm.bias, norm.eps)
        kernel = kernel_weights.pack_convolution(weights, window, form.precision, given)
        return EndWeights((convolution,), last_linear, kernel, norm if kernel else None)
    first, leaky, middle, again, last = connection.children()
    for activation in (leaky, again):
        if expect(activation, nn.LeakyReLU).negative_slope != 0.2:
            raise NotPlainError
    bottleneck = (pack_convolution(first, form), pack_linear(middle, form), pack_convolution(last, form))
    return EndWeights(bottleneck, last_linear)


def pack_embedding(
    first: nn.Module, linear: Weights, norm: NormWeights, form: Form, window: int
) -> kernel_weights.EmbeddingWeights | None:
    """Pack the first convolution and the embedding for the C kernel, if that can compute them."""
    convolution = pack_convolution(first, form)
    weights = (convolution.weight, convolution.bias, linear.weight, linear.bias, norm.weight, norm.bias)
    return kernel_weights.pack_embedding(weights, norm.eps, window) if form.alignment == 1 else None


def pack_head(network: Swin2SR, form: Form) -> kernel_weights.HeadWeights | None:
    """Pack a head of one convolution for the C kernel, with the scaling of its values to the range of pixels.

    Returns:
        None if the head is another one, or was replaced.
    """
    config, scale, own = network.config, 1, type(network)
    if own.reconstruct is not Swin2SR.reconstruct or own.denormalise is not Swin2SR.denormalise:
        return None
    if config.upsampler is None:
        head: nn.Module = network.final_convolution
    elif type(network.upsample) is DirectHead and type(network.upsample.pixel_shuffle) is nn.PixelShuffle:
        head, scale = network.upsample.conv, network.upsample.pixel_shuffle.upscale_factor
    else:
        return None
    if type(head) is not nn.Conv2d:
        return None
    weights = pack_convolution(head, form)
    mean = network.mean_out.flatten().repeat_interleave(scale**2)
    added = 0 if config.upsampler is None else mean  # there the pixels are added, and their mean with them
    return kernel_weights.pack_head(
        weights.weight / config.img_range, weights.bias / config.img_range + added, scale, config.window_size
    )


def pack_norm(norm: nn.Module | None, dtype: torch.dtype) -> NormWeights:
    """Pack a LayerNorm."""
    norm = expect(norm, nn.LayerNorm)
    if norm.weight is None or norm.bias is None or len(norm.normalized_shape) != 1:
        raise NotPlainError
    return NormWeights(norm.weight.detach().to(dtype), norm.bias.detach().to(dtype), norm.eps)


def pack_linear(layer: nn.Module, form: Form) -> Weights:
    """Pack a linear layer or a 1x1 convolution."""
    if type(layer) is nn.Conv2d:
        _expect_usual(layer, 1)
        return _fill(layer.weight.flatten(1), layer.bias, form)
    linear = expect(layer, nn.Linear)
    return _fill(linear.weight, linear.bias, form)


def pack_convolution(layer: nn.Module, form: Form, *, fill_input: bool = True, fill_output: bool = True) -> Weights:
    """Pack a 3x3 convolution, channels last. The channels of images are not padded."""
    layer = expect(layer, nn.Conv2d)
    _expect_usual(layer, 3)
    weights = _fill(layer.weight, layer.bias, form, (fill_output, fill_input))
    return Weights(weights.weight.contiguous(memory_format=torch.channels_last), weights.bias)


def _expect_usual(layer: nn.Conv2d, side: int) -> None:
    found = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    if found != ((side, side), (1, 1), (side // 2, side // 2), (1, 1), 1, "zeros"):
        raise NotPlainError


def expect(module: object, *classes: type[M]) -> M:
    """Return a module of one of the classes; subclasses are refused.

    Raises:
        NotPlainError: if it is of another class.
    """
    if type(module) not in classes:
        raise NotPlainError
    return module  # type: ignore[return-value]  # by the line above


def _fill(weight: Tensor, bias: Tensor | None, form: Form, filled: tuple[bool, bool] = (True, True)) -> Weights:
    """Pad with zeros the channels of the output, of the input, or of both."""
    sizes = weight.shape[:2]
    more = [form.width(size) - size if fill else 0 for size, fill in zip(sizes, filled, strict=True)]
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    padding = (0, 0) * (weight.ndim - 2) + (0, more[1], 0, more[0])
    return Weights(_pad(weight.detach(), padding).to(form.dtype), _pad(bias.detach(), (0, more[0])).to(form.dtype))
