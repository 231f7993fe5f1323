"""The heads: from the features of the body to an image.

Each head is an ``nn.Module`` with the child names of the official state dict; ``Swin2SR`` takes the children over as
its own. On a canvas with several images the gaps are cleared before every 3x3 convolution, so each image sees zeros
around itself. Source: section 8 of ``__init__`` and ``forward`` in the official ``models/network_swin2sr.py``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import Swin2SRConfig
from model.packing import PackedLayout

FEATURES = 64


class Reconstruction(NamedTuple):
    """What a head returns: the image (S, C, s * H, s * W) and, for ``pixelshuffle_aux``, the auxiliary (S, C, H, W)."""

    image: Tensor
    aux: Tensor | None = None


class Head(nn.Module):
    """From features (S, embed_dim, H, W) and the normalised input (S, C, H, W) to a normalised reconstruction."""

    def forward(self, features: Tensor, pixels: Tensor, layout: PackedLayout) -> Reconstruction:
        """Reconstruct a canvas whose features have clear gaps."""
        raise NotImplementedError


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def pixel_shuffle_steps(scale: int) -> list[int]:
    """The factors that a pixel shuffle head climbs in: 3 at once, powers of two in twos."""
    return [3] if scale == 3 else [2] * int(math.log2(scale))


class PixelShuffleHead(Head):
    """``pixelshuffle``: convolutions and pixel shuffles up to the scale; scales 2, 3, 4 and 8."""

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        self.steps = pixel_shuffle_steps(config.upscale)
        self.conv_before_upsample = nn.Sequential(conv3x3(config.embed_dim, FEATURES), nn.LeakyReLU())
        climb: list[nn.Module] = []
        for step in self.steps:
            climb += [conv3x3(FEATURES, FEATURES * step**2), nn.PixelShuffle(step)]
        self.upsample = nn.Sequential(*climb)
        self.conv_last = conv3x3(FEATURES, config.out_channels)

    def climb(self, features: Tensor, layout: PackedLayout) -> Tensor:
        """Features (S, 64, H, W) to clear features (S, 64, s * H, s * W)."""
        scale = 1
        for index, step in enumerate(self.steps):
            features = self.upsample[2 * index + 1](self.upsample[2 * index](layout.clear_gaps(features, scale)))
            scale *= step
        return layout.clear_gaps(features, scale)

    def forward(self, features: Tensor, pixels: Tensor, layout: PackedLayout) -> Reconstruction:  # noqa: ARG002
        """As ``Head.forward``."""
        return Reconstruction(self.conv_last(self.climb(self.conv_before_upsample(features), layout)))


class AuxiliaryHead(PixelShuffleHead):
    """``pixelshuffle_aux``: for compressed inputs; adds a bicubic branch and predicts a clean low-resolution image."""

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__(config)
        self.scale = config.upscale
        self.conv_bicubic = conv3x3(config.num_channels, FEATURES)
        self.conv_aux = conv3x3(FEATURES, config.out_channels)
        self.conv_after_aux = nn.Sequential(conv3x3(config.out_channels, FEATURES), nn.LeakyReLU())

    def bicubic(self, pixels: Tensor, layout: PackedLayout) -> Tensor:
        """Each image of a canvas (S, C, H, W) resized alone; (S, C, s * H, s * W) with clear gaps."""
        if layout.gaps is None:
            return F.interpolate(pixels, scale_factor=self.scale, mode="bicubic", align_corners=False)
        sheets, channels, height, width = pixels.shape
        canvas = pixels.new_zeros(sheets, channels, self.scale * height, self.scale * width)
        for place in layout.places:
            image = place.crop(pixels)[None]
            resized = F.interpolate(image, scale_factor=self.scale, mode="bicubic", align_corners=False)
            place.crop(canvas, self.scale).copy_(resized[0])
        return canvas

    def forward(self, features: Tensor, pixels: Tensor, layout: PackedLayout) -> Reconstruction:
        """As ``Head.forward``."""
        features = layout.clear_gaps(self.conv_before_upsample(features))
        aux = self.conv_aux(features)
        features = self.climb(self.conv_after_aux(layout.clear_gaps(aux)), layout)
        features = features + self.conv_bicubic(self.bicubic(pixels, layout))
        return Reconstruction(self.conv_last(layout.clear_gaps(features, self.scale)), aux)


class DirectHead(Head):
    """``pixelshuffledirect``: one convolution and one pixel shuffle, of the lightweight networks."""

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        channels = config.out_channels * config.upscale**2
        self.upsample = nn.Sequential(conv3x3(config.embed_dim, channels), nn.PixelShuffle(config.upscale))

    def forward(self, features: Tensor, pixels: Tensor, layout: PackedLayout) -> Reconstruction:  # noqa: ARG002
        """As ``Head.forward``."""
        return Reconstruction(self.upsample(features))


class NearestHead(Head):
    """``nearest+conv``: twice nearest neighbour and convolution, x4, of the real-world network."""

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        self.conv_before_upsample = nn.Sequential(conv3x3(config.embed_dim, FEATURES), nn.LeakyReLU())
        self.conv_up1 = conv3x3(FEATURES, FEATURES)
        self.conv_up2 = conv3x3(FEATURES, FEATURES)
        self.conv_hr = conv3x3(FEATURES, FEATURES)
        self.conv_last = conv3x3(FEATURES, config.out_channels)

    def forward(self, features: Tensor, pixels: Tensor, layout: PackedLayout) -> Reconstruction:  # noqa: ARG002
        """As ``Head.forward``."""
        features = layout.clear_gaps(self.conv_before_upsample(features))
        for scale, conv in ((2, self.conv_up1), (4, self.conv_up2)):
            features = F.interpolate(features, scale_factor=2, mode="nearest")
            features = layout.clear_gaps(F.leaky_relu(conv(features), 0.2), scale)
        features = layout.clear_gaps(F.leaky_relu(self.conv_hr(features), 0.2), 4)
        return Reconstruction(self.conv_last(features))


class RestorationHead(Head):
    """No upsampler: the body predicts what to add to its input, for JPEG artefacts and noise."""

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        self.conv_last = conv3x3(config.embed_dim, config.out_channels)

    def forward(self, features: Tensor, pixels: Tensor, layout: PackedLayout) -> Reconstruction:  # noqa: ARG002
        """As ``Head.forward``."""
        return Reconstruction(pixels + self.conv_last(features))


def build_head(config: Swin2SRConfig) -> Head:
    """The head that ``config.upsampler`` names."""
    heads: dict[str | None, type[Head]] = {
        "pixelshuffle": PixelShuffleHead,
        "pixelshuffle_aux": AuxiliaryHead,
        "pixelshuffledirect": DirectHead,
        "nearest+conv": NearestHead,
        None: RestorationHead,
    }
    return heads[config.upsampler](config)


def mean_of(channels: int) -> Tensor:
    """The mean (1, C, 1, 1) subtracted from pixel values: DIV2K's for three channels, else 0."""
    values = (0.4488, 0.4371, 0.4040) if channels == 3 else (0.0,) * channels
    return torch.tensor(values).view(1, -1, 1, 1)
