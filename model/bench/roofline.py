"""The hardware limit: the network's multiplications at the rate of a large matrix product, or its bytes copied."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from model.bench.timing import Run, interleave
from model.config import Swin2SRConfig
from model.network import Swin2SR

GEMM_SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices whose product measures the machine's rate."""

COPY_BYTES = {"cpu": 2**26, "cuda": 2**31}
"""Bytes that are copied to measure the bandwidth: much more than a cache holds."""

ROUNDS = 7
"""Measurements of each ceiling."""


def count_flops(network: Swin2SR) -> dict[str, int]:
    """Operations of a forward pass over one window by operator, without the tables that depend on weights alone."""
    config, counts = network.config, []
    window = next(network.parameters()).new_zeros(1, config.num_channels, config.window_size, config.window_size)
    for batch in (1, 2):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(window.expand(batch, -1, -1, -1))
        counts.append({str(operator): flops for operator, flops in counter.get_flop_counts()["Global"].items()})
    return {operator: flops - counts[0].get(operator, 0) for operator, flops in counts[1].items()}


def multiply_adds_per_pixel(network: Swin2SR) -> float:
    """Multiply-adds of one forward pass per low-resolution pixel; the work grows with the windows alone."""
    return sum(count_flops(network).values()) / 2 / network.config.window_size**2


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Run, int]:
    """A large square matrix product, and its multiply-adds."""
    side = GEMM_SIDE[device.type]
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=product), side**3


@dataclass(frozen=True)
class Ceilings:
    """Limits of a machine: operations per second, a multiply-add being two, and bytes read and written per second."""

    flops: float
    bandwidth: float


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The rate of a large matrix product, and that of a large copy."""
    product, multiply_adds = matrix_product(device, dtype)
    source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timings = interleave({"product": product, "copy": lambda: target.copy_(source)}, ROUNDS, device)
    return Ceilings(2 * multiply_adds / timings["product"].median, 2 * source.nbytes / timings["copy"].median)


def least_bytes(config: Swin2SRConfig, pixels: int, item: int) -> int:
    """Minimum of the bytes that a forward pass moves, if every block is one kernel.

    Args:
        config: of the network.
        pixels: of all tiles, low-resolution.
        item: bytes of a number in the body.

    Returns:
        The tokens, read and written by every block; the weights, once; the pixels in, and float32 values out.
    """
    blocks = sum(config.depths)
    hidden = math.floor(config.embed_dim * config.mlp_ratio)
    weights = blocks * config.embed_dim * (4 * config.embed_dim + 2 * hidden) * item
    ends = pixels * (config.num_channels + 4 * config.upscale**2 * config.out_channels)
    return 2 * blocks * pixels * config.embed_dim * item + weights + ends
