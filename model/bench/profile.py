"""Profile of a forward pass, by families of operators."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from torch.profiler import ProfilerActivity
from torch.profiler import profile as record

from model.bench.roofline import count_flops
from model.config import Swin2SRConfig
from model.network import Swin2SR
from model.types import Pixels8
from model.upscaler import Upscaler

FAMILIES: Mapping[str, str] = {
    "the kernel's blocks": r"^swin_block$",
    "the kernel's convolutions": r"^swin_convolution$",
    "the kernel's embedding and head": r"^swin_(embed|enlarge)$",
    "whole blocks": r"block_windows",
    "block behind attention": r"finish_rows",
    "attention": r"attend_windows",
    "norm and residual": r"add_norm",
    "convolution": r"conv|fprop",
    "linear": r"addmm|\bmm\b|bmm|matmul|linear|gemm|cutlass|nvjet|xmma",
    "gather": r"index|gather|scatter",
    "norm": r"norm",
    "softmax": r"softmax",
    "copy": r"copy|contiguous|clone|cat|stack|memcpy|memset|fill|zero",
    "elementwise": r"add|mul|div|sub|gelu|relu|exp|elementwise|triton",
}
"""Families of operators or kernels by patterns of their names; the first pattern that matches counts."""


def profile_forward(upscaler: Upscaler, image: Pixels8, runs: int) -> dict[str, float]:
    """Share of a forward pass's time by family, largest first; ``other`` is the rest.

    Args:
        upscaler: what runs.
        image: (H, W, C) on the window grid.
        runs: forward passes that are recorded, after one that is not.
    """
    times = time_families(upscaler, [image], runs)
    total = sum(times.values())
    return {name: time / total for name, time in times.items()}


def time_families(upscaler: Upscaler, tiles: Sequence[Pixels8], runs: int) -> dict[str, float]:
    """Seconds of a forward pass by family, longest first: of kernels and copies on a GPU, else of operators.

    Args:
        upscaler: what runs.
        tiles: each (H, W, C) on the window grid.
        runs: forward passes that are recorded, after one that is not.
    """
    on_gpu = upscaler.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    upscaler.forward(tiles)
    with record(activities=activities) as recorded:
        for _ in range(runs):
            upscaler.forward(tiles)
    times: Counter[str] = Counter()
    for event in recorded.key_averages():
        if not on_gpu:
            times[_family(event.key)] += event.self_cpu_time_total
        elif event.device_type.name == "CUDA" and not event.is_user_annotation:  # an operator has its kernels' time
            times[_family(event.key)] += event.self_device_time_total
    return {name: time / runs / 1e6 for name, time in times.most_common() if time}


def count_arithmetic(network: Swin2SR, pixels: int) -> dict[str, float]:
    """Operations of a forward pass over so many pixels, by family; a multiply-add is two."""
    counted: Counter[str] = Counter()
    for operator, flops in count_flops(network).items():
        counted["attention" if "bmm" in operator else _family(f"::{operator}")] += flops
    return {name: flops * pixels / network.config.window_size**2 for name, flops in counted.items()}


def count_traffic(config: Swin2SRConfig, pixels: int, item: int) -> dict[str, float]:
    """Bytes that families bound by memory read and write in a forward pass over so many pixels, numbers of ``item``.

    Attention reads query, key and value and writes as much as one of them; a norm reads what it normalises and the
    float32 residual stream, and writes that in both forms.
    """
    values = float(pixels * config.embed_dim * sum(config.depths))
    return {"attention": 4 * item * values, "norm and residual": 2 * (2 * item + 8) * values}


def _family(name: str) -> str:
    return next((family for family, pattern in FAMILIES.items() if re.search(pattern, name, re.IGNORECASE)), "other")
