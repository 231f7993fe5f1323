"""Networks that keep flat areas, and the mean of any image, by construction.

On a flat area every token of the body is the same, up to what reaches it from the border. A 3x3 convolution whose
kernels each sum to zero answers nothing there, and over a whole image its answers average to zero. With such a
convolution at the end of the correcting path and without biases behind it, a flat area's value and an image's mean
depend on the other path alone. That path is linear, so one linear condition makes it exact:

- ``pixelshuffledirect`` and no upsampler: the correcting path ends in ``conv_after_body``, the other one is
  ``first_convolution`` followed by the head.
- ``pixelshuffle_aux``: it ends in ``convolution_0``, the other one is ``conv_bicubic`` of the enlarged input followed
  by ``final_convolution``.

The heads ``pixelshuffle`` and ``nearest+conv`` have no linear path, so this is impossible with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import Swin2SRConfig
from model.network import Swin2SR

BFLOAT16_STEPS = 255
FLIPS = 100
TOLERANCE = 1e-12


@dataclass(frozen=True)
class _Paths:
    """The layers that the construction concerns.

    Attributes:
        ending: the convolution whose kernels sum to zero and whose bias is zero.
        unbiased: another layer of the correcting path behind it, whose bias is zero, if there is one.
        first, last: the convolutions of the linear path.
        wanted: (outputs, channels), what the linear path does to a flat area.
    """

    ending: nn.Conv2d
    unbiased: nn.Conv2d | None
    first: nn.Conv2d
    last: nn.Conv2d
    wanted: Tensor


_ENDING, _FIRST = "swin2sr.conv_after_body", "swin2sr.first_convolution"


def can_keep_flat(config: Swin2SRConfig) -> bool:
    """Whether a network with this configuration can keep flat areas by construction."""
    if config.upsampler == "pixelshuffle_aux":
        return True
    return config.upsampler in ("pixelshuffledirect", None) and config.resi_connection == "1conv"


def check_can_keep_flat(config: Swin2SRConfig) -> None:
    """Raise ValueError if a network with this configuration cannot keep flat areas by construction."""
    if not can_keep_flat(config):
        raise ValueError(f"flat areas cannot be kept by construction with {config.upsampler}, {config.resi_connection}")


def _paths(network: Swin2SR) -> _Paths:
    config = network.config
    check_can_keep_flat(config)
    same = torch.eye(config.num_channels, dtype=torch.float64)

    def layer(name: str) -> nn.Conv2d:
        found = network.get_submodule(name)
        assert isinstance(found, nn.Conv2d)
        return found

    if config.upsampler == "pixelshuffle_aux":
        return _Paths(
            layer("upsample.upsample.convolution_0"), layer("upsample.upsample.convolution_1"),
            layer("upsample.conv_bicubic"), layer("upsample.final_convolution"), same,
        )  # fmt: skip
    if config.upsampler is None:
        return _Paths(layer(_ENDING), None, layer(_FIRST), layer("final_convolution"), 0 * same)
    wanted = same.repeat_interleave(config.upscale**2, 0)
    return _Paths(layer(_ENDING), None, layer(_FIRST), layer("upsample.conv"), wanted)


@torch.no_grad()
def keep_flat(network: Swin2SR) -> None:
    """Move the weights to the nearest ones with which flat areas keep their value.

    Raises:
        ValueError: if the head does not allow it.
    """
    paths = _paths(network)
    ending, first, last = paths.ending, paths.first, paths.last
    ending.weight -= ending.weight.mean((2, 3), keepdim=True)
    for layer in (ending, paths.unbiased):
        if layer is not None and layer.bias is not None:
            layer.bias.zero_()
    gains = first.weight.double().sum((2, 3))  # (features, channels)
    lacking = paths.wanted.to(gains.device) - last.weight.double().sum((2, 3)) @ gains
    change = lacking @ torch.linalg.pinv(gains) / 9
    last.weight += change[:, :, None, None].to(last.weight.dtype)
    _balance_bias(paths)


def _balance_bias(paths: _Paths) -> None:
    first, last = paths.first, paths.last
    assert first.bias is not None
    assert last.bias is not None
    last.bias.copy_(-(last.weight.double().sum((2, 3)) @ first.bias.double()))


@torch.no_grad()
def balance(network: Swin2SR) -> None:
    """Set the last bias so that the linear path adds no constant."""
    _balance_bias(_paths(network))


def fixed_parameters(network: Swin2SR) -> list[Tensor]:
    """Return what an optimiser of ``constrain_gradients`` must leave alone.

    These are the biases that are zero or follow from other weights, and the first layer of the linear path.
    """
    paths = _paths(network)
    layers = [paths.first, paths.ending, paths.last, *([] if paths.unbiased is None else [paths.unbiased])]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return [paths.first.weight, *biases]


@torch.no_grad()
def constrain_gradients(network: Swin2SR) -> None:
    """Project gradients so that steps along them keep flat areas, given ``balance`` after each step.

    The gradient of the last bias, which ``balance`` sets, becomes a part of that of the last weight.
    """
    paths = _paths(network)
    first, last = paths.first, paths.last
    assert first.bias is not None
    assert last.bias is not None
    assert paths.ending.weight.grad is not None
    assert last.weight.grad is not None
    assert last.bias.grad is not None
    paths.ending.weight.grad -= paths.ending.weight.grad.mean((2, 3), keepdim=True)
    last.weight.grad -= (last.bias.grad[:, None] * first.bias)[:, :, None, None]
    gains = first.weight.double().sum((2, 3))
    change = last.weight.grad.double().sum((2, 3)) @ gains @ torch.linalg.pinv(gains) / 9
    last.weight.grad -= change[:, :, None, None].to(last.weight.dtype)


@torch.no_grad()
def round_to_bfloat16(network: Swin2SR) -> None:
    """Round all weights to values that bfloat16 holds, and keep what ``keep_flat`` made.

    Kernels that sum to zero are rounded onto one grid each, where their sum stays zero. The last convolution's weights
    are rounded up or down so that the errors of each output cancel.

    Raises:
        ValueError: if the head does not allow it.
    """
    paths = _paths(network)
    ending, exact = paths.ending.weight.clone(), paths.last.weight.double()
    for parameter in network.parameters():
        parameter.copy_(parameter.bfloat16())
    first, last = paths.first, paths.last
    assert first.bias is not None
    assert last.bias is not None
    paths.ending.weight.copy_(round_zero_sum(ending))
    sums = torch.cat([first.weight.double().sum((2, 3)), first.bias.double()[:, None]], 1)  # (features, channels + 1)
    wanted = torch.cat([paths.wanted.to(sums.device), -last.bias.double()[:, None]], 1)
    last.weight.copy_(_round_rows(exact, sums, wanted))


def round_zero_sum(kernels: Tensor) -> Tensor:
    """Round kernels (..., 3, 3) that sum to zero to values that bfloat16 holds, without changing that sum.

    Each kernel's values become whole multiples of a power of two, at most 256 of it: bfloat16 has 8 bits.
    """
    flat = kernels.double().flatten(-2)
    flat = flat - flat.mean(-1, keepdim=True)
    largest = flat.abs().amax(-1, keepdim=True).clamp_min(2.0**-100)
    step = torch.exp2(torch.ceil(torch.log2(largest / BFLOAT16_STEPS)))
    wanted = flat / step
    whole = wanted.round()
    excess = whole.sum(-1, keepdim=True)  # a whole number, at most 4 either way
    direction = excess.sign()
    ranks = ((wanted - whole) * direction).argsort(-1).argsort(-1)
    whole -= direction * (ranks < excess.abs())
    return (whole * step).reshape(kernels.shape).to(kernels.dtype)


def _round_rows(weight: Tensor, sums: Tensor, wanted: Tensor) -> Tensor:
    """Round a convolution (outputs, features, 3, 3) so that its own sums times ``sums`` are as ``wanted``.

    For each output, repeatedly gives one or two weights their other neighbour in bfloat16: those that bring the result
    nearest.

    Args:
        weight: not rounded.
        sums: (features, n).
        wanted: (outputs, n).
    """
    rounded = weight.bfloat16().double().contiguous()
    towards = torch.where(rounded > weight, -torch.inf, torch.inf).bfloat16()
    other = torch.nextafter(rounded.bfloat16(), towards).double()
    reach = sums.repeat_interleave(weight[0, 0].numel(), 0)  # (features * 9, n)
    for row, choices, target in zip(rounded.flatten(1), other.flatten(1), wanted, strict=True):
        for _ in range(FLIPS):
            moves = (choices - row)[:, None] * reach
            error = target - row @ reach
            alone = moves.square().sum(1) - 2 * moves @ error  # change of the squared error
            pairs = alone[:, None] + alone + 2 * moves @ moves.T
            pairs.diagonal().copy_(alone)
            best = int(pairs.argmin())
            if pairs.flatten()[best] >= -TOLERANCE:
                break
            chosen = sorted({best // len(row), best % len(row)})
            row[chosen], choices[chosen] = choices[chosen].clone(), row[chosen].clone()
    return rounded
