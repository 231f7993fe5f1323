"""The precision of a network: `exact`, `high` or `fast`, and how `auto` chooses.

==========  ==================================================  ================================
precision   on a CPU                                            on a GPU
==========  ==================================================  ================================
``exact``   float32                                             float32
``high``    split bfloat16 on AMX: 16 bits of every operand     float32 with products in TF32
``fast``    bfloat16 on AMX: 8 bits of every operand            bfloat16
==========  ==================================================  ================================

Sums, the residual stream, LayerNorm and softmax are float32 in each.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from model.inference.cpu import Inference, infer
from model.network import Swin2SR

logger = logging.getLogger(__name__)

PRECISIONS = ("exact", "high", "fast")

MAX_SHARE = 0.0005
"""Share of 8-bit samples that may differ from `exact`, each by one level, for `auto` to choose `high` on a CPU."""

TRIAL_SIDE = 128
"""Least side of the trial image that `auto` compares, in output pixels."""


def choose_precision(network: Swin2SR, name: str) -> str:
    """The precision that a network on a GPU computes in.

    Args:
        network: in evaluation mode, on its device.
        name: ``auto`` or one of ``PRECISIONS``. ``auto`` is ``fast`` on a GPU that computes in bfloat16.

    Returns:
        The precision that is used: ``exact`` if the hardware does not support the requested one.

    Raises:
        ValueError: if the name is unknown.
    """
    check_precision(name)
    with torch.cuda.device(next(network.parameters()).device):
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)  # and so TF32
    if not has_bfloat16:
        return "exact"
    return "fast" if name == "auto" else name


def check_precision(name: str) -> None:
    """Check that a name is ``auto`` or one of ``PRECISIONS``.

    Raises:
        ValueError: if not.
    """
    if name not in ("auto", *PRECISIONS):
        raise ValueError(f"The precision must be auto, {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}, not {name!r}.")


def infer_precisely(network: Swin2SR, name: str) -> Inference | None:
    """The fast forward pass of a network on a CPU in a precision.

    Args:
        network: in evaluation mode, on a CPU.
        name: ``auto`` or one of ``PRECISIONS``. ``auto`` is ``high`` if that changes at most ``MAX_SHARE`` of a trial
            image's samples, each by one level.

    Returns:
        The pass, with the precision that is used: ``exact`` if the hardware, the kernel or the network does not support
        the requested one. None if a module of the network was replaced.

    Raises:
        ValueError: if the name is unknown.
    """
    check_precision(name)
    if name != "auto":
        return infer(network, precision=name)
    high = infer(network, precision="high")
    if high is None or high.precision == "exact":
        return high
    exact, trial = infer(network), [trial_image(network)[0]]
    assert exact is not None
    with torch.inference_mode():
        apart = (_round(high.reconstruct(trial)[0].image) - _round(exact.reconstruct(trial)[0].image)).abs()
    share, most = (apart > 0).float().mean().item(), apart.max().item()
    if share <= MAX_SHARE and most <= 1:
        return high
    logger.info("precision exact: high changes %.3f %% of the samples by up to %d levels", 100 * share, most)
    return exact


def trial_image(network: Swin2SR) -> Tensor:
    """A synthetic image (1, C, H, W): shades, edges and noise."""
    window, scale = network.config.window_size, network.config.upscale
    side = -(-TRIAL_SIDE // (scale * window)) * window
    generator = torch.Generator().manual_seed(0)
    down, right = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    shades = torch.stack([down, right, 1 - down * right])[: network.config.num_channels]
    edges = (torch.sin(40 * down * right) > 0).float()
    noise = torch.rand(shades.shape, generator=generator)
    return (0.55 * shades + 0.3 * edges + 0.15 * noise)[None]


def _round(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * 255).round()
