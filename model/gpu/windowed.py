"""The network over windows alone: everything has a shape that depends on the number of windows and on nothing else.

A convolution sees each window with a border of its neighbours' tokens, so there is no canvas. It computes what
``model.network`` computes, with choices of its own: matrix products and the body's convolutions in ``dtype``; the
residual stream, norms, softmax, the first convolution and the head in ``exact``, because the image is the sum of what
they pass on. On the tests' networks bfloat16 so costs two thirds or less of what autocast does; ``tests/test_gpu.py``
states it for each head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.gpu.indexing import cyclic_source, halo, mask_kinds
from model.gpu.operators import PLAIN, Operators
from model.gpu.packed_weights import (
    Block,
    Weights,
    align,
    take_convolution,
    take_linear,
    take_norm,
    take_residual,
    take_stage,
)
from model.network import Swin2SR
from model.reconstruction import mean_of, pixel_shuffle_steps

BICUBIC_BORDER = 3
"""Pixels around a window that its bicubic enlargement depends on, and one more."""


class Neighbours:
    """The index tables of a pack, each built when it is first asked for.

    Args:
        grid: (nW, 5) int32, as ``model.gpu.indexing.lay_out`` makes it.
        window: side of a window.
        shift: pixels by which odd blocks shift the grid.
    """

    def __init__(self, grid: Tensor, window: int, shift: int) -> None:
        self.grid, self.window = grid, window
        self.count = len(grid)
        self._to_shifted = cyclic_source(grid, window, shift)
        self._from_shifted = cyclic_source(grid, window, -shift)
        self._kinds = mask_kinds(grid)
        self._no_kinds = torch.zeros_like(self._kinds)
        self._halos: dict[tuple[int, bool], Tensor] = {}

    def order(self, *, shifted: bool) -> Tensor:
        """Which token each becomes on the way to the shifted order, or back from there."""
        return self._to_shifted if shifted else self._from_shifted

    def kinds_of(self, *, shifted: bool) -> Tensor:
        """The windows' kinds of mask; one kind alone where nothing is shifted."""
        return self._kinds if shifted else self._no_kinds

    def halo(self, side: int, *, shifted: bool = False) -> Tensor:
        """What each window sees, of tokens in window order or in shifted order."""
        key = (side, shifted)
        if key not in self._halos:
            seen = halo(self.grid, side)
            if shifted:
                outside = self._from_shifted.new_full((1,), len(self._from_shifted))
                seen = torch.cat((self._from_shifted, outside)).index_select(0, seen.view(-1)).view_as(seen)
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
        self.width = align(config.embed_dim)
        self.mean_in = mean_of(config.num_channels).to(device, exact).flatten()
        self.mean_out = mean_of(config.out_channels).to(device, exact).flatten()
        self.first = take_convolution(network.conv_first, exact)
        self.embed = take_linear(network.patch_embed.proj, dtype)
        assert network.patch_embed.norm is not None
        self.embed_norm = take_norm(network.patch_embed.norm, exact)
        self.stages = tuple(take_stage(stage, dtype, exact) for stage in network.layers)
        self.norm = take_norm(network.norm, exact)
        self.after_body = take_residual(network.conv_after_body, dtype)
        self.bicubic = bicubic_rows(config.window_size, config.upscale, device, exact)
        names = [name for name, _ in network.named_modules() if name.startswith(("conv_", "upsample"))]
        self.head = {
            name: take_convolution(layer, exact, fill_output=False)
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
        shallow = self._convolve(pixels, near, near.window, self.first)
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
        shifted = False
        if self.operators.run_block is not None:
            for block in blocks:
                rows = None if block.shifted == shifted else near.order(shifted=block.shifted)
                shifted = block.shifted
                stream = self.operators.run_block(stream, near.kinds_of(shifted=shifted), block, rows)
            return stream.to(self.dtype), shifted
        for block, following in zip(blocks, [*blocks[1:], blocks[-1]], strict=True):
            rows = None if following.shifted == block.shifted else near.order(shifted=following.shifted)
            kinds = near.kinds_of(shifted=block.shifted)
            stream, tokens = compute_block(self.operators, stream, tokens, kinds, block, rows=rows)
        return tokens, blocks[-1].shifted

    def _residual_convolutions(
        self, tokens: Tensor, near: Neighbours, layers: tuple[Weights, ...], *, shifted: bool
    ) -> Tensor:
        tokens = self._convolve(tokens, near, near.window, layers[0], shifted=shifted)
        if len(layers) > 1:
            _, middle, last = layers
            tokens = F.leaky_relu(_apply(F.leaky_relu(tokens, 0.2), middle), 0.2)
            tokens = self._convolve(tokens, near, near.window, last)
        return tokens

    def _convolve(
        self, tokens: Tensor, near: Neighbours, side: int, layer: Weights, *, shifted: bool = False
    ) -> Tensor:
        """A 3x3 convolution of tokens (nW * side * side, C), zeros around every image, to window order."""
        seen = self.operators.gather(tokens, near.halo(side, shifted=shifted).view(-1))
        squares = seen.view(near.count, side + 2, side + 2, -1).permute(0, 3, 1, 2)
        return F.conv2d(squares, layer.weight, layer.bias).permute(0, 2, 3, 1).reshape(near.count * side * side, -1)

    # The heads, as in model.reconstruction.

    def _reconstruct(self, features: Tensor, pixels: Tensor, near: Neighbours) -> Tensor:
        side, head, scale = near.window, self.head, self.config.upscale
        match self.config.upsampler:
            case None:
                return pixels + self._convolve(features, near, side, head["conv_last"])
            case "pixelshuffledirect":
                return _shuffle(self._convolve(features, near, side, head["upsample.0"]), side, scale)
            case "nearest+conv":
                return self._enlarge_by_nearest(features, near)
        features = F.leaky_relu(self._convolve(features, near, side, head["conv_before_upsample.0"]), 0.01)
        if self.config.upsampler == "pixelshuffle":
            return self._convolve(self._climb(features, near), near, side * scale, head["conv_last"])
        aux = self._convolve(features, near, side, head["conv_aux"])
        features = self._climb(F.leaky_relu(self._convolve(aux, near, side, head["conv_after_aux.0"]), 0.01), near)
        enlarged = self._convolve(self._enlarge_by_bicubic(pixels, near), near, side * scale, head["conv_bicubic"])
        return self._convolve(features + enlarged, near, side * scale, head["conv_last"])

    def _climb(self, features: Tensor, near: Neighbours) -> Tensor:
        side = near.window
        for index, step in enumerate(pixel_shuffle_steps(self.config.upscale)):
            features = _shuffle(self._convolve(features, near, side, self.head[f"upsample.{2 * index}"]), side, step)
            side *= step
        return features

    def _enlarge_by_bicubic(self, pixels: Tensor, near: Neighbours) -> Tensor:
        """Pixels (T, C) enlarged, beyond an image's border by its border."""
        side, border, rows = near.window, BICUBIC_BORDER, self.bicubic
        seen = pixels.index_select(0, halo(near.grid, side, border, clamp=True).view(-1))
        squares = seen.view(near.count, side + 2 * border, side + 2 * border, -1).permute(0, 3, 1, 2)
        return (rows @ squares @ rows.T).permute(0, 2, 3, 1).reshape(-1, pixels.shape[1])

    def _enlarge_by_nearest(self, features: Tensor, near: Neighbours) -> Tensor:
        side, head = near.window, self.head
        features = F.leaky_relu(self._convolve(features, near, side, head["conv_before_upsample.0"]), 0.01)
        for name in ("conv_up1", "conv_up2"):
            square = features.view(near.count, side, 1, side, 1, -1).expand(-1, -1, 2, -1, 2, -1)
            side *= 2
            features = F.leaky_relu(self._convolve(square.reshape(-1, features.shape[1]), near, side, head[name]), 0.2)
        features = F.leaky_relu(self._convolve(features, near, side, head["conv_hr"]), 0.2)
        return self._convolve(features, near, side, head["conv_last"])


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
        rows: (T,) int32, the order that the result is wanted in; None where that is the block's.

    Returns:
        The stream and the tokens.
    """
    mixed = operators.attend(_apply(tokens, block.qkv), kinds, block.tables)
    branch = _apply(mixed, block.proj)
    if operators.finish is not None:
        return operators.finish(stream, branch, block, rows)
    stream, tokens = operators.add_norm(stream, branch, block.norm1, None)
    hidden = block.act(_apply(tokens, block.fc1))
    return operators.add_norm(stream, _apply(hidden, block.fc2), block.norm2, rows)


def _apply(tokens: Tensor, layer: Weights) -> Tensor:
    return F.linear(tokens, layer.weight, layer.bias)


def _shuffle(tokens: Tensor, side: int, step: int) -> Tensor:
    """PixelShuffle within windows of ``side``: (T, F * step ** 2) to (T * step ** 2, F)."""
    square = tokens.view(-1, side, side, tokens.shape[1] // step**2, step, step)
    return square.permute(0, 1, 4, 2, 5, 3).reshape(-1, square.shape[3])


def bicubic_rows(side: int, scale: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What a window and its border of ``BICUBIC_BORDER`` give each row of the enlarged window: (side * scale, S)."""
    border = BICUBIC_BORDER
    whole = torch.eye(side + 2 * border, dtype=torch.float64)[None, None]
    large = F.interpolate(whole, scale_factor=(scale, 1), mode="bicubic", align_corners=False)
    return large[0, 0, border * scale : (border + side) * scale].to(device, dtype)
