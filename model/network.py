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
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import Swin2SRConfig
from model.hooks import is_tracing
from model.outputs import Swin2SREncoderOutput
from model.reconstruction import Reconstruction, build_head, conv3x3, mean_of
from model.refinement import refine
from model.windows import merge, partition, relative_coords_table, relative_position_index, shift_mask

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "selu": nn.SELU,
}

# The official code clamps to the float32 logarithm, in every dtype.
MAX_LOGIT_SCALE = float(torch.log(torch.tensor(100.0)))


class Swin2SRSelfAttention(nn.Module):
    """Window attention of SwinV2: scaled cosine similarity and a continuous relative position bias."""

    relative_coords_table: Tensor
    relative_position_index: Tensor

    def __init__(self, config: Swin2SRConfig, heads: int) -> None:
        super().__init__()
        dim, window, self.num_attention_heads = config.embed_dim, config.window_size, heads
        self.window_size = (window, window)
        self.attention_head_size, self.all_head_size = dim // heads, dim
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        self.continuous_position_bias_mlp = nn.Sequential(
            nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False)
        )
        self.query = nn.Linear(dim, dim, bias=config.qkv_bias)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=config.qkv_bias)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.register_buffer("relative_coords_table", relative_coords_table(window), persistent=False)
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)

    def reset(self) -> None:
        """Set the scale and the tables as they are in a new network."""
        nn.init.constant_(self.logit_scale, math.log(10.0))
        self.relative_coords_table.copy_(relative_coords_table(self.window_size[0]))
        self.relative_position_index.copy_(relative_position_index(self.window_size[0]))

    def position_bias(self) -> Tensor:
        """The continuous relative position bias (nH, N, N), within (0, 16)."""
        table = 16 * torch.sigmoid(self.continuous_position_bias_mlp(self.relative_coords_table))  # ((2w - 1)^2, nH)
        index = self.relative_position_index  # (N, N)
        return table.t().index_select(1, index.flatten()).view(-1, *index.shape)

    def scale(self) -> Tensor:
        """The factor on cosines (nH, 1, 1), at most 100."""
        return self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, ...]:
        """Attend among the tokens of each window.

        Args:
            hidden_states: (B * nW, N, C).
            attention_mask: (nW, N, N), added to the logits.
            head_mask: (nH,), a factor on the attention of each head.
            output_attentions: whether to return the attention probabilities too.

        Returns:
            (B * nW, N, C), and the probabilities (B * nW, nH, N, N) if asked for.
        """
        query, key, value = (
            projection(hidden_states).view(*hidden_states.shape[:2], self.num_attention_heads, -1).transpose(1, 2)
            for projection in (self.query, self.key, self.value)  # (B nW, nH, N, C/nH)
        )
        exact = torch.promote_types(query.dtype, torch.float32)
        cosines = F.normalize(query.to(exact), dim=-1) @ F.normalize(key.to(exact), dim=-1).transpose(-2, -1)
        logits = cosines * self.scale() + self.position_bias()  # (B nW, nH, N, N)
        if attention_mask is not None:
            mask = attention_mask[:, None].to(logits.dtype)  # (nW, 1, N, N)
            logits = (logits.view(-1, mask.shape[0], *logits.shape[1:]) + mask).flatten(0, 1)
        probabilities = self.dropout(torch.softmax(logits, dim=-1, dtype=exact).to(value.dtype))
        if head_mask is not None:
            probabilities = probabilities * head_mask[:, None, None]
        attended = (probabilities @ value).transpose(1, 2).flatten(2)
        return (attended, probabilities) if output_attentions else (attended,)


class Swin2SROutput(nn.Module):
    """The linear layer that ends the MLP, with dropout."""

    def __init__(self, dim_in: int, dim_out: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(dim_in, dim_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (..., C in) to (..., C out)."""
        return self.dropout(self.dense(tokens))


class Swin2SRSelfOutput(Swin2SROutput):
    """The linear layer that ends the attention."""


class Swin2SRAttention(nn.Module):
    """Window attention and the projection of its result."""

    def __init__(self, config: Swin2SRConfig, heads: int) -> None:
        super().__init__()
        self.self = Swin2SRSelfAttention(config, heads)
        self.output = Swin2SRSelfOutput(config.embed_dim, config.embed_dim, config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, ...]:
        """As ``Swin2SRSelfAttention.forward``."""
        options = {} if head_mask is None else {"head_mask": head_mask}
        attended, *probabilities = self.self(
            hidden_states, attention_mask, output_attentions=output_attentions, **options
        )
        return self.output(attended), *probabilities


class Swin2SRIntermediate(nn.Module):
    """The first half of the MLP."""

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.embed_dim, int(config.mlp_ratio * config.embed_dim))
        self.intermediate_act_fn = ACTIVATIONS[config.hidden_act]()

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (..., C) to (..., hidden)."""
        return self.intermediate_act_fn(self.dense(tokens))


class Swin2SRDropPath(nn.Module):
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


class Swin2SRLayer(nn.Module):
    """Window attention and an MLP, each normalised at its end and added (res-post-norm)."""

    def __init__(self, config: Swin2SRConfig, heads: int, shift: int, drop_path: float) -> None:
        super().__init__()
        dim, self.window_size, self.shift_size = config.embed_dim, config.window_size, shift
        self.input_resolution = (config.image_size, config.image_size)  # of training; any size is computed
        self.attention = Swin2SRAttention(config, heads)
        self.layernorm_before = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.drop_path = Swin2SRDropPath(drop_path)
        self.intermediate = Swin2SRIntermediate(config)
        self.output = Swin2SROutput(int(config.mlp_ratio * dim), dim, config.hidden_dropout_prob)
        self.layernorm_after = nn.LayerNorm(dim, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        input_dimensions: tuple[int, int],
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
        *,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Run all windows through the block.

        Args:
            hidden_states: tokens (B, H * W, C).
            input_dimensions: H and W.
            head_mask: (nH,), a factor on the attention of each head.
            output_attentions: whether to return the attention probabilities too.
            mask: (nW, N, N), of the shifted grid; computed where None.

        Returns:
            (B, H * W, C), and the attention probabilities (B * nW, nH, N, N) if asked for.
        """
        tokens, size = hidden_states, input_dimensions
        image = tokens.view(-1, *size, tokens.shape[2])  # (B, H, W, C)
        if self.shift_size:
            image = torch.roll(image, (-self.shift_size, -self.shift_size), (1, 2))
        windows = partition(image, self.window_size)  # (B nW, N, C)
        if self.shift_size and mask is None:
            mask = self.get_attn_mask(*size, device=tokens.device)
        options = {} if head_mask is None else {"head_mask": head_mask}
        windows, *probabilities = self.attention(
            windows, mask if self.shift_size else None, output_attentions=output_attentions, **options
        )
        image = merge(windows, self.window_size, *size)  # (B, H, W, C)
        if self.shift_size:
            image = torch.roll(image, (self.shift_size, self.shift_size), (1, 2))
        tokens = tokens + self.drop_path(self.layernorm_before(image.flatten(1, 2)))  # (B, HW, C)
        tokens = tokens + self.drop_path(self.layernorm_after(self.output(self.intermediate(tokens))))
        return tokens, *probabilities

    def get_attn_mask(
        self, height: int, width: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> Tensor | None:
        """The attention mask (nW, N, N) of an image, or None if the block does not shift its windows."""
        if not self.shift_size:
            return None
        return shift_mask(height, width, self.window_size, self.shift_size, device).to(dtype)

    def maybe_pad(self, hidden_states: Tensor, height: int, width: int) -> tuple[Tensor, tuple[int, ...]]:
        """Pad an image (B, H, W, C) with zeros to the window grid; returns the padding too.

        For code that computes a block by hand. Models pad images before they compute.
        """
        padding = (0, 0, 0, -width % self.window_size, 0, -height % self.window_size)
        return F.pad(hidden_states, padding), padding


class Swin2SRPatchEmbeddings(nn.Module):
    """The 1x1 convolution before the first stage (with a norm) and at the end of every stage (without)."""

    def __init__(self, config: Swin2SRConfig, *, norm: bool) -> None:
        super().__init__()
        self.patches_resolution = [config.image_size, config.image_size]  # of training; any size is computed
        self.num_patches = config.image_size**2
        self.projection = nn.Conv2d(config.embed_dim, config.embed_dim, 1)
        self.layernorm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps) if norm else None

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Image (B, C, H, W) to tokens (B, H * W, C); returns H and W too."""
        tokens = to_tokens(self.projection(image))
        tokens = tokens if self.layernorm is None else self.layernorm(tokens)
        return tokens, (image.shape[2], image.shape[3])


class Swin2SRPatchUnEmbeddings(nn.Module):
    """Tokens (B, H * W, C) to an image (B, C, H, W)."""

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens of an image of H and W."""
        return tokens.transpose(1, 2).reshape(*tokens.shape[::2], *size)


class Swin2SREmbeddings(nn.Module):
    """From the first features (B, C, H, W) to tokens (B, H * W, C)."""

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        self.window_size = config.window_size
        self.patch_embeddings = Swin2SRPatchEmbeddings(config, norm=True)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed every pixel; returns H and W too."""
        tokens, size = self.patch_embeddings(image)
        return self.dropout(tokens), size


class Swin2SRStage(nn.Module):
    """A residual Swin transformer block: layers, convolution and 1x1 convolution, added to the input."""

    def __init__(self, config: Swin2SRConfig, heads: int, drop_paths: Sequence[float]) -> None:
        super().__init__()
        self.config, self.dim = config, config.embed_dim
        self.layers = nn.ModuleList(
            Swin2SRLayer(config, heads, config.shift_size if index % 2 else 0, drop_path)
            for index, drop_path in enumerate(drop_paths)
        )
        self.conv = residual_connection(config)
        self.patch_embed = Swin2SRPatchEmbeddings(config, norm=False)
        self.patch_unembed = Swin2SRPatchUnEmbeddings()

    def forward(
        self,
        hidden_states: Tensor,
        input_dimensions: tuple[int, int],
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
        *,
        mask: Tensor | None = None,
    ) -> tuple[Any, ...]:
        """As ``Swin2SRLayer.forward``; behind the tokens are H, W, H and W; the attention is that of the last layer."""
        deep, probabilities = hidden_states, []
        for layer in self.layers:
            given = mask if getattr(layer, "shift_size", 0) == self.config.shift_size else None
            options = _options(layer, head_mask, given)
            deep, *probabilities = layer(deep, input_dimensions, output_attentions=output_attentions, **options)
        embedded, _ = self.patch_embed(self.conv(self.patch_unembed(deep, input_dimensions)))
        return hidden_states + embedded, (*input_dimensions, *input_dimensions), *probabilities


class Swin2SREncoder(nn.Module):
    """All stages."""

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        self.config, self.num_stages = config, len(config.depths)
        self.gradient_checkpointing = False
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu")
        drop_paths = torch.split(rates, list(config.depths))
        self.stages = nn.ModuleList(
            Swin2SRStage(config, heads, each.tolist()) for heads, each in zip(config.num_heads, drop_paths, strict=True)
        )

    def forward(  # noqa: PLR0917 (the order of Transformers)
        self,
        hidden_states: Tensor,
        input_dimensions: tuple[int, int],
        head_mask: Sequence[Tensor | None] | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> Swin2SREncoderOutput | tuple[Any, ...]:
        """Run tokens through all stages.

        Args:
            hidden_states: tokens (B, H * W, C).
            input_dimensions: H and W.
            head_mask: for each stage a factor (nH,) on the attention of its heads.
            output_attentions, output_hidden_states: whether to return these.
            return_dict: False for a tuple of what was asked for.
        """
        tokens, size, window = hidden_states, input_dimensions, self.config.window_size
        mask = shift_mask(*size, window, self.config.shift_size, tokens.device)  # (nW, N, N)
        states, attentions = [tokens], []
        for stage, factor in zip(self.stages, head_mask or [None] * len(self.stages), strict=True):
            call: Callable[..., Any] = stage
            if self.gradient_checkpointing and self.training:
                call = partial(checkpoint, stage, use_reentrant=False)
            options = _options(stage, factor, mask)
            tokens, _, *attention = call(tokens, size, output_attentions=output_attentions, **options)
            states += [tokens] if output_hidden_states else []
            attentions += attention
        output = Swin2SREncoderOutput(
            last_hidden_state=tokens,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()


class Swin2SRBody(nn.Module):
    """The network without its head: deep features of an image."""

    mean: Tensor

    def __init__(self, config: Swin2SRConfig) -> None:
        config.validate()
        super().__init__()
        self.config = config
        self.first_convolution = conv3x3(config.num_channels, config.embed_dim)
        self.embeddings = Swin2SREmbeddings(config)
        self.encoder = Swin2SREncoder(config)
        self.layernorm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.patch_unembed = Swin2SRPatchUnEmbeddings()
        self.conv_after_body = residual_connection(config)
        self.register_buffer("mean", mean_of(config.num_channels), persistent=False)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def num_channels(self) -> int:
        """Channels of the images: those of the first convolution, which may have been replaced."""
        channels: int = getattr(self.first_convolution, "in_channels", self.config.num_channels)
        return channels

    @property
    def img_range(self) -> float:
        """The factor on pixels in [0, 1]."""
        return self.config.img_range

    @img_range.setter
    def img_range(self, value: float) -> None:
        self.config.img_range = value

    def normalise(self, pixel_values: Tensor) -> Tensor:
        """Pixels (B, C, H, W) in [0, 1] to what the first convolution takes."""
        return (pixel_values - self.mean) * self.config.img_range

    def extract(
        self, pixel_values: Tensor, head_masks: Sequence[Tensor | None] | None = None, **outputs: bool
    ) -> Swin2SREncoderOutput:
        """Pixels (B, C, H, W) in [0, 1] to deep features (B, embed_dim, H, W), and what was asked of the encoder.

        Raises:
            ValueError: if a side is not a multiple of the window, or the channels are not the network's.
        """
        self.check(pixel_values)
        shallow = self.first_convolution(self.normalise(pixel_values))  # (B, C, H, W)
        tokens, size = self.embeddings(shallow)  # (B, HW, C)
        encoded: Swin2SREncoderOutput = self.encoder(tokens, size, head_masks, **outputs)
        deep = self.patch_unembed(self.layernorm(encoded.last_hidden_state), size)  # (B, C, H, W)
        encoded.last_hidden_state = self.conv_after_body(deep) + shallow
        return encoded

    def forward(self, pixel_values: Tensor) -> Swin2SREncoderOutput:
        """As ``extract``."""
        return self.extract(pixel_values)

    def check(self, pixel_values: Tensor) -> None:
        """Raise ValueError unless the input is a batch of images whose sides are multiples of the window."""
        channels, window = self.num_channels, self.config.window_size
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
        refined = refine(self.denormalise(image), pixel_values, self.config)
        return Reconstruction(refined, None if aux is None else self.denormalise(aux))

    def denormalise(self, image: Tensor) -> Tensor:
        """What the head gives (B, C, H, W) to the range of the pixels."""
        return image / self.config.img_range + self.mean_out


def _options(part: nn.Module, head_mask: Tensor | None, mask: Tensor | None) -> dict[str, Tensor | None]:
    """What a stage or a layer takes beside its arguments: a replaced one has the parameters of Transformers only."""
    options: dict[str, Tensor | None] = {} if head_mask is None else {"head_mask": head_mask}
    replaced = type(part) not in (Swin2SRStage, Swin2SRLayer) or vars(part).keys() & {"forward", "get_attn_mask"}
    return options if replaced else {**options, "mask": mask}


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
