"""Start at plain interpolation: the skip path interpolates and the body adds almost nothing.

The skip path is ``first_convolution`` followed by the head's first convolution: together a linear filter over 5x5
pixels, enough for bicubic interpolation (Keys, a = -0.5) at any scale. ``first_convolution`` keeps its weights, fresh
or trained; the convolution behind it is solved for by least squares.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from model.degradations import cubic
from model.network import Swin2SR

BODY_SHARE = 0.01
LEAKY_SLOPE = 0.01


def interpolation_kernels(scale: int, channels: int) -> Tensor:
    """Return the 5x5 filters of bicubic enlargement, (channels * scale^2, channels, 5, 5), in pixel shuffle's order.

    With scale 1 they copy the image.
    """
    offset = (np.arange(scale) + 0.5) / scale - 0.5
    taps = cubic(offset[:, None] - np.arange(-2, 3))  # (scale, 5)
    phases = torch.from_numpy(np.einsum("iy,jx->ijyx", taps, taps).reshape(scale**2, 5, 5))
    kernels = torch.zeros(channels, scale**2, channels, 5, 5, dtype=torch.float64)
    for channel in range(channels):
        kernels[channel, :, channel] = phases
    return kernels.flatten(0, 1)


def solve_second(first: Tensor, wanted: Tensor) -> Tensor:
    """Find the 3x3 convolution that, behind a given one, acts as wanted 5x5 filters; the smallest one that does.

    Args:
        first: (features, channels, 3, 3).
        wanted: (outputs, channels, 5, 5).

    Returns:
        (outputs, features, 3, 3), in double precision; the nearest in least squares if none is exact.
    """
    features, channels = first.shape[:2]
    reach = torch.zeros(features, 3, 3, channels, 5, 5, dtype=torch.float64)
    for row in range(3):
        for column in range(3):
            reach[:, row, column, :, row : row + 3, column : column + 3] = first.double()
    inverse = torch.linalg.pinv(reach.reshape(features * 9, channels * 25), rtol=1e-6)
    second: Tensor = wanted.double().flatten(1) @ inverse
    return second.reshape(-1, features, 3, 3)


def start_at_interpolation(network: Swin2SR) -> None:
    """Rewrite a network's head so that it begins as bicubic interpolation, or as a copy for restoration.

    The convolution after the body is reduced to a hundredth, whether fresh or trained at another scale. Heads with
    activations between body and output (``pixelshuffle``, ``nearest+conv``) keep their usual start.
    """
    parameters = dict(network.named_parameters())
    upsampler = network.config.upsampler
    if upsampler not in ("pixelshuffledirect", "pixelshuffle_aux", None):
        return
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name.startswith("swin2sr.conv_after_body"):
                parameter.mul_(BODY_SHARE)
        if upsampler is None:
            parameters["final_convolution.weight"].mul_(BODY_SHARE)
            parameters["final_convolution.bias"].zero_()
        elif upsampler == "pixelshuffledirect":
            kernels = interpolation_kernels(network.config.upscale, network.config.num_channels)
            _follow(parameters, "upsample.conv", kernels)
        else:
            _start_compressed(parameters, network.config.num_channels)


def _follow(parameters: Mapping[str, nn.Parameter], name: str, wanted: Tensor, rows: slice = slice(None)) -> None:
    """Make rows of a convolution, after ``first_convolution``, compute the wanted filters of the network's input."""
    weight = solve_second(parameters["swin2sr.first_convolution.weight"], wanted)
    offset = torch.einsum("ofyx,f->o", weight, parameters["swin2sr.first_convolution.bias"].double())
    parameters[f"{name}.weight"][rows] = weight.to(parameters[f"{name}.weight"])
    parameters[f"{name}.bias"][rows] = -offset.to(parameters[f"{name}.bias"])


def _start_compressed(parameters: Mapping[str, nn.Parameter], channels: int) -> None:
    """Make the auxiliary image equal the input at first, and the image equal the bicubic branch."""
    copy = interpolation_kernels(1, channels)
    _follow(parameters, "upsample.conv_before_upsample", torch.cat([copy, -copy]), slice(0, 2 * channels))
    aux = parameters["upsample.conv_aux.weight"]
    aux.mul_(BODY_SHARE)
    parameters["upsample.conv_aux.bias"].zero_()
    for channel in range(channels):  # leaky(v) - leaky(-v) = (1 + slope) v
        aux[channel, channel, 1, 1] = 1 / (1 + LEAKY_SLOPE)
        aux[channel, channels + channel, 1, 1] = -1 / (1 + LEAKY_SLOPE)
    for name, parameter in parameters.items():
        if name.startswith("upsample.upsample."):
            parameter.mul_(0.1)
    last = solve_second(parameters["upsample.conv_bicubic.weight"], copy)
    offset = torch.einsum("ofyx,f->o", last, parameters["upsample.conv_bicubic.bias"].double())
    parameters["upsample.final_convolution.weight"].copy_(last)
    parameters["upsample.final_convolution.bias"].copy_(-offset)
