"""Compares a block on a GPU with the same block compiled by ``torch.compile``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from model.bench.report import Row, compare
from model.bench.sections import Bench
from model.bench.timing import Run, attempt
from model.gpu.autotune import Work, choose_operators, draw_work, load_kernels, run_block, time_on_cuda
from model.gpu.graphs import CAPTURE_SIZES
from model.gpu.network import WindowNetwork
from model.inference.body import compute_block
from model.inference.operators import PLAIN, Operators

WINDOWS = {"cuda": 8192, "cpu": 16}
"""Windows of the block; on a GPU those of a large pack, so that the time for launching kernels is negligible."""

COMPARED = {"cuda": CAPTURE_SIZES[-1], "cpu": 16}
"""Windows that the operators are chosen on, as by the service on a card with memory."""

VARIANTS = ("classical-x2", "lightweight-x2")

Block = Callable[..., tuple[Tensor, Tensor]]


@torch.inference_mode()
def compare_block(bench: Bench) -> Iterator[Row]:
    """A block by the operators that were chosen, against both ways to compile it: with PyTorch's operators or those."""
    kind = bench.device.type
    with torch.cuda.device(bench.device) if kind == "cuda" else contextlib.nullcontext():
        for variant in VARIANTS:
            windowed = WindowNetwork(bench.network(variant).to(bench.device), bench.upscaler(variant).dtype)
            kernels = load_kernels(bench.device, windowed.body.stages[0].blocks[0])
            chosen = choose_operators(windowed, time_on_cuda, kernels, COMPARED[kind])
            work = draw_work(windowed, WINDOWS[kind])
            makers = {name: partial(_compile, form, work) for name, form in compiled_forms(chosen).items()}
            runs, faults = attempt(makers)
            timings = bench.time({"here": partial(run_block, chosen, work), **runs})
            yield from compare(f"{variant}, a block of {WINDOWS[kind]} windows", timings, faults)


def _compile(form: Operators, work: Work) -> Run:
    compiled = compile_block()
    return lambda: compiled(form, work.stream, work.stream.to(work.dtype), work.kinds, work.block)


def compiled_forms(chosen: Operators) -> dict[str, Operators]:
    """The forms that are compiled: one on a CPU, where there are no Triton kernels."""
    around = replace(chosen, run_block=None)
    return {"torch.compile": PLAIN, **({"torch.compile around the kernels": around} if around != PLAIN else {})}


def compile_block() -> Block:
    """A block's computation, compiled for each shape that it is called with."""
    compiled: Block = torch.compile(compute_block, dynamic=False)
    return compiled
