"""The operators of the fast forward pass in PyTorch. Kernels in Triton and in C compute the same."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from model.packing import IN_PYTORCH, IndexFunctions

if TYPE_CHECKING:
    from model.inference.packed_weights import Block, EndWeights
    from model.packing import WindowIndex

BOUNDED_SCALE = 40.0
"""Factor on cosines up to which the power of a logit, whose bias is at most 16, does not overflow float32 (at 88)."""


@dataclass(frozen=True)
class AttentionTables:
    """The inputs of attention apart from queries, keys and values.

    Args:
        bias: (kinds, nH, N, N) float32, position bias and mask.
        scale: (nH,) float32, the factor on cosines.
        channels: C; a row of query, key or value may be wider and then ends in zeros.
    """

    bias: Tensor
    scale: Tensor
    channels: int

    @functools.cached_property
    def bias_2(self) -> Tensor:
        """The bias for logits to the base of 2, of which a GPU computes powers."""
        return self.bias * math.log2(math.e)

    @functools.cached_property
    def scale_2(self) -> Tensor:
        """The scale for logits to the base of 2."""
        return self.scale * math.log2(math.e)

    @functools.cached_property
    def bounded(self) -> bool:
        """Whether the power of every logit fits into float32, so that softmax need not subtract the largest."""
        return bool(self.scale.max() <= BOUNDED_SCALE)


@dataclass(frozen=True)
class NormWeights:
    """Weights of a LayerNorm, (C,) each, in the dtype of the stream."""

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
            rows: (T,) int32; None keeps the order.

        Returns:
            The stream, and the same in the branch's dtype.
        """


class Finish(Protocol):
    """The part of a block after its attention, for narrow networks."""

    def __call__(self, stream: Tensor, branch: Tensor, block: Block, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add the normalised branch, and then the MLP's, and put the tokens into the next block's order.

        Args:
            stream: (T, width) float32.
            branch: (T, width) in the dtype of the matrix products: attention, projected.
            block: its weights.
            rows: (T,) int32; None keeps the order.

        Returns:
            The stream, and the same in the branch's dtype.
        """


class RunBlock(Protocol):
    """A whole block at once."""

    def __call__(
        self, stream: Tensor, kinds: Tensor, block: Block, rows: Tensor | None, out: Tensor | None = None
    ) -> Tensor:
        """Compute the block of ``stream[rows]``.

        Args:
            stream: (T, width), in the dtype of the residual stream.
            kinds: (nW,) int32.
            block: its weights.
            rows: (T,) int32, the token of the stream that each token of the block is; None keeps the order.
            out: (T, width), memory that may be used for the result.

        Returns:
            (T, width), in other memory than ``stream``.
        """


class Gather(Protocol):
    """Collects the inputs of a convolution."""

    def __call__(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Take rows of ``tokens``.

        Args:
            tokens: (T, C).
            rows: (n,) int32, each below T, or -1 where there is no token.

        Returns:
            (n, C), zero where there is no token.
        """


class EndStage(Protocol):
    """The convolutions at the end of a stage or of the body, added to a residual."""

    def __call__(
        self,
        tokens: Tensor,
        residual: Tensor,
        index: WindowIndex,
        layers: EndWeights,
        *,
        shifted: bool,
        out: Tensor | None = None,
    ) -> Tensor:
        """Compute ``residual + linear(convolutions(tokens))``.

        Args:
            tokens: (T, width) in window order, or in shifted order.
            residual: (T, width) in window order, in the dtype of the residual stream.
            index: of the pack.
            layers: the convolutions, and the linear layer after them if there is one.
            shifted: whether the tokens are in shifted order.
            out: (T, width), memory that may be used for the result.

        Returns:
            (T, width) in window order.
        """


def gather(tokens: Tensor, rows: Tensor) -> Tensor:
    """As ``Gather``."""
    found = tokens.index_select(0, rows.clamp_min(0))
    return found.masked_fill_((rows < 0)[:, None], 0)


@dataclass(frozen=True)
class Operators:
    """One form of each operator. With ``finish``, ``add_norm`` is not used; with ``run_block``, neither is.

    ``end_stage`` is None where the convolutions are computed by ``gather`` and PyTorch.
    """

    attend: Attend
    add_norm: AddNorm
    finish: Finish | None = None
    run_block: RunBlock | None = None
    gather: Gather = gather
    end_stage: EndStage | None = None
    index: IndexFunctions = IN_PYTORCH


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
