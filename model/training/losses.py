"""The distance between what a network returns and what it should return."""

from __future__ import annotations

import torch
from torch import Tensor

from model.reconstruction import Reconstruction


def reconstruction_loss(
    result: Reconstruction, sharp: Tensor, clean: Tensor, sizes: Tensor, *, aux_weight: float, smoothing: float = 0.0
) -> Tensor:
    """Return the L1 distance to the wanted image, plus that of the auxiliary image to the uncompressed input.

    Padding does not count, because serving cuts it off.

    Args:
        result: of the network.
        sharp: wanted image (B, C, s H, s W).
        clean: input before JPEG (B, C, H, W).
        sizes: (B, 2), height and width of the inputs without padding.
        aux_weight: of the auxiliary image's distance.
        smoothing: below this distance, of values in [0, 1], the L1 distance becomes a squared one (Charbonnier).

    Source: Swin2SR, the auxiliary loss of compressed super-resolution.
    """
    loss = _distance(result.image, sharp, sizes * (sharp.shape[2] // clean.shape[2]), smoothing)
    if result.aux is not None:
        loss = loss + aux_weight * _distance(result.aux, clean, sizes, smoothing)
    return loss


def _distance(image: Tensor, wanted: Tensor, sizes: Tensor, smoothing: float) -> Tensor:
    rows = torch.arange(image.shape[2], device=image.device) < sizes[:, :1]  # (B, H)
    columns = torch.arange(image.shape[3], device=image.device) < sizes[:, 1:]  # (B, W)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    error = image.float() - wanted
    size = error.abs() if smoothing == 0 else (error.square() + smoothing**2).sqrt()
    return (size * inside).sum() / (inside.sum() * image.shape[1])
