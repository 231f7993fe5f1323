"""Where the time of a forward pass goes, by families of operators."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from torch.profiler import ProfilerActivity
from torch.profiler import profile as record

from model.bench.works import Pixels
from model.upscaler import Upscaler

FAMILIES: Mapping[str, str] = {
    "the kernel's blocks": r"^swin_block$",
    "the kernel's convolutions": r"^swin_convolution$",
    "convolution": r"conv",
    "linear": r"addmm|::mm|bmm|matmul|linear|gemm|cutlass",
    "gather": r"index|gather|scatter",
    "norm": r"norm",
    "softmax": r"softmax",
    "copy": r"copy|contiguous|clone|cat|stack|memcpy|memset|fill|zero",
    "elementwise": r"add|mul|div|sub|gelu|relu|exp|elementwise|triton",
}
"""Operators or kernels by patterns of their names; the first that fits has it."""


def profile_forward(upscaler: Upscaler, image: Pixels, runs: int) -> dict[str, float]:
    """Share of a forward pass's time by family, largest first; ``other`` is what fits none.

    Args:
        upscaler: what runs.
        image: (H, W, C) on the window grid.
        runs: forward passes that are recorded, after one that is not.
    """
    on_gpu = upscaler.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    upscaler.forward([image])
    with record(activities=activities) as recorded:
        for _ in range(runs):
            upscaler.forward([image])
    times: Counter[str] = Counter()
    for event in recorded.key_averages():
        times[_family(event.key)] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    total = sum(times.values())
    return {name: time / total for name, time in times.most_common() if time}


def _family(name: str) -> str:
    return next((family for family, pattern in FAMILIES.items() if re.search(pattern, name, re.IGNORECASE)), "other")
