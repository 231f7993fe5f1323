"""The heads: from the features of the body to an image.

Source: section 8 of ``__init__`` and ``forward`` in the official ``models/network_swin2sr.py``. The modules have the
names that Hugging Face Transformers gives them. A network without an upsampler has one convolution as its head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import Swin2SRConfig

FEATURES = 64
"""Channels of every head but the direct one."""


class Reconstruction(NamedTuple):
    """The image (B, C, s * H, s * W) and, for ``pixelshuffle_aux``, the auxiliary image (B, C, H, W)."""

    image: Tensor
    aux: Tensor | None = None


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def pixel_shuffle_steps(scale: int) -> dict[str, int]:
    """The convolutions of a pixel shuffle head and the factor that each enlarges by: once 3, or powers of two by 2."""
    return {"convolution": 3} if scale == 3 else {f"convolution_{step}": 2 for step in range(int(math.log2(scale)))}


LACKS_AVX2 = torch.backends.cpu.get_cpu_capability() == "DEFAULT"
"""Whether PyTorch found no vector instructions that it has kernels for. Read here, because a trace cannot read it."""


def for_pixel_shuffle(features: Tensor) -> Tensor:
    """Features (B, C, H, W) in a memory layout that PyTorch can shuffle on this processor.

    For channels_last it calls FBGEMM, which refuses to run on x86 without AVX2.
    """
    return features.contiguous() if LACKS_AVX2 else features


class PixelShuffle(nn.Module):
    """Convolutions and pixel shuffles up to the scale: (B, 64, H, W) to (B, 64, s * H, s * W)."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.steps = pixel_shuffle_steps(scale)
        for name, step in self.steps.items():
            self.add_module(name, conv3x3(FEATURES, FEATURES * step**2))

    def forward(self, features: Tensor) -> Tensor:
        """Enlarge."""
        for name, step in self.steps.items():
            features = F.pixel_shuffle(for_pixel_shuffle(getattr(self, name)(features)), step)
        return features


class PixelShuffleHead(nn.Module):
    """``pixelshuffle``: scales 2, 3, 4 and 8."""

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        self.conv_before_upsample = conv3x3(config.embed_dim, FEATURES)
        self.activation = nn.LeakyReLU()
        self.upsample = PixelShuffle(config.upscale)
        self.final_convolution = conv3x3(FEATURES, config.out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, embed_dim, H, W) to a normalised image (B, C, s * H, s * W)."""
        features = self.activation(self.conv_before_upsample(features))  # (B, 64, H, W)
        return self.final_convolution(self.upsample(features))


class AuxiliaryHead(nn.Module):
    """``pixelshuffle_aux``: for compressed inputs; adds a bicubic branch and predicts a clean low-resolution image."""

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        self.upscale = config.upscale
        self.conv_bicubic = conv3x3(config.num_channels, FEATURES)
        self.conv_before_upsample = conv3x3(config.embed_dim, FEATURES)
        self.activation = nn.LeakyReLU()
        self.conv_aux = conv3x3(FEATURES, config.out_channels)
        self.conv_after_aux = nn.Sequential(conv3x3(config.out_channels, FEATURES), nn.LeakyReLU())
        self.upsample = PixelShuffle(config.upscale)
        self.final_convolution = conv3x3(FEATURES, config.out_channels)

    def forward(self, features: Tensor, pixels: Tensor) -> Reconstruction:
        """Features (B, embed_dim, H, W) and normalised pixels (B, C, H, W) to normalised images."""
        bicubic = F.interpolate(pixels, scale_factor=self.upscale, mode="bicubic", align_corners=False)
        aux = self.conv_aux(self.activation(self.conv_before_upsample(features)))  # (B, C, H, W)
        features = self.upsample(self.conv_after_aux(aux))  # (B, 64, sH, sW)
        return Reconstruction(self.final_convolution(features + self.conv_bicubic(bicubic)), aux)


class DirectHead(nn.Module):
    """``pixelshuffledirect``: one convolution and one pixel shuffle, of the lightweight networks."""

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        self.conv = conv3x3(config.embed_dim, config.out_channels * config.upscale**2)
        self.pixel_shuffle = nn.PixelShuffle(config.upscale)

    @property
    def final_convolution(self) -> nn.Conv2d:
        """The convolution that makes the image, by the name that it has in the other heads."""
        return self.conv

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, embed_dim, H, W) to a normalised image (B, C, s * H, s * W)."""
        return self.pixel_shuffle(for_pixel_shuffle(self.conv(features)))


class NearestHead(nn.Module):
    """``nearest+conv``: twice nearest neighbour and convolution, x4, of the real-world network."""

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        self.conv_before_upsample = conv3x3(config.embed_dim, FEATURES)
        self.activation = nn.LeakyReLU()
        self.conv_up1 = conv3x3(FEATURES, FEATURES)
        self.conv_up2 = conv3x3(FEATURES, FEATURES)
        self.conv_hr = conv3x3(FEATURES, FEATURES)
        self.final_convolution = conv3x3(FEATURES, config.out_channels)
        self.lrelu = nn.LeakyReLU(0.2)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, embed_dim, H, W) to a normalised image (B, C, 4 * H, 4 * W)."""
        features = self.activation(self.conv_before_upsample(features))  # (B, 64, H, W)
        for conv in (self.conv_up1, self.conv_up2):
            features = self.lrelu(conv(F.interpolate(features, scale_factor=2, mode="nearest")))
        return self.final_convolution(self.lrelu(self.conv_hr(features)))  # (B, C, 4H, 4W)


def build_head(config: Swin2SRConfig) -> nn.Module:
    """The head that ``config.upsampler`` names."""
    heads: dict[str, type[nn.Module]] = {
        "pixelshuffle": PixelShuffleHead,
        "pixelshuffle_aux": AuxiliaryHead,
        "pixelshuffledirect": DirectHead,
        "nearest+conv": NearestHead,
    }
    if config.upsampler is None:
        return conv3x3(config.embed_dim, config.out_channels)
    return heads[config.upsampler](config)


def mean_of(channels: int) -> Tensor:
    """The mean (1, C, 1, 1) subtracted from pixel values: DIV2K's for three channels, else 0."""
    values = (0.4488, 0.4371, 0.4040) if channels == 3 else (0.0,) * channels
    return torch.tensor(values).view(1, -1, 1, 1)
