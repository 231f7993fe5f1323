"""Swin2SR: a SwinV2 transformer for super-resolution and restoration of compressed images.

Paper: Conde, Choi, Burchi, Timofte, *Swin2SR: SwinV2 Transformer for Compressed Image Super-Resolution and
Restoration*, ECCV 2022 Workshops, arXiv 2209.11345. Reference: ``models/network_swin2sr.py`` of
github.com/mv-lab/swin2sr (Apache-2.0). The modules have the names that Hugging Face Transformers gives them.

This file is the definition of the network; ``model.inference`` computes the same faster. Shapes in comments: B images,
H W pixels, C channels, N tokens per window, nW windows of an image, nH heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import Swin2SRConfig
from model.hooks import is_tracing
from model.reconstruction import Reconstruction, build_head, conv3x3, mean_of
from model.windows import merge, partition, relative_coords_table, relative_position_index, shift_mask

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "selu": nn.SELU,
}

# The official code clamps to the float32 logarithm, in every dtype.
MAX_LOGIT_SCALE = float(torch.log(torch.tensor(100.0)))


class SelfAttention(nn.Module):
    """Window attention of SwinV2: scaled cosine similarity and a continuous relative position bias."""

    relative_coords_table: Tensor
    relative_position_index: Tensor

    def __init__(self, config: Swin2SRConfig, heads: int) -> None:
        super().__init__()
        dim, self.num_attention_heads, self.window_size = config.embed_dim, heads, config.window_size
        self.attention_head_size, self.all_head_size = dim // heads, dim
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        self.continuous_position_bias_mlp = nn.Sequential(
            nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False)
        )
        self.query = nn.Linear(dim, dim, bias=config.qkv_bias)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=config.qkv_bias)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.register_buffer("relative_coords_table", relative_coords_table(self.window_size), persistent=False)
        self.register_buffer("relative_position_index", relative_position_index(self.window_size), persistent=False)

    def position_bias(self) -> Tensor:
        """The continuous relative position bias (nH, N, N), within (0, 16)."""
        table = 16 * torch.sigmoid(self.continuous_position_bias_mlp(self.relative_coords_table))  # ((2w - 1)^2, nH)
        index = self.relative_position_index  # (N, N)
        return table.t().index_select(1, index.flatten()).view(-1, *index.shape)

    def scale(self) -> Tensor:
        """The factor on cosines (nH, 1, 1), at most 100."""
        return self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()

    def forward(
        self, windows: Tensor, mask: Tensor | None = None, head_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend among the tokens of each window.

        Args:
            windows: (B * nW, N, C).
            mask: (nW, N, N), added to the logits.
            head_mask: (nH,), a factor on the attention of each head.

        Returns:
            (B * nW, N, C) and the attention probabilities (B * nW, nH, N, N).
        """
        query, key, value = (
            projection(windows).view(*windows.shape[:2], self.num_attention_heads, -1).transpose(1, 2)
            for projection in (self.query, self.key, self.value)  # (B nW, nH, N, C/nH)
        )
        exact = torch.promote_types(query.dtype, torch.float32)
        cosines = F.normalize(query.to(exact), dim=-1) @ F.normalize(key.to(exact), dim=-1).transpose(-2, -1)
        logits = cosines * self.scale() + self.position_bias()  # (B nW, nH, N, N)
        if mask is not None:
            logits = (logits.view(-1, mask.shape[0], *logits.shape[1:]) + mask[:, None].to(logits.dtype)).flatten(0, 1)
        probabilities = self.dropout(torch.softmax(logits, dim=-1, dtype=exact).to(value.dtype))
        if head_mask is not None:
            probabilities = probabilities * head_mask[:, None, None]
        return (probabilities @ value).transpose(1, 2).flatten(2), probabilities


class Projection(nn.Module):
    """A linear layer that ends a branch, with dropout."""

    def __init__(self, dim_in: int, dim_out: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(dim_in, dim_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (..., C in) to (..., C out)."""
        return self.dropout(self.dense(tokens))


class Attention(nn.Module):
    """Window attention and the projection of its result."""

    def __init__(self, config: Swin2SRConfig, heads: int) -> None:
        super().__init__()
        self.self = SelfAttention(config, heads)
        self.output = Projection(config.embed_dim, config.embed_dim, config.hidden_dropout_prob)

    def forward(self, windows: Tensor, mask: Tensor | None, head_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """As ``SelfAttention.forward``."""
        attended, probabilities = self.self(windows, mask, head_mask)
        return self.output(attended), probabilities


class Intermediate(nn.Module):
    """The first half of the MLP."""

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.embed_dim, int(config.mlp_ratio * config.embed_dim))
        self.intermediate_act_fn = ACTIVATIONS[config.hidden_act]()

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (..., C) to (..., hidden)."""
        return self.intermediate_act_fn(self.dense(tokens))


class DropPath(nn.Module):
    """Stochastic depth: drops the branch of some images in training, scaled so that the expectation stays."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """Branch (B, ...) to the same shape."""
        if not self.training or not self.probability:
            return branch
        kept = torch.rand(branch.shape[0], *[1] * (branch.ndim - 1), device=branch.device) >= self.probability
        return branch * kept.to(branch.dtype) / (1 - self.probability)


class SwinTransformerBlock(nn.Module):
    """Window attention and an MLP, each normalised at its end and added (res-post-norm)."""

    def __init__(self, config: Swin2SRConfig, heads: int, shift: int, drop_path: float) -> None:
        super().__init__()
        dim, self.window_size, self.shift_size = config.embed_dim, config.window_size, shift
        self.attention = Attention(config, heads)
        self.layernorm_before = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.drop_path = DropPath(drop_path)
        self.intermediate = Intermediate(config)
        self.output = Projection(int(config.mlp_ratio * dim), dim, config.hidden_dropout_prob)
        self.layernorm_after = nn.LayerNorm(dim, eps=config.layer_norm_eps)

    def forward(
        self, tokens: Tensor, size: tuple[int, int], mask: Tensor | None = None, head_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run all windows through the block.

        Args:
            tokens: (B, H * W, C).
            size: H and W.
            mask: (nW, N, N), of the shifted grid; computed where None.
            head_mask: (nH,), a factor on the attention of each head.

        Returns:
            (B, H * W, C) and the attention probabilities (B * nW, nH, N, N).
        """
        image = tokens.view(-1, *size, tokens.shape[2])  # (B, H, W, C)
        if self.shift_size:
            image = torch.roll(image, (-self.shift_size, -self.shift_size), (1, 2))
        windows = partition(image, self.window_size)  # (B nW, N, C)
        if self.shift_size and mask is None:
            mask = shift_mask(*size, self.window_size, self.shift_size, tokens.device)
        windows, probabilities = self.attention(windows, mask if self.shift_size else None, head_mask)
        image = merge(windows, self.window_size, *size)  # (B, H, W, C)
        if self.shift_size:
            image = torch.roll(image, (self.shift_size, self.shift_size), (1, 2))
        tokens = tokens + self.drop_path(self.layernorm_before(image.flatten(1, 2)))  # (B, HW, C)
        tokens = tokens + self.drop_path(self.layernorm_after(self.output(self.intermediate(tokens))))
        return tokens, probabilities


class PatchEmbedding(nn.Module):
    """The 1x1 convolution before the first stage (with a norm) and at the end of every stage (without)."""

    def __init__(self, config: Swin2SRConfig, *, norm: bool) -> None:
        super().__init__()
        self.projection = nn.Conv2d(config.embed_dim, config.embed_dim, 1)
        self.layernorm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps) if norm else None

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, C, H, W) to tokens (B, H * W, C)."""
        tokens = to_tokens(self.projection(image))
        return tokens if self.layernorm is None else self.layernorm(tokens)


class PatchUnembedding(nn.Module):
    """Tokens (B, H * W, C) to an image (B, C, H, W)."""

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens of an image of H and W."""
        return tokens.transpose(1, 2).reshape(*tokens.shape[::2], *size)


class Embeddings(nn.Module):
    """From the first features (B, C, H, W) to tokens (B, H * W, C)."""

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        self.window_size = config.window_size
        self.patch_embeddings = PatchEmbedding(config, norm=True)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed every pixel; returns H and W too."""
        return self.dropout(self.patch_embeddings(image)), (image.shape[2], image.shape[3])


class Stage(nn.Module):
    """A residual Swin transformer block: layers, convolution and 1x1 convolution, added to the input."""

    def __init__(self, config: Swin2SRConfig, heads: int, drop_paths: Sequence[float]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            SwinTransformerBlock(config, heads, config.shift_size if index % 2 else 0, drop_path)
            for index, drop_path in enumerate(drop_paths)
        )
        self.conv = residual_connection(config)
        self.patch_embed = PatchEmbedding(config, norm=False)
        self.patch_unembed = PatchUnembedding()

    def forward(
        self, tokens: Tensor, size: tuple[int, int], mask: Tensor | None = None, head_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As ``SwinTransformerBlock.forward``; the attention is that of the last layer."""
        deep = tokens
        for layer in self.layers:
            deep, probabilities = layer(deep, size, mask, head_mask)
        return tokens + self.patch_embed(self.conv(self.patch_unembed(deep, size))), probabilities


class EncoderOutput(NamedTuple):
    """Tokens (B, H * W, C); if asked for, those before and after every stage, and each stage's last attention."""

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] = ()
    attentions: tuple[Tensor, ...] = ()


class Encoder(nn.Module):
    """All stages."""

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        self.config, self.num_stages = config, len(config.depths)
        self.gradient_checkpointing = False
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu")
        drop_paths = torch.split(rates, list(config.depths))
        self.stages = nn.ModuleList(
            Stage(config, heads, each.tolist()) for heads, each in zip(config.num_heads, drop_paths, strict=True)
        )

    def forward(
        self,
        tokens: Tensor,
        size: tuple[int, int],
        head_masks: Sequence[Tensor | None] | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> EncoderOutput:
        """Run tokens (B, H * W, C) through all stages, with a factor (nH,) on the heads of each stage."""
        mask = shift_mask(*size, self.config.window_size, self.config.shift_size, tokens.device)  # (nW, N, N)
        hidden_states, attentions = [tokens], []
        for stage, head_mask in zip(self.stages, head_masks or [None] * len(self.stages), strict=True):
            if self.gradient_checkpointing and self.training:
                tokens, attention = checkpoint(stage, tokens, size, mask, head_mask, use_reentrant=False)
            else:
                tokens, attention = stage(tokens, size, mask, head_mask)
            hidden_states += [tokens] if output_hidden_states else []
            attentions += [attention] if output_attentions else []
        return EncoderOutput(tokens, tuple(hidden_states) if output_hidden_states else (), tuple(attentions))


class Swin2SRBody(nn.Module):
    """The network without its head: deep features of an image."""

    mean: Tensor

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        self.config = config
        self.first_convolution = conv3x3(config.num_channels, config.embed_dim)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.layernorm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.patch_unembed = PatchUnembedding()
        self.conv_after_body = residual_connection(config)
        self.register_buffer("mean", mean_of(config.num_channels), persistent=False)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def normalise(self, pixel_values: Tensor) -> Tensor:
        """Pixels (B, C, H, W) in [0, 1] to what the first convolution takes."""
        return (pixel_values - self.mean) * self.config.img_range

    def extract(
        self, pixel_values: Tensor, head_masks: Sequence[Tensor | None] | None = None, **outputs: bool
    ) -> EncoderOutput:
        """Pixels (B, C, H, W) in [0, 1] to deep features (B, embed_dim, H, W), and what was asked of the encoder.

        Raises:
            ValueError: if a side is not a multiple of the window, or the channels are not the network's.
        """
        self.check(pixel_values)
        shallow = self.first_convolution(self.normalise(pixel_values))  # (B, C, H, W)
        tokens, size = self.embeddings(shallow)  # (B, HW, C)
        encoded = self.encoder(tokens, size, head_masks, **outputs)
        deep = self.patch_unembed(self.layernorm(encoded.last_hidden_state), size)  # (B, C, H, W)
        return encoded._replace(last_hidden_state=self.conv_after_body(deep) + shallow)

    def forward(self, pixel_values: Tensor) -> EncoderOutput:
        """As ``extract``."""
        return self.extract(pixel_values)

    def check(self, pixel_values: Tensor) -> None:
        """Raise ValueError unless the input is a batch of images whose sides are multiples of the window."""
        channels, window = self.config.num_channels, self.config.window_size
        if is_tracing():
            return
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(f"Expected (B, {channels}, H, W), not {tuple(pixel_values.shape)}.")
        height, width = pixel_values.shape[2:]
        if height % window or width % window:
            raise ValueError(f"Size {height}x{width} is not a multiple of the window {window}: pad the image first.")


class Swin2SR(nn.Module):
    """The whole network.

    Args:
        config: its dimensions and its head.
    """

    body: type[Swin2SRBody] = Swin2SRBody
    upsample: nn.Module
    final_convolution: nn.Module
    mean_out: Tensor

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        self.config = config
        self.swin2sr = self.body(config)
        head = build_head(config)
        self.add_module("final_convolution" if config.upsampler is None else "upsample", head)
        self.register_buffer("mean_out", mean_of(config.out_channels), persistent=False)

    def forward(self, pixel_values: Tensor) -> Reconstruction:
        """Reconstruct images.

        Args:
            pixel_values: (B, C, H, W) in [0, 1]; H and W are multiples of the window.

        Returns:
            The image (B, C, s * H, s * W), not clamped, and for ``pixelshuffle_aux`` the auxiliary image (B, C, H, W).

        Raises:
            ValueError: if a side is not a multiple of the window, or the channels are not the network's.
        """
        return self.reconstruct(self.swin2sr(pixel_values).last_hidden_state, pixel_values)

    def reconstruct(self, features: Tensor, pixel_values: Tensor) -> Reconstruction:
        """Deep features (B, embed_dim, H, W) of pixels (B, C, H, W) to the image, in the range of the pixels."""
        pixels = self.swin2sr.normalise(pixel_values)
        if self.config.upsampler is None:
            found = Reconstruction(pixels + self.final_convolution(features))
        elif self.config.upsampler == "pixelshuffle_aux":
            found = self.upsample(features, pixels)
        else:
            found = Reconstruction(self.upsample(features))
        image, aux = found
        return Reconstruction(self.denormalise(image), None if aux is None else self.denormalise(aux))

    def denormalise(self, image: Tensor) -> Tensor:
        """What the head gives (B, C, H, W) to the range of the pixels."""
        return image / self.config.img_range + self.mean_out


def residual_connection(config: Swin2SRConfig) -> nn.Module:
    """The convolutions that end a stage and the body: ``1conv`` or the bottleneck ``3conv``."""
    dim = config.embed_dim
    if config.resi_connection == "1conv":
        return conv3x3(dim, dim)
    return nn.Sequential(
        conv3x3(dim, dim // 4), nn.LeakyReLU(0.2), nn.Conv2d(dim // 4, dim // 4, 1), nn.LeakyReLU(0.2),
        conv3x3(dim // 4, dim),
    )  # fmt: skip


def to_tokens(image: Tensor) -> Tensor:
    """Image (B, C, H, W) to tokens (B, H * W, C)."""
    return image.flatten(2).transpose(1, 2)
