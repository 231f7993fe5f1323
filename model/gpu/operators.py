"""What a block does between its matrix products, by PyTorch's operators: the twin that kernels are held against."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from model.gpu.packed_weights import Block

BOUNDED_SCALE = 40.0
"""Factor on cosines up to which a logit, with its bias of 16 at most, is far from where float32 ends, 88."""


@dataclass(frozen=True)
class AttentionTables:
    """What attention needs beside queries, keys and values.

    Args:
        bias: (kinds, nH, N, N) float32, position bias and mask.
        scale: (nH,) float32, the factor on cosines.
        channels: C; a row of query, key or value may be wider, and is zero there.

    Attributes:
        bias_2, scale_2: the same for logits to the base of 2, which is what a GPU takes powers of.
        bounded: whether the power of every logit is a float32, so that softmax need not look for the largest.
    """

    bias: Tensor
    scale: Tensor
    channels: int
    bias_2: Tensor = field(init=False)
    scale_2: Tensor = field(init=False)
    bounded: bool = field(init=False)

    def __post_init__(self) -> None:
        base_2 = math.log2(math.e)
        object.__setattr__(self, "bias_2", self.bias * base_2)
        object.__setattr__(self, "scale_2", self.scale * base_2)
        object.__setattr__(self, "bounded", bool(self.scale.max() <= BOUNDED_SCALE))


@dataclass(frozen=True)
class NormWeights:
    """A LayerNorm's: (C,) both, in the stream's dtype."""

    weight: Tensor
    bias: Tensor
    eps: float


class Attend(Protocol):
    """Window attention after the projection to query, key and value and before the one of its result."""

    def __call__(self, qkv: Tensor, kinds: Tensor, tables: AttentionTables) -> Tensor:
        """Attend among the tokens of each window.

        Args:
            qkv: (T, 3 * width), windows one after the other; C <= width, and what is beyond C is zero.
            kinds: (nW,) int32, which bias a window has.
            tables: of the block.

        Returns:
            (T, width) in the dtype of ``qkv``, zero beyond C. Normalisation and softmax are float32 at least.
        """


class AddNorm(Protocol):
    """The end of a branch: normalise it, add it to the stream, and put the tokens into the next block's order."""

    def __call__(self, stream: Tensor, branch: Tensor, norm: NormWeights, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute ``(stream + norm(branch))[rows]``.

        Args:
            stream: (T, width), float32 or float64.
            branch: (T, width) in the dtype of the matrix products; C <= width, and what is beyond C is zero.
            norm: over C channels.
            rows: (T,) int32; None where the order stays.

        Returns:
            The stream, and the same in the branch's dtype.
        """


class Finish(Protocol):
    """All of a block behind its attention, for narrow networks."""

    def __call__(self, stream: Tensor, branch: Tensor, block: Block, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add the normalised branch, and then the MLP's, and put the tokens into the next block's order.

        Args:
            stream: (T, width) float32.
            branch: (T, width) in the dtype of the matrix products: attention, projected.
            block: its weights.
            rows: (T,) int32; None where the order stays.

        Returns:
            The stream, and the same in the branch's dtype.
        """


class RunBlock(Protocol):
    """A whole block at once, for narrow networks: what lies between its products never leaves the chip."""

    def __call__(self, stream: Tensor, kinds: Tensor, block: Block, rows: Tensor | None) -> Tensor:
        """Compute the block of ``stream[rows]``.

        Args:
            stream: (T, width) float32.
            kinds: (nW,) int32.
            block: its weights.
            rows: (T,) int32, which of the stream's tokens each of the block's is; None where that is itself.

        Returns:
            (T, width) float32, other memory than ``stream``.
        """


class Gather(Protocol):
    """What a convolution sees."""

    def __call__(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Take rows of ``tokens``.

        Args:
            tokens: (T, C).
            rows: (n,) int32, each below T, or T where there is no token.

        Returns:
            (n, C), zero where there is no token.
        """


def gather(tokens: Tensor, rows: Tensor) -> Tensor:
    """As ``Gather``."""
    return torch.cat((tokens, tokens.new_zeros(1, tokens.shape[1]))).index_select(0, rows)


@dataclass(frozen=True)
class Operators:
    """One form of each; with ``finish``, a block does not ask for ``add_norm``, and with ``run_block`` for no other."""

    attend: Attend
    add_norm: AddNorm
    finish: Finish | None = None
    run_block: RunBlock | None = None
    gather: Gather = gather


def attend(qkv: Tensor, kinds: Tensor, tables: AttentionTables) -> Tensor:
    """As ``Attend``."""
    heads, length = tables.bias.shape[1:3]
    width, exact = qkv.shape[1] // 3, torch.promote_types(qkv.dtype, torch.float32)
    shape = (len(qkv) // length, length, 3)
    query, key, value = qkv.view(-1, length, 3, width)[..., : tables.channels].reshape(*shape, heads, -1).unbind(2)
    query, key = (F.normalize(each.to(exact), dim=-1).transpose(1, 2) for each in (query, key))
    logits = query @ key.transpose(-2, -1) * tables.scale.to(exact)[:, None, None]
    probabilities = torch.softmax(logits + tables.bias.to(exact).index_select(0, kinds), dim=-1)
    mixed = (probabilities.to(qkv.dtype) @ value.transpose(1, 2)).transpose(1, 2).flatten(2)
    return F.pad(mixed, (0, width - tables.channels)).flatten(0, 1)


def add_norm(stream: Tensor, branch: Tensor, norm: NormWeights, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """As ``AddNorm``."""
    channels = norm.weight.shape[0]
    normal = F.layer_norm(branch[:, :channels].to(stream.dtype), (channels,), norm.weight, norm.bias, norm.eps)
    stream = stream + F.pad(normal, (0, stream.shape[1] - channels))
    if rows is not None:
        stream = stream.index_select(0, rows)
    return stream, stream.to(branch.dtype)


PLAIN = Operators(attend, add_norm)
