"""A block as it is computed on a GPU, against what ``torch.compile`` makes of it: why nothing there is compiled so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from model.bench.report import Row, seconds
from model.bench.sections import Bench
from model.bench.timing import Run
from model.gpu.choice import choose_operators, draw_work, load_kernels, run_block, time_on_cuda
from model.gpu.operators import PLAIN, Operators
from model.gpu.windowed import WindowedNetwork, compute_block
from model.upscaler import find_dtype

WINDOWS = {"cuda": 8192, "cpu": 16}
"""Windows of the block; on a GPU those of a large pack, so that launching its kernels is no part of the time."""

VARIANTS = ("classical-x2", "lightweight-x2")

Block = Callable[..., tuple[Tensor, Tensor]]


@torch.inference_mode()
def compare_block(bench: Bench) -> Iterator[Row]:
    """A block by the operators that were chosen, against both ways to compile it: with PyTorch's operators or those."""
    compiled = compile_block()
    for variant in VARIANTS:
        windowed = WindowedNetwork(bench.network(variant).to(bench.device), find_dtype("auto", bench.device))
        kernels = load_kernels(bench.device, windowed.stages[0].blocks[0])
        windows = WINDOWS[bench.device.type]
        chosen, work = choose_operators(windowed, time_on_cuda, kernels, windows), draw_work(windowed, windows)
        sides: dict[str, Run] = {"here": partial(run_block, chosen, work)}
        faults: dict[str, str] = {}
        for name, operators in _forms(chosen).items():
            run = partial(compiled, operators, work.stream, work.stream.to(work.dtype), work.kinds, work.block)
            try:
                run()
            except RuntimeError as error:  # no compiler, or a kernel that cannot be compiled around
                faults[name] = f"cannot be compiled: {str(error).partition(chr(10))[0]}"
            else:
                sides[name] = run
        timings = bench.time(sides)
        mine = timings.pop("here")
        shown = seconds(mine.median, mine.spread)
        for name, fault in faults.items():
            yield Row(f"{variant}, a block", name, None, "times as fast", shown, fault)
        for name, theirs in timings.items():
            figure, there = theirs.median / mine.median, seconds(theirs.median, theirs.spread)
            yield Row(f"{variant}, a block", name, figure, "times as fast", shown, there)


def _forms(chosen: Operators) -> dict[str, Operators]:
    """What is compiled; on a CPU, where there are no kernels, one form."""
    around = replace(chosen, run_block=None)
    return {"torch.compile": PLAIN, **({"torch.compile around the kernels": around} if around != PLAIN else {})}


def compile_block() -> Block:
    """A block's computation, compiled for each shape that it is called with."""
    compiled: Block = torch.compile(compute_block, dynamic=False)
    return compiled
