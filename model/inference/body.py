"""The transformer blocks and the convolutions between them, computed on windows. CPU and GPU use the same code.

Every shape depends on the number of windows only, so images of any sizes share a pass. The operators exist in PyTorch
(``model.inference.operators``), in C (``model.cpu_kernel``) and in Triton (``model.gpu.kernels``). Matrix products and
convolutions are computed in one dtype; the residual stream, norms and softmax in another, exact one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from model.inference.operators import PLAIN, NormWeights, Operators
from model.inference.packed_weights import (
    Block,
    EndWeights,
    Form,
    PackedStage,
    Weights,
    expect,
    pack_end,
    pack_linear,
    pack_norm,
    pack_stage,
)
from model.inference.scratch import Buffers
from model.network import (
    Swin2SRBody,
    Swin2SREmbeddings,
    Swin2SREncoder,
    Swin2SRPatchEmbeddings,
    Swin2SRPatchUnEmbeddings,
)
from model.packing import WindowIndex

NORM_TOKENS = 2**12
"""Tokens that are normalised together in place."""

CHUNK = 32
"""Windows that PyTorch computes together on a CPU, so that they stay in its cache."""


class WindowBody:
    """The body on windows.

    Args:
        body: in evaluation mode, on its device.
        form: dtypes and widths.
        operators: PyTorch's, or kernels.

    Raises:
        NotPlainError: if a module is not the one that the network was built with.
    """

    @torch.no_grad()
    def __init__(self, body: Swin2SRBody, form: Form, operators: Operators = PLAIN) -> None:
        embeddings = expect(expect(body.embeddings, Swin2SREmbeddings).patch_embeddings, Swin2SRPatchEmbeddings)
        expect(body.patch_unembed, Swin2SRPatchUnEmbeddings)
        self.channels, self.form, self.operators = body.config.embed_dim, form, operators
        self.width = form.width(self.channels)
        self.embed = pack_linear(embeddings.projection, form)
        self.embed_norm = pack_norm(embeddings.layernorm, form.exact)
        self.norm = pack_norm(body.layernorm, form.exact)
        stages = list(expect(body.encoder, Swin2SREncoder).stages)
        norms = [None] * (len(stages) - 1) + [self.norm]
        window = body.config.window_size
        self.stages = tuple(pack_stage(stage, form, window, norm) for stage, norm in zip(stages, norms, strict=True))
        self.after_body = pack_end(body.conv_after_body, None, form, window)
        self.heartbeat: Callable[[], None] = lambda: None

    @property
    def is_packed(self) -> bool:
        """Whether every block is packed for AMX."""
        return all(block.kernel and block.kernel.packed for stage in self.stages for block in stage.blocks)

    def __call__(
        self, shallow: Tensor, index: WindowIndex, buffers: Buffers | None = None, stream: Tensor | None = None
    ) -> Tensor:
        """Compute deep features (T, width) from those of the first convolution, in window order and the exact dtype.

        ``stream`` is the output of the embedding, if it is known.
        """
        buffers = Buffers() if buffers is None else buffers
        if stream is None:
            stream = self._normalise(apply(shallow.to(self.form.dtype), self.embed), self.embed_norm)
        tokens = stream.to(self.form.dtype)
        for stage in self.stages:
            stream = self._run_stage(stage, stream, tokens, index, buffers)
            tokens = stream.to(self.form.dtype)
        if self.stages[-1].end.norm is None:
            tokens = self._normalise_all(stream, buffers).to(self.form.dtype)
        return self._end_stage(tokens, shallow, index, self.after_body, shifted=False, out=buffers.take())

    def _normalise_all(self, stream: Tensor, buffers: Buffers) -> Tensor:
        """The body's norm, in place where memory is used again."""
        if not buffers.reused:
            return self._normalise(stream, self.norm)
        for part in torch.split(stream, NORM_TOKENS):
            part.copy_(self._normalise(part, self.norm))
        return stream

    def _normalise(self, tokens: Tensor, norm: NormWeights) -> Tensor:
        """LayerNorm of tokens (T, width) of any dtype, in the exact one."""
        normal = F.layer_norm(
            tokens[:, : self.channels].to(self.form.exact), (self.channels,), norm.weight, norm.bias, norm.eps
        )
        return F.pad(normal, (0, self.width - self.channels)) if self.width > self.channels else normal

    def _run_stage(
        self, stage: PackedStage, stream: Tensor, tokens: Tensor, index: WindowIndex, buffers: Buffers
    ) -> Tensor:
        deep, shifted = self._run_blocks(stage.blocks, stream, tokens, index, buffers)
        self.heartbeat()
        found = self._end_stage(deep, stream, index, stage.end, shifted=shifted, out=buffers.take())
        buffers.give(deep)
        buffers.give(stream)
        return found

    def _run_blocks(
        self, blocks: tuple[Block, ...], stream: Tensor, tokens: Tensor, index: WindowIndex, buffers: Buffers
    ) -> tuple[Tensor, bool]:
        """The tokens after the blocks, and whether they are in shifted order."""
        if self.operators.run_block is None:
            for block, following in zip(blocks, [*blocks[1:], blocks[-1]], strict=True):
                rows = None if following.shifted == block.shifted else index.order(shifted=following.shifted)
                kinds = index.kinds_of(shifted=block.shifted)
                stream, tokens = compute_block(self.operators, stream, tokens, kinds, block, rows=rows)
            return tokens, blocks[-1].shifted
        shifted, given = False, stream
        for block in blocks:
            self.heartbeat()
            rows = None if block.shifted == shifted else index.order(shifted=block.shifted)
            shifted = block.shifted
            kinds = index.kinds_of(shifted=shifted)
            found = self.operators.run_block(stream, kinds, block, rows, buffers.take())
            if stream is not given:
                buffers.give(stream)
            stream = found
        return stream.to(self.form.dtype), shifted

    def _end_stage(
        self,
        tokens: Tensor,
        residual: Tensor,
        index: WindowIndex,
        layers: EndWeights,
        *,
        shifted: bool,
        out: Tensor | None,
    ) -> Tensor:
        if self.operators.end_stage is not None and layers.kernel is not None:
            return self.operators.end_stage(tokens, residual, index, layers, shifted=shifted, out=out)
        tokens = convolve(self.operators, tokens, index, index.window, layers.convolutions[0], shifted=shifted)
        if len(layers.convolutions) > 1:
            _, middle, last = layers.convolutions
            tokens = F.leaky_relu(apply(F.leaky_relu(tokens, 0.2), middle), 0.2)
            tokens = convolve(self.operators, tokens, index, index.window, last)
        return residual + (tokens if layers.linear is None else apply(tokens, layers.linear))


def apply(tokens: Tensor, layer: Weights) -> Tensor:
    """A linear layer."""
    return F.linear(tokens, layer.weight, layer.bias)


def convolve(
    operators: Operators, tokens: Tensor, index: WindowIndex, side: int, layer: Weights, *, shifted: bool = False
) -> Tensor:
    """A 3x3 convolution with zeros around every image.

    Args:
        operators: of which ``gather`` is used.
        tokens: (nW * side * side, C) in window order, or in shifted order.
        index: of the pack.
        side: of a window at the scale of the tokens.
        layer: its weights.
        shifted: whether the tokens are in shifted order.

    Returns:
        (nW * side * side, C out) in window order.
    """
    halo, parts = index.halo(side, shifted=shifted), []
    for rows in torch.split(halo, CHUNK if tokens.device.type == "cpu" else len(halo)):
        seen = operators.gather(tokens, rows.view(-1))
        squares = seen.view(len(rows), side + 2, side + 2, -1).permute(0, 3, 1, 2)
        parts.append(F.conv2d(squares, layer.weight, layer.bias).permute(0, 2, 3, 1).reshape(-1, len(layer.bias)))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def compute_block(
    operators: Operators, stream: Tensor, tokens: Tensor, kinds: Tensor, block: Block, *, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A block, operator by operator.

    Args:
        operators: those of a block.
        stream: (T, width), in window order of the block.
        tokens: the same in the dtype of matrix products.
        kinds: (nW,) int32.
        block: its weights.
        rows: (T,) int32, the order of the result; None keeps the order of the block.

    Returns:
        The stream and the tokens.
    """
    mixed = operators.attend(apply(tokens, block.qkv), kinds, block.tables)
    branch = apply(mixed, block.proj)
    if operators.finish is not None:
        return operators.finish(stream, branch, block, rows)
    stream, tokens = operators.add_norm(stream, branch, block.norm1, None)
    hidden = block.act(apply(tokens, block.fc1))
    return operators.add_norm(stream, apply(hidden, block.fc2), block.norm2, rows)
