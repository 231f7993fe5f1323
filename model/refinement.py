"""What a network can do to the image of its head: back-projection, and a limit on the range of its values.

*Back-projection* reduces the image to the size of the input, enlarges the difference and adds it, so that the image
stays true to the input (Irani and Peleg 1991; Timofte, Rothe and Van Gool, CVPR 2016, section 3.6). Both ways are
bicubic with a = -0.5; reducing is antialiased. Where inputs are compressed, the difference is smoothed first: its finer
part is what compression did.

*The range limit* keeps every value within the range of the 3x3 input pixels around it, widened by half of that range.
So where these are all equal, the image has their value to the bit, whatever the weights are. A slack allows more, but
not where 9x9 pixels are all equal.

The embedded variants have the limit, those that enlarge also back-projection; the released networks have neither.
``model.config.Swin2SRConfig`` says which.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import Swin2SRConfig

MARGIN = 0.5
"""Share of the local range by which it is widened."""

NEAR, FAR = 1, 4
"""Pixels to each side of a pixel: those of its local range; and those that are all equal in a flat area. A block of
JPEG's 8x8 pixels, which compression often makes flat, is no flat area, unless its neighbours have the same value."""

CUBIC = -0.5
CUBIC_BORDER = 2


def refine(image: Tensor, pixels: Tensor, config: Swin2SRConfig) -> Tensor:
    """Refine the images of a head as the configuration says.

    Args:
        image: (B, C, s * H, s * W).
        pixels: the input (B, C, H, W), both in [0, 1].
        config: of the network.

    Returns:
        (B, C, s * H, s * W).
    """
    if not config.is_refined:
        return image
    device = image.device.type
    in_full = nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
    with in_full:  # in bfloat16, a flat image would not stay flat
        if config.back_projection:
            error = pixels - reduce(image, config.upscale)
            image = image + enlarge(error, config.upscale, config.back_projection_blur)
        if config.range_slack is not None:
            low, high = (spread(bound, config.upscale) for bound in bounds(pixels, config.range_slack))
            image = limit(image, low, high)
        return image


def limit(image: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The image within bounds of its form; NaN stays NaN, and infinity becomes it, so that faults are still noticed."""
    return torch.minimum(torch.maximum(image, low), high) + 0 * image


def _cubic(distance: Tensor) -> Tensor:
    x = distance.abs()
    inner = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    outer = CUBIC * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, inner, torch.where(x < 2, outer, 0.0))


def reduce_border(scale: int) -> int:
    """Image pixels to each side of the s pixels of an input pixel on which its reduced value depends."""
    return (4 * scale - scale % 2 - scale) // 2


def reduce_weights(scale: int, device: torch.device | None = None) -> Tensor:
    """Weights (n,), float64, of the image pixels that reduce to one, beginning ``reduce_border`` before its own."""
    border = reduce_border(scale)
    place = torch.arange(-border, scale + border, dtype=torch.float64, device=device)
    weights = _cubic((place - (scale - 1) / 2) / scale)
    return weights / weights.sum()


def _blur_border(blur: float) -> int:
    return math.ceil(2.5 * blur)


def enlarge_border(blur: float) -> int:
    """Input pixels to each side that an enlarged pixel depends on, behind a Gaussian of ``blur`` pixels."""
    return CUBIC_BORDER + _blur_border(blur)


def enlarge_weights(scale: int, blur: float = 0.0, device: torch.device | None = None) -> Tensor:
    """Weights (s, n), float64, of the input pixels around one that give each of the s pixels that it becomes.

    Args:
        scale: s.
        blur: standard deviation in input pixels of the Gaussian that smooths the input first; 0 for none.
        device: of the weights.

    Returns:
        (s, n): n is twice the ``enlarge_border``, plus 1.
    """
    border, spread = enlarge_border(blur), _blur_border(blur)
    place = (torch.arange(scale, dtype=torch.float64, device=device) + 0.5) / scale - 0.5
    around = torch.arange(-border, border + 1, dtype=torch.float64, device=device)
    shift = torch.arange(-spread, spread + 1, dtype=torch.float64, device=device)
    gaussian = torch.exp(-0.5 * (shift / blur) ** 2) if blur > 0 else torch.ones_like(shift)
    weights = (_cubic(place[:, None, None] - around[:, None] + shift) * gaussian).sum(-1)
    return weights / weights.sum(1, keepdim=True)


def reduce(image: Tensor, scale: int) -> Tensor:
    """Reduce images (B, C, s * H, s * W) to (B, C, H, W); beyond the border is the border."""
    channels, border = int(image.shape[1]), reduce_border(scale)
    weights = reduce_weights(scale, image.device).to(image).view(1, 1, -1, 1).expand(channels, -1, -1, -1)

    def along_rows(image: Tensor) -> Tensor:
        return F.conv2d(_with_border(image, border), weights, stride=(scale, 1), groups=channels)

    return along_rows(along_rows(image).transpose(2, 3)).transpose(2, 3)


def enlarge(image: Tensor, scale: int, blur: float = 0.0) -> Tensor:
    """Smooth images (B, C, H, W) and enlarge them to (B, C, s * H, s * W); beyond the border is the border."""
    channels = int(image.shape[1])
    weights = enlarge_weights(scale, blur, image.device).to(image)[:, None, :, None].repeat(channels, 1, 1, 1)

    def along_rows(image: Tensor) -> Tensor:
        phases = F.conv2d(_with_border(image, enlarge_border(blur)), weights, groups=channels)  # (B, C * s, H, W)
        return torch.unflatten(phases, 1, (channels, scale)).transpose(2, 3).flatten(2, 3)

    return along_rows(along_rows(image).transpose(2, 3)).transpose(2, 3)


def _with_border(image: Tensor, border: int) -> Tensor:
    """The image with its first and its last row repeated. ``F.pad`` does not keep the channels in an ONNX export."""
    return torch.cat([image[:, :, :1].repeat(1, 1, border, 1), image, image[:, :, -1:].repeat(1, 1, border, 1)], 2)


def bounds(pixels: Tensor, slack: float) -> tuple[Tensor, Tensor]:
    """The least and the largest value that a pixel of the input may become, (B, C, H, W) both.

    Args:
        pixels: (B, C, H, W).
        slack: as ``Swin2SRConfig.range_slack``.
    """
    low, high = extremes(pixels, NEAR)
    margin = MARGIN * (high - low)
    if slack > 0:
        far_low, far_high = extremes(pixels, FAR)
        margin = margin + (far_high - far_low).clamp(max=slack)
    return low - margin, high + margin


def extremes(pixels: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """The least and the largest of the pixels within ``radius`` in both directions, (B, C, H, W) both."""
    low, high = (F.max_pool2d(signed, 2 * radius + 1, 1, radius) for signed in (-pixels, pixels))
    return -low, high


def spread(pixels: Tensor, scale: int) -> Tensor:
    """Repeat each pixel (B, C, H, W) s times in both directions."""
    return pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3) if scale > 1 else pixels
