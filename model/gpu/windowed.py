"""The network over windows alone: everything has a shape that depends on the number of windows and on nothing else.

A convolution sees each window with a border of its neighbours' tokens, so there is no canvas. It computes what
``model.network`` computes, with choices of its own: matrix products and the body's convolutions in ``dtype``; the
residual stream, norms, softmax, the first convolution and the head in ``exact``, because the image is the sum of what
they pass on. On the tests' networks bfloat16 so costs two thirds or less of what autocast does; ``tests/test_gpu.py``
states it for each head. Widths are filled with zeros to multiples of eight, which tensor cores want.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.gpu.grid import cyclic_source, halo, mask_kinds
from model.gpu.operators import PLAIN, AttentionTables, NormWeights, Operators
from model.network import ResidualSwinTransformerBlock, Swin2SR, SwinTransformerBlock
from model.reconstruction import mean_of, pixel_shuffle_steps

ALIGNMENT = 8
"""Channels that a width is a multiple of."""

BICUBIC_BORDER = 3
"""Pixels around a window that its bicubic enlargement depends on, and one more."""


@dataclass(frozen=True)
class Weights:
    """A linear layer's, or a convolution's."""

    weight: Tensor
    bias: Tensor | None


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


class Neighbours:
    """The index tables of a pack, each built when it is first asked for.

    Args:
        grid: (nW, 5) int32, as ``model.gpu.grid.lay_out`` makes it.
        window: side of a window.
        shift: pixels by which odd blocks shift the grid.
    """

    def __init__(self, grid: Tensor, window: int, shift: int) -> None:
        self.grid, self.window = grid, window
        self.count = len(grid)
        self.to_shifted = cyclic_source(grid, window, shift)
        self.from_shifted = cyclic_source(grid, window, -shift)
        self.kinds = mask_kinds(grid)
        self.no_kinds = torch.zeros_like(self.kinds)
        self._halos: dict[tuple[int, bool], Tensor] = {}

    def halo(self, side: int, *, shifted: bool = False) -> Tensor:
        """What each window sees, of tokens in window order or in shifted order."""
        key = (side, shifted)
        if key not in self._halos:
            seen = halo(self.grid, side)
            if shifted:
                outside = self.from_shifted.new_full((1,), len(self.from_shifted))
                seen = torch.cat((self.from_shifted, outside)).index_select(0, seen.view(-1)).view_as(seen)
            self._halos[key] = seen
        return self._halos[key]


class WindowedNetwork:
    """A network's weights in the form that windows alone can be computed with.

    Args:
        network: in evaluation mode, on its device.
        dtype: of matrix products in the body: bfloat16, or ``exact``.
        exact: float32, or float64.
        operators: PyTorch's, or kernels.
    """

    @torch.no_grad()
    def __init__(
        self, network: Swin2SR, dtype: torch.dtype, exact: torch.dtype = torch.float32, operators: Operators = PLAIN
    ) -> None:
        self.config, self.dtype, self.exact, self.operators = network.config, dtype, exact, operators
        config, device = network.config, next(network.parameters()).device
        self.width = _align(config.embed_dim)
        self.mean_in = mean_of(config.num_channels).to(device, exact).flatten()
        self.mean_out = mean_of(config.out_channels).to(device, exact).flatten()
        self.first = self._convolution(network.conv_first, exact)
        self.embed = self._linear(network.patch_embed.proj, dtype)
        assert isinstance(network.patch_embed.norm, nn.LayerNorm)
        self.embed_norm = self._norm(network.patch_embed.norm)
        self.stages = tuple(self._stage(stage) for stage in network.layers)
        self.norm = self._norm(network.norm)
        self.after_body = self._residual(network.conv_after_body)
        names = [name for name, _ in network.named_modules() if name.startswith(("conv_", "upsample"))]
        self.head = {
            name: self._convolution(layer, exact, fill_output=False)
            for name in names
            if isinstance(layer := network.get_submodule(name), nn.Conv2d)
        }

    def __call__(self, pixels: Tensor, grid: Tensor) -> Tensor:
        """Reconstruct all windows.

        Args:
            pixels: (T, channels) in window order, in [0, 1].
            grid: (nW, 5) int32.

        Returns:
            (nW * N * scale ** 2, out_channels), each window enlarged, in reading order; not clamped.
        """
        near = Neighbours(grid, self.config.window_size, self.config.shift_size)
        pixels = (pixels.to(self.exact) - self.mean_in) * self.config.img_range
        shallow = _convolve(pixels, near, near.window, self.first)
        image = self._reconstruct(self._deepen(shallow, near), pixels, near)
        return image / self.config.img_range + self.mean_out

    def _deepen(self, shallow: Tensor, near: Neighbours) -> Tensor:
        embedded = _apply(shallow.to(self.dtype), self.embed)
        stream, tokens = self.operators.add_norm(torch.zeros_like(shallow), embedded, self.embed_norm, None)
        for stage in self.stages:
            deep, shifted = self._run_blocks(stage.blocks, stream, tokens, near)
            deep = _apply(self._residual_convolutions(deep, near, stage.convolutions, shifted=shifted), stage.embed)
            stream = stream + deep
            tokens = stream.to(self.dtype)
        norm, channels = self.norm, self.config.embed_dim
        normal = F.layer_norm(stream[:, :channels], (channels,), norm.weight, norm.bias, norm.eps)
        tokens = F.pad(normal.to(self.dtype), (0, self.width - channels))
        return self._residual_convolutions(tokens, near, self.after_body, shifted=False) + shallow

    def _run_blocks(
        self, blocks: tuple[Block, ...], stream: Tensor, tokens: Tensor, near: Neighbours
    ) -> tuple[Tensor, bool]:
        attend, add_norm = self.operators.attend, self.operators.add_norm
        for block, following in zip(blocks, [*blocks[1:], blocks[-1]], strict=True):
            mixed = attend(_apply(tokens, block.qkv), near.kinds if block.shifted else near.no_kinds, block.tables)
            stream, tokens = add_norm(stream, _apply(mixed, block.proj), block.norm1, None)
            hidden = block.act(_apply(tokens, block.fc1))
            rows = None
            if following.shifted != block.shifted:
                rows = near.to_shifted if following.shifted else near.from_shifted
            stream, tokens = add_norm(stream, _apply(hidden, block.fc2), block.norm2, rows)
        return tokens, blocks[-1].shifted

    def _residual_convolutions(
        self, tokens: Tensor, near: Neighbours, layers: tuple[Weights, ...], *, shifted: bool
    ) -> Tensor:
        tokens = _convolve(tokens, near, near.window, layers[0], shifted=shifted)
        if len(layers) > 1:
            _, middle, last = layers
            tokens = F.leaky_relu(_apply(F.leaky_relu(tokens, 0.2), middle), 0.2)
            tokens = _convolve(tokens, near, near.window, last)
        return tokens

    # The heads, as in model.reconstruction.

    def _reconstruct(self, features: Tensor, pixels: Tensor, near: Neighbours) -> Tensor:
        side, head, scale = near.window, self.head, self.config.upscale
        match self.config.upsampler:
            case None:
                return pixels + _convolve(features, near, side, head["conv_last"])
            case "pixelshuffledirect":
                return _shuffle(_convolve(features, near, side, head["upsample.0"]), side, scale)
            case "nearest+conv":
                return self._enlarge_by_nearest(features, near)
        features = F.leaky_relu(_convolve(features, near, side, head["conv_before_upsample.0"]), 0.01)
        if self.config.upsampler == "pixelshuffle":
            return _convolve(self._climb(features, near), near, side * scale, head["conv_last"])
        aux = _convolve(features, near, side, head["conv_aux"])
        features = self._climb(F.leaky_relu(_convolve(aux, near, side, head["conv_after_aux.0"]), 0.01), near)
        enlarged = _convolve(_bicubic(pixels, near, scale), near, side * scale, head["conv_bicubic"])
        return _convolve(features + enlarged, near, side * scale, head["conv_last"])

    def _climb(self, features: Tensor, near: Neighbours) -> Tensor:
        side = near.window
        for index, step in enumerate(pixel_shuffle_steps(self.config.upscale)):
            features = _shuffle(_convolve(features, near, side, self.head[f"upsample.{2 * index}"]), side, step)
            side *= step
        return features

    def _enlarge_by_nearest(self, features: Tensor, near: Neighbours) -> Tensor:
        side, head = near.window, self.head
        features = F.leaky_relu(_convolve(features, near, side, head["conv_before_upsample.0"]), 0.01)
        for name in ("conv_up1", "conv_up2"):
            square = features.view(near.count, side, 1, side, 1, -1).expand(-1, -1, 2, -1, 2, -1)
            side *= 2
            features = F.leaky_relu(_convolve(square.reshape(-1, features.shape[1]), near, side, head[name]), 0.2)
        features = F.leaky_relu(_convolve(features, near, side, head["conv_hr"]), 0.2)
        return _convolve(features, near, side, head["conv_last"])

    # Weights in their form.

    def _stage(self, stage: nn.Module) -> Stage:
        assert isinstance(stage, ResidualSwinTransformerBlock)
        blocks = tuple(self._block(block) for block in stage.residual_group.blocks)
        return Stage(blocks, self._residual(stage.conv), self._linear(stage.patch_embed.proj, self.dtype))

    def _block(self, block: nn.Module) -> Block:
        assert isinstance(block, SwinTransformerBlock)
        attn, mlp = block.attn, block.mlp
        bias, scale = attn.tables()
        table = torch.promote_types(torch.float32, self.exact)
        tables = AttentionTables(bias.to(table).contiguous(), scale.flatten().to(table), self.config.embed_dim)
        fill = self.width - self.config.embed_dim
        qkv = F.pad(attn.qkv.weight.view(3, -1, self.config.embed_dim), (0, fill, 0, fill)).flatten(0, 1)
        qkv_bias = F.pad(attn.qkv_bias().view(3, -1), (0, fill)).flatten()
        return Block(
            bool(block.shift), tables, Weights(qkv.to(self.dtype), qkv_bias.to(self.dtype)),
            self._linear(attn.proj, self.dtype), self._norm(block.norm1),
            self._linear(mlp.fc1, self.dtype), mlp.act, self._linear(mlp.fc2, self.dtype), self._norm(block.norm2),
        )  # fmt: skip

    def _residual(self, connection: nn.Module) -> tuple[Weights, ...]:
        if not isinstance(connection, nn.Sequential):
            return (self._convolution(connection, self.dtype),)
        first, middle, last = (connection[index] for index in (0, 2, 4))
        return (
            self._convolution(first, self.dtype), self._linear(middle, self.dtype), self._convolution(last, self.dtype)
        )  # fmt: skip

    def _norm(self, norm: nn.LayerNorm) -> NormWeights:
        return NormWeights(norm.weight.detach().to(self.exact), norm.bias.detach().to(self.exact), norm.eps)

    @staticmethod
    def _linear(layer: nn.Module, dtype: torch.dtype) -> Weights:
        """A linear layer or a 1x1 convolution."""
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        weight = layer.weight.detach().flatten(1)
        return _fill(weight, layer.bias, dtype)

    @staticmethod
    def _convolution(layer: nn.Module, dtype: torch.dtype, *, fill_output: bool = True) -> Weights:
        assert isinstance(layer, nn.Conv2d)
        weights = _fill(layer.weight.detach(), layer.bias, dtype, fill_output=fill_output)
        return Weights(weights.weight.contiguous(memory_format=torch.channels_last), weights.bias)


def _align(channels: int) -> int:
    return -(-channels // ALIGNMENT) * ALIGNMENT


def _fill(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, *, fill_output: bool = True) -> Weights:
    """Zeros for the channels that were added; images of a few channels stay as they are."""
    more = [size if size < ALIGNMENT else _align(size) for size in weight.shape[:2]]
    more[0] = more[0] if fill_output else len(weight)
    fill = (0, 0) * (weight.ndim - 2) + (0, more[1] - weight.shape[1], 0, more[0] - weight.shape[0])
    filled = F.pad(weight, fill).to(dtype)
    return Weights(filled, None if bias is None else F.pad(bias.detach(), (0, more[0] - len(bias))).to(dtype))


def _apply(tokens: Tensor, layer: Weights) -> Tensor:
    return F.linear(tokens, layer.weight, layer.bias)


def _convolve(tokens: Tensor, near: Neighbours, side: int, layer: Weights, *, shifted: bool = False) -> Tensor:
    """A 3x3 convolution of tokens (nW * side * side, C), zeros around every image; the answer is in window order."""
    padded = torch.cat((tokens, tokens.new_zeros(1, tokens.shape[1])))
    seen = padded.index_select(0, near.halo(side, shifted=shifted).view(-1))
    squares = seen.view(near.count, side + 2, side + 2, -1).permute(0, 3, 1, 2)
    return F.conv2d(squares, layer.weight, layer.bias).permute(0, 2, 3, 1).reshape(near.count * side * side, -1)


def _shuffle(tokens: Tensor, side: int, step: int) -> Tensor:
    """PixelShuffle within windows of ``side``: (T, F * step ** 2) to (T * step ** 2, F)."""
    square = tokens.view(-1, side, side, tokens.shape[1] // step**2, step, step)
    return square.permute(0, 1, 4, 2, 5, 3).reshape(-1, square.shape[3])


def _bicubic(pixels: Tensor, near: Neighbours, scale: int) -> Tensor:
    """Pixels (T, C) enlarged, beyond an image's border by its border."""
    side, border = near.window, BICUBIC_BORDER
    seen = pixels.index_select(0, halo(near.grid, side, border, clamp=True).view(-1))
    squares = seen.view(near.count, side + 2 * border, side + 2 * border, -1).permute(0, 3, 1, 2)
    large = F.interpolate(squares, scale_factor=scale, mode="bicubic", align_corners=False)
    inside = slice(border * scale, (border + side) * scale)
    return large[:, :, inside, inside].permute(0, 2, 3, 1).reshape(-1, pixels.shape[1])
