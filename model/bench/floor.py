"""The arithmetic floor: the network's multiplications alone, at the rate of a large matrix product."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from model.bench.timing import Run
from model.network import Swin2SR

GEMM_SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices whose product measures the machine's rate."""


def multiply_adds_per_pixel(network: Swin2SR) -> float:
    """Multiply-adds of one forward pass per low-resolution pixel; the work grows with the windows and nothing else."""
    config = network.config
    parameter = next(network.parameters())
    window = parameter.new_zeros(1, config.num_channels, config.window_size, config.window_size)
    # PyTorch's own operators, which can be counted, run where gradients could be asked for.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        network(window)
    return counter.get_total_flops() / 2 / config.window_size**2


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Run, int]:
    """A large square matrix product, and its multiply-adds."""
    side = GEMM_SIDE[device.type]
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=product), side**3
