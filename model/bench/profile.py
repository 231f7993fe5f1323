"""Where the time of a forward pass goes, by families of operators."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

from torch import nn
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as record

from model.bench.works import Pixels
from model.network import SwinTransformerBlock
from model.upscaler import Upscaler

BLOCK = "Swin block"
"""What a block does itself: on a CPU the kernel; where PyTorch's operators run, these are counted by themselves."""

FAMILIES: Mapping[str, str] = {
    BLOCK: BLOCK,
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
    with nullcontext() if on_gpu else _marked_blocks(upscaler.network):
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


@contextmanager
def _marked_blocks(network: nn.Module) -> Iterator[None]:
    """Let the profiler see the blocks, whose kernel it does not know."""
    marks: list[record_function] = []

    def enter(*_: object) -> None:
        marks.append(record_function(BLOCK))
        marks[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave(*_: object) -> None:
        marks.pop().__exit__(None, None, None)

    handles = []
    for block in network.modules():
        if isinstance(block, SwinTransformerBlock):
            handles += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
