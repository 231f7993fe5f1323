"""The distance between what a network returns and what it should return."""

from __future__ import annotations

import torch
from torch import Tensor

from model.reconstruction import Reconstruction

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""

LOGARITHM_WEIGHT = 0.01
"""Makes gradients of logarithms about as large as those of L1 at a PSNR of 34 dB, for which the clipping is chosen."""


def reconstruction_loss(
    result: Reconstruction,
    sharp: Tensor,
    clean: Tensor,
    sizes: Tensor,
    *,
    aux_weight: float,
    smoothing: float = 0.0,
    luma_weight: float = 0.0,
    psnr_ceiling: float | None = None,
) -> Tensor:
    """Return the loss: L1 or a logarithm for the wanted image, plus luma and the auxiliary image if there is one.

    Padding does not count, because serving cuts it off.

    Args:
        result: of the network.
        sharp: wanted image (B, C, s H, s W).
        clean: input before JPEG (B, C, H, W).
        sizes: (B, 2), height and width of the inputs without padding.
        aux_weight: of the auxiliary image's distance.
        smoothing: below this distance, of values in [0, 1], the L1 distance becomes a squared one (Charbonnier).
        luma_weight: of the distance in luma, added for images of three channels.
        psnr_ceiling: if given, the distance is the logarithm of each image's mean squared error, in place of L1, so
            that the mean PSNR is maximised. Images above this PSNR in dB count less.

    Source: Swin2SR, the auxiliary loss of compressed super-resolution.
    """

    def distance(image: Tensor, wanted: Tensor, sizes: Tensor) -> Tensor:
        inside = _inside(image, sizes)
        error = (image.float() - wanted) * inside
        values = inside.sum((1, 2, 3)) * image.shape[1]
        if psnr_ceiling is not None:
            squared = error.square().sum((1, 2, 3)) / values
            return LOGARITHM_WEIGHT * (squared + 10 ** (-psnr_ceiling / 10)).log().mean()
        size = error.abs() if smoothing == 0 else (error.square() + smoothing**2).sqrt() * inside
        return size.sum() / values.sum()

    sizes_of_image = sizes * (sharp.shape[2] // clean.shape[2])
    loss = distance(result.image, sharp, sizes_of_image)
    if luma_weight and sharp.shape[1] == len(LUMA):
        loss = loss + luma_weight * distance(_luma(result.image), _luma(sharp), sizes_of_image)
    if result.aux is not None:
        loss = loss + aux_weight * distance(result.aux, clean, sizes)
    return loss


def _luma(image: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, device=image.device).view(1, -1, 1, 1)
    return (image.float() * weights).sum(1, keepdim=True)


def _inside(image: Tensor, sizes: Tensor) -> Tensor:
    """Return a mask (B, 1, H, W), True where a pixel of the images (B, C, H, W) is not padding."""
    rows = torch.arange(image.shape[2], device=image.device) < sizes[:, :1]  # (B, H)
    columns = torch.arange(image.shape[3], device=image.device) < sizes[:, 1:]  # (B, W)
    return rows[:, None, :, None] & columns[:, None, None, :]
