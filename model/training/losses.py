"""The distance between what a network returns and what it should return."""

from __future__ import annotations

import torch
from torch import Tensor

from model.reconstruction import Reconstruction

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""


def reconstruction_loss(
    result: Reconstruction,
    sharp: Tensor,
    clean: Tensor,
    sizes: Tensor,
    *,
    aux_weight: float,
    smoothing: float = 0.0,
    luma_weight: float = 0.0,
) -> Tensor:
    """Return the L1 distance to the wanted image, plus those in luma and of the auxiliary image to the clean input.

    Padding does not count, because serving cuts it off.

    Args:
        result: of the network.
        sharp: wanted image (B, C, s H, s W).
        clean: input before JPEG (B, C, H, W).
        sizes: (B, 2), height and width of the inputs without padding.
        aux_weight: of the auxiliary image's distance.
        smoothing: below this distance, of values in [0, 1], the L1 distance becomes a squared one (Charbonnier).
        luma_weight: of the distance in luma, added for images of three channels.

    Source: Swin2SR, the auxiliary loss of compressed super-resolution.
    """
    sizes_of_image = sizes * (sharp.shape[2] // clean.shape[2])
    loss = _distance(result.image, sharp, sizes_of_image, smoothing)
    if luma_weight and sharp.shape[1] == len(LUMA):
        loss = loss + luma_weight * _distance(_luma(result.image), _luma(sharp), sizes_of_image, smoothing)
    if result.aux is not None:
        loss = loss + aux_weight * _distance(result.aux, clean, sizes, smoothing)
    return loss


def _luma(image: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, device=image.device).view(1, -1, 1, 1)
    return (image.float() * weights).sum(1, keepdim=True)


def _distance(image: Tensor, wanted: Tensor, sizes: Tensor, smoothing: float) -> Tensor:
    rows = torch.arange(image.shape[2], device=image.device) < sizes[:, :1]  # (B, H)
    columns = torch.arange(image.shape[3], device=image.device) < sizes[:, 1:]  # (B, W)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    error = image.float() - wanted
    size = error.abs() if smoothing == 0 else (error.square() + smoothing**2).sqrt()
    return (size * inside).sum() / (inside.sum() * image.shape[1])
