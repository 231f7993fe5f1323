"""Swin2SR: a SwinV2 transformer for super-resolution and restoration of compressed images.

Paper: Conde, Choi, Burchi, Timofte, *Swin2SR: SwinV2 Transformer for Compressed Image Super-Resolution and
Restoration*, ECCV 2022 Workshops, arXiv 2209.11345. Reference: ``models/network_swin2sr.py`` of
github.com/mv-lab/swin2sr (Apache-2.0); the state dict has its keys.

The network works on a canvas with one or many images of any sizes (``model.packing``). Padding to the window and
cropping stand outside (``model.padding``). Shapes: S sheets, H W pixels of the canvas, C channels, T tokens,
N tokens per window, nW windows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import cpu_kernel
from model.attention import WindowAttention
from model.config import Swin2SRConfig
from model.hooks import is_watched
from model.packing import LayoutCache, PackedLayout, split_by_area
from model.reconstruction import Reconstruction, build_head, conv3x3, mean_of
from model.scratch import Scratch

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "selu": nn.SELU,
}


PACK_PIXELS = 2**16
"""Pixels that share a canvas on a CPU: more would leave its caches, and fewer would pay for every operator's start."""

NORM_TOKENS = 2**12
"""Tokens that are normalised together where they lie."""

CHUNK = 32
"""Windows that pass a block together on a CPU without the kernel: few enough for their attention to stay in cache."""


class Mlp(nn.Module):
    """Two linear layers with an activation between them, per token."""

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        hidden = int(config.embed_dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.embed_dim, hidden)
        self.act = ACTIVATIONS[config.hidden_act]()
        self.fc2 = nn.Linear(hidden, config.embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (..., C) to the same shape."""
        return self.fc2(self.act(self.fc1(tokens)))


class SwinTransformerBlock(nn.Module):
    """Window attention and MLP, each normalised after itself and added (res-post-norm).

    Args:
        config: of the network.
        heads: attention heads of the stage.
        shift: 0, or the shift of the window grid.
        drop_path: probability that a window's branch is dropped in training.
    """

    def __init__(self, config: Swin2SRConfig, heads: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.shift, self.drop_path, self.dropout = shift, drop_path, config.hidden_dropout_prob
        self.attn = WindowAttention(
            config.embed_dim,
            heads,
            config.window_size,
            shift,
            qkv_bias=config.qkv_bias,
            dropout=config.attention_probs_dropout_prob,
        )
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)

    def forward(
        self, tokens: Tensor, counts: tuple[int, ...], gather: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Run all windows through the block.

        Args:
            tokens: (T, C).
            counts: how many windows, in the block's order, have which kind of attention mask.
            gather: (T,), the row of ``tokens`` that each token of the block comes from; None where that is itself.
            out: (T, C), memory that the result may be put into.

        Returns:
            (T, C) in the block's order.
        """
        if cpu_kernel.can_run(self, tokens):
            return cpu_kernel.run(self, tokens, gather, counts, out)
        if gather is not None:
            tokens = tokens.index_select(0, gather)
        windows = tokens.view(-1, self.attn.window**2, tokens.shape[1])
        if torch.is_grad_enabled() or tokens.device.type != "cpu":
            return self.attend_and_mix(windows, counts).view_as(tokens)
        output = torch.empty_like(windows)
        for first, last, kinds in split_counts(counts, CHUNK):
            output[first:last] = self.attend_and_mix(windows[first:last], kinds)
        return output.view_as(tokens)

    def attend_and_mix(self, windows: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Windows (nW, N, C), sorted by mask kind with ``counts`` of each, to the same shape."""
        windows = windows + self.stochastic_depth(self.norm1(self._dropout(self.attn(windows, counts))))
        return windows + self.stochastic_depth(self.norm2(self._dropout(self.mlp(windows))))

    def _dropout(self, tokens: Tensor) -> Tensor:
        return F.dropout(tokens, self.dropout, self.training)

    def stochastic_depth(self, tokens: Tensor) -> Tensor:
        """Drop the branch (nW, N, C) of some windows in training, scaled so that the expectation stays."""
        if not self.training or not self.drop_path:
            return tokens
        kept = torch.rand(tokens.shape[0], 1, 1, device=tokens.device) >= self.drop_path
        return tokens * kept.to(tokens.dtype) / (1 - self.drop_path)


def split_counts(counts: tuple[int, ...], size: int) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Cut windows sorted by kind into runs of at most ``size``: first, last (excluded) and the counts within."""
    ends = list(itertools.accumulate(counts))
    starts = [end - count for end, count in zip(ends, counts, strict=True)]
    for first in range(0, ends[-1], size):
        last = min(first + size, ends[-1])
        within = (max(0, min(end, last) - max(start, first)) for start, end in zip(starts, ends, strict=True))
        yield first, last, tuple(within)


class PatchEmbedding(nn.Module):
    """The 1x1 convolution before the body (with a norm) and at the end of every stage (without)."""

    def __init__(self, config: Swin2SRConfig, *, norm: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.embed_dim, config.embed_dim, 1)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps) if norm else None

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (T, C) in any order."""
        tokens = F.linear(tokens, self.proj.weight.flatten(1), self.proj.bias)
        return tokens if self.norm is None else self.norm(tokens)


def residual_connection(config: Swin2SRConfig) -> nn.Module:
    """The convolutions that end a stage and the body: ``1conv`` or the bottleneck ``3conv``."""
    dim = config.embed_dim
    if config.resi_connection == "1conv":
        return conv3x3(dim, dim)
    return nn.Sequential(
        conv3x3(dim, dim // 4), nn.LeakyReLU(0.2), nn.Conv2d(dim // 4, dim // 4, 1), nn.LeakyReLU(0.2),
        conv3x3(dim // 4, dim),
    )  # fmt: skip


def convolve(connection: nn.Module, canvas: Tensor, layout: PackedLayout) -> Tensor:
    """Apply a residual connection to a canvas (S, C, H, W) with clear gaps, clearing them before the last 3x3."""
    if isinstance(connection, nn.Sequential):
        return connection[-1](layout.clear_gaps(connection[:-1](canvas)))
    return connection(canvas)


class ResidualGroup(nn.Module):
    """The blocks of a stage; the name is the official state dict's."""

    def __init__(self, config: Swin2SRConfig, heads: int, drop_paths: Sequence[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(config, heads, config.shift_size if index % 2 else 0, drop_path)
            for index, drop_path in enumerate(drop_paths)
        )

    def forward(self, tokens: Tensor, layout: PackedLayout, spare: Sequence[Tensor] = ()) -> tuple[Tensor, bool]:
        """Run all blocks.

        Args:
            tokens: (T, C) in window order.
            layout: of the images.
            spare: at least two of (T, C), other memory than ``tokens``, that results may be put into; or none.

        Returns:
            (T, C), and whether that is in shifted order.
        """
        shifted = False
        for index, block in enumerate(self.blocks):
            gather = None
            if bool(block.shift) != shifted:
                shifted = not shifted
                gather = layout.shifted_from_windows if shifted else layout.windows_from_shifted
            out = spare[index % 2] if spare else None
            tokens = block(tokens, layout.counts if shifted else (layout.windows_count,), gather, out)
        return tokens, shifted


class ResidualSwinTransformerBlock(nn.Module):
    """A stage: blocks, convolution, 1x1 convolution, added to what came in."""

    def __init__(self, config: Swin2SRConfig, heads: int, drop_paths: Sequence[float]) -> None:
        super().__init__()
        self.residual_group = ResidualGroup(config, heads, drop_paths)
        self.conv = residual_connection(config)
        self.patch_embed = PatchEmbedding(config, norm=False)

    def forward(self, tokens: Tensor, layout: PackedLayout, spare: Sequence[Tensor] = ()) -> Tensor:
        """Tokens (T, C) in window order to the same; of three ``spare`` memories, one may hold ``tokens``."""
        free = [memory for memory in spare if memory.data_ptr() != tokens.data_ptr()]
        deep, shifted = self.residual_group(tokens, layout, free)
        halo, layers = layout.halo(shifted=shifted), (self.conv, self.patch_embed.proj)
        if cpu_kernel.can_convolve(layers, deep, halo) and not is_watched(self.patch_embed):
            out = next((memory for memory in free if memory.data_ptr() != deep.data_ptr()), None)
            return cpu_kernel.convolve(layers, deep, halo, tokens, out)
        canvas = convolve(self.conv, layout.to_canvas(deep, shifted=shifted), layout)
        return tokens + self.patch_embed(layout.to_windows(canvas))


class Swin2SR(nn.Module):
    """The whole network.

    Args:
        config: its dimensions and its head.
    """

    mean_in: Tensor
    mean_out: Tensor

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        self.config = config
        self.layouts = LayoutCache(config.window_size, config.shift_size)
        self.scratch = Scratch()
        drop_paths = torch.split(torch.linspace(0, config.drop_path_rate, sum(config.depths)), list(config.depths))
        self.conv_first = conv3x3(config.num_channels, config.embed_dim)
        self.patch_embed = PatchEmbedding(config, norm=True)
        self.layers = nn.ModuleList(
            ResidualSwinTransformerBlock(config, heads, rates.tolist())
            for heads, rates in zip(config.num_heads, drop_paths, strict=True)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.conv_after_body = residual_connection(config)
        head = build_head(config)
        for name, module in head.named_children():  # the official layout has them at the top level
            self.add_module(name, module)
        self.reconstruct_features = head.forward
        self.register_buffer("mean_in", mean_of(config.num_channels), persistent=False)
        self.register_buffer("mean_out", mean_of(config.out_channels), persistent=False)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, canvas: Tensor, layout: PackedLayout | None = None) -> Reconstruction:
        """Reconstruct all images of a canvas.

        Args:
            canvas: (S, C, H, W), values in [0, 1]; gaps may hold anything.
            layout: where the images lie; without one, the canvas is a batch of S images of one size.

        Returns:
            The image (S, C, s * H, s * W), not clamped, and for ``pixelshuffle_aux`` the auxiliary image.

        Raises:
            ValueError: if a size is not a multiple of the window, or the channels are not the network's.
        """
        if canvas.ndim != 4 or canvas.shape[1] != self.config.num_channels:
            raise ValueError(f"Expected (S, {self.config.num_channels}, H, W), not {tuple(canvas.shape)}.")
        if layout is None:
            sheets, _, height, width = canvas.shape
            layout = self.layouts([(height, width)] * sheets, canvas.device)
        layout.check(canvas, self.config.window_size, self.config.shift_size)
        pixels = layout.clear_gaps((canvas - self.mean_in) * self.config.img_range)
        deep = self.deepen(  # nothing here holds on to what goes in
            self.conv_first(pixels.contiguous(memory_format=torch.channels_last)), layout
        )
        image, aux = self.reconstruct_features(deep, pixels, layout)
        image = image / self.config.img_range + self.mean_out
        return Reconstruction(image, None if aux is None else aux / self.config.img_range + self.mean_out)

    def deepen(self, features: Tensor, layout: PackedLayout) -> Tensor:
        """The body and its residual connection: features (S, C, H, W) to the same shape, gaps clear."""
        shallow = layout.to_windows(features)
        halo, last = layout.halo(shifted=False), (self.conv_after_body, None)
        in_windows = cpu_kernel.can_convolve(last, shallow, halo)
        if in_windows:
            del features  # a large image has room for few of these
        tokens = self.patch_embed(shallow)
        reuse = self._can_reuse(tokens)
        with self.scratch.borrow(tokens, 2 if reuse else 0) as spare:
            if reuse:
                spare.append(tokens)
            for stage in self.layers:
                tokens = stage(tokens, layout, spare)
            tokens = self._normalise_in_place(tokens) if reuse else self.norm(tokens)
            if in_windows:
                out = next((memory for memory in spare if memory.data_ptr() != tokens.data_ptr()), None)
                deep = cpu_kernel.convolve(last, tokens, halo, shallow, out)
                del shallow
                return layout.to_canvas(deep, shifted=False)
            canvas = layout.to_canvas(tokens, shifted=False)
        return layout.clear_gaps(convolve(self.conv_after_body, canvas, layout) + features)

    def _can_reuse(self, tokens: Tensor) -> bool:
        """Whether what comes between the first tokens and the last may share memory with them."""
        parts = (self.patch_embed, self.layers, self.norm)
        ours = type(self.patch_embed) is PatchEmbedding and type(self.norm) is nn.LayerNorm
        return ours and cpu_kernel.can_serve(tokens) and not any(map(is_watched, parts))

    def _normalise_in_place(self, tokens: Tensor) -> Tensor:
        for part in torch.split(tokens, NORM_TOKENS):
            part.copy_(self.norm(part))
        return tokens

    def reconstruct(self, images: Sequence[Tensor]) -> list[Reconstruction]:
        """Reconstruct images of any sizes in one pack; on a CPU in packs of ``PACK_PIXELS``, like sizes together.

        Args:
            images: each (C, H, W) with values in [0, 1]; sides are multiples of the window.

        Returns:
            For each image its (C, s * H, s * W), not clamped, and its auxiliary image where the head makes one.
        """
        areas = [image.shape[1] * image.shape[2] for image in images]
        on_cpu = all(image.device.type == "cpu" for image in images)
        packs = split_by_area(areas, PACK_PIXELS) if on_cpu else [range(len(images))]
        found: dict[int, Reconstruction] = {}
        for pack in packs:
            found.update(zip(pack, self._reconstruct_pack([images[index] for index in pack]), strict=True))
        return [found[index] for index in range(len(images))]

    def _reconstruct_pack(self, images: Sequence[Tensor]) -> list[Reconstruction]:
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        layout = self.layouts(sizes, images[0].device)
        image, aux = self(layout.pack(images), layout)
        auxes: Sequence[Tensor | None] = [None] * len(images) if aux is None else layout.unpack(aux)
        crops = layout.unpack(image, self.config.upscale)
        return [Reconstruction(crop, small) for crop, small in zip(crops, auxes, strict=True)]
