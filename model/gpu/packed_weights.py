"""A network's weights in the form that tokens on a GPU are computed with.

Widths are filled with zeros to multiples of eight, which tensor cores want.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.gpu.operators import AttentionTables, NormWeights
from model.network import ResidualSwinTransformerBlock, SwinTransformerBlock

ALIGNMENT = 8
"""Channels that a width is a multiple of."""


@dataclass(frozen=True)
class Weights:
    """A linear layer's, or a convolution's."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Block:
    """A block, ready to compute."""

    shifted: bool
    tables: AttentionTables
    qkv: Weights
    proj: Weights
    norm1: NormWeights
    fc1: Weights
    act: Callable[[Tensor], Tensor]
    fc2: Weights
    norm2: NormWeights


@dataclass(frozen=True)
class Stage:
    """Blocks, and what comes after them: convolutions and the 1x1 one."""

    blocks: tuple[Block, ...]
    convolutions: tuple[Weights, ...]
    embed: Weights


def align(channels: int) -> int:
    """The width that so many channels are filled to."""
    return -(-channels // ALIGNMENT) * ALIGNMENT


def take_stage(stage: nn.Module, dtype: torch.dtype, exact: torch.dtype) -> Stage:
    """A stage with products in ``dtype`` and the rest in ``exact``."""
    assert isinstance(stage, ResidualSwinTransformerBlock)
    blocks = tuple(_take_block(block, dtype, exact) for block in stage.residual_group.blocks)
    return Stage(blocks, take_residual(stage.conv, dtype), take_linear(stage.patch_embed.proj, dtype))


def _take_block(block: nn.Module, dtype: torch.dtype, exact: torch.dtype) -> Block:
    assert isinstance(block, SwinTransformerBlock)
    attn, mlp = block.attn, block.mlp
    bias, scale = attn.tables()
    fill = align(attn.dim) - attn.dim
    qkv = F.pad(attn.qkv.weight.view(3, attn.dim, attn.dim), (0, fill, 0, fill)).flatten(0, 1)
    qkv_bias = F.pad(attn.qkv_bias().view(3, attn.dim), (0, fill)).flatten()
    return Block(
        bool(block.shift),
        AttentionTables(bias.to(exact).contiguous(), scale.flatten().to(exact), attn.dim),
        Weights(qkv.to(dtype), qkv_bias.to(dtype)),
        take_linear(attn.proj, dtype),
        take_norm(block.norm1, exact),
        take_linear(mlp.fc1, dtype),
        mlp.act,
        take_linear(mlp.fc2, dtype),
        take_norm(block.norm2, exact),
    )


def take_residual(connection: nn.Module, dtype: torch.dtype) -> tuple[Weights, ...]:
    """The convolutions that end a stage or the body: one, or those of the bottleneck."""
    if not isinstance(connection, nn.Sequential):
        return (take_convolution(connection, dtype),)
    first, middle, last = (connection[index] for index in (0, 2, 4))
    return take_convolution(first, dtype), take_linear(middle, dtype), take_convolution(last, dtype)


def take_norm(norm: nn.Module, dtype: torch.dtype) -> NormWeights:
    """A LayerNorm's."""
    assert isinstance(norm, nn.LayerNorm)
    return NormWeights(norm.weight.detach().to(dtype), norm.bias.detach().to(dtype), norm.eps)


def take_linear(layer: nn.Module, dtype: torch.dtype) -> Weights:
    """A linear layer's or a 1x1 convolution's."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    assert layer.bias is not None
    return _fill(layer.weight.detach().flatten(1), layer.bias.detach(), dtype)


def take_convolution(layer: nn.Module, dtype: torch.dtype, *, fill_output: bool = True) -> Weights:
    """A 3x3 convolution's, channels last."""
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    weights = _fill(layer.weight.detach(), layer.bias.detach(), dtype, fill_output=fill_output)
    return Weights(weights.weight.contiguous(memory_format=torch.channels_last), weights.bias)


def _fill(weight: Tensor, bias: Tensor, dtype: torch.dtype, *, fill_output: bool = True) -> Weights:
    """Zeros for the channels that were added; images of a few channels stay as they are."""
    more = [size if size < ALIGNMENT else align(size) for size in weight.shape[:2]]
    more[0] = more[0] if fill_output else len(weight)
    fill = (0, 0) * (weight.ndim - 2) + (0, more[1] - weight.shape[1], 0, more[0] - weight.shape[0])
    return Weights(F.pad(weight, fill).to(dtype), F.pad(bias, (0, more[0] - len(bias))).to(dtype))
