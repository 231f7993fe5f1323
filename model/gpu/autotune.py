"""Chooses the form of each operator: the faster one on this device, if it computes the same."""

from __future__ import annotations

import importlib
import logging
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from model.gpu.network import WindowNetwork
from model.inference.body import compute_block
from model.inference.operators import PLAIN, NormWeights, Operators
from model.inference.packed_weights import Block
from model.packing import lay_out

logger = logging.getLogger(__name__)

MOST_ERROR = {torch.bfloat16: 2e-2, torch.float32: 1e-4}
"""What two forms may differ by, relative to the values' norm, by the dtype of matrix products: sums have another order,
and other values are rounded in between."""

MOST_ERROR_TF32 = 5e-3
"""The same where PyTorch's products of float32 are computed in TF32, and the kernels' are not."""

ROUNDS = 9

BALLAST_BYTES = 2**28
"""What is cleared before each round: no cache of a card holds it, and meanwhile the host gets ahead of the device."""

Timer = Callable[[Callable[[], object]], float]
"""Seconds that a call takes on the device."""


@dataclass(frozen=True)
class Work:
    """What a network's block has to do.

    Attributes:
        block: whose windows have every kind of mask.
        qkv, stream, branch: (T, 3 * width), (T, width), (T, width), zero beyond the channels.
        kinds: (nW,) int32.
        rows: (T,) int32, another order.
        grid: (nW, 5) int32.
        dtype: of matrix products.
    """

    block: Block
    qkv: Tensor
    stream: Tensor
    branch: Tensor
    kinds: Tensor
    rows: Tensor
    grid: Tensor
    dtype: torch.dtype


def draw_work(windowed: WindowNetwork, windows: int) -> Work:
    """Random work of so many windows for a network, on its device."""
    block, width, channels = windowed.body.stages[0].blocks[-1], windowed.body.width, windowed.config.embed_dim
    side, device = windowed.config.window_size, block.qkv.weight.device
    tokens = windows * side**2
    generator = torch.Generator(device).manual_seed(0)

    def draw(parts: int) -> Tensor:
        values = torch.randn(tokens, parts, width, device=device, generator=generator)
        values[..., channels:] = 0
        return values.flatten(1)

    return Work(
        block,
        draw(3).to(windowed.dtype),
        draw(1).to(windowed.exact),
        draw(1).to(windowed.dtype),
        torch.arange(windows, dtype=torch.int32, device=device) % len(block.tables.bias),
        torch.randperm(tokens, device=device, generator=generator).int(),
        torch.from_numpy(lay_out([(side, side * windows)], side)).to(device),
        windowed.dtype,
    )


def run_block(chosen: Operators, work: Work) -> Tensor:
    """The stream behind a block that has its attention by these operators, or all of it."""
    if chosen.run_block is not None:
        return chosen.run_block(work.stream, work.kinds, work.block, None)
    return compute_block(chosen, work.stream, work.stream.to(work.dtype), work.kinds, work.block)[0]


def choose_operators(windowed: WindowNetwork, time: Timer, forms: Sequence[Operators], windows: int) -> Operators:
    """The faster form of each operator for a network on its device.

    Args:
        windowed: the network.
        time: measures a call there.
        forms: the kernels, as ``load_kernels`` finds them.
        windows: how many the forms are compared on; many, so that launching a kernel is no part of its time.
    """
    if not forms:
        return PLAIN
    fused = forms[0]
    work = draw_work(windowed, windows)
    block, kinds = work.block, work.kinds
    tf32 = windowed.dtype is torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    most_error = MOST_ERROR_TF32 if tf32 else MOST_ERROR[windowed.dtype]
    attends = [partial(each.attend, work.qkv, kinds, block.tables) for each in (PLAIN, fused)]
    norms = [partial(_add_norm, each, work.stream, work.branch, block.norm1, work.rows) for each in (PLAIN, fused)]
    gathers = [partial(each.gather, work.branch, work.rows) for each in (PLAIN, fused)]
    tables = [partial(_build_tables, each, work.grid, windowed.config.window_size) for each in (PLAIN, fused)]
    chosen = Operators(
        fused.attend if _is_faster("attention", time, most_error, *attends) else PLAIN.attend,
        fused.add_norm if _is_faster("norm", time, most_error, *norms) else PLAIN.add_norm,
        gather=fused.gather if _is_faster("gather", time, most_error, *gathers) else PLAIN.gather,
    )
    if fused.index is not PLAIN.index and _is_faster("index", time, 0, *tables):
        chosen = replace(chosen, index=fused.index)
    for form in forms:
        for name, more in (("MLP", {"finish": form.finish}), ("block", {"run_block": form.run_block})):
            if None not in more.values():
                richer = replace(chosen, **more)
                runs = [partial(run_block, each, work) for each in (chosen, richer)]
                chosen = richer if _is_faster(name, time, most_error, *runs) else chosen
    return chosen


def _add_norm(form: Operators, stream: Tensor, branch: Tensor, norm: NormWeights, rows: Tensor) -> Tensor:
    return form.add_norm(stream, branch, norm, rows)[0]


def _build_tables(form: Operators, grid: Tensor, side: int) -> Tensor:
    tables = [
        form.index.locate(grid, side, roll=side // 2),
        form.index.locate(grid, side, border=1),
        form.index.mask_kinds(grid),
        form.index.pixel_rows(grid, side, 2),
    ]
    return torch.cat([table.flatten() for table in tables])


def _is_faster(
    name: str, time: Timer, most_error: float, plain: Callable[[], Tensor], fused: Callable[[], Tensor]
) -> bool:
    try:
        answer = fused()
    except torch.OutOfMemoryError:
        raise
    except _faults() as fault:
        logger.warning("the %s kernel cannot be used here: %s", name, fault)
        return False
    expected = plain().double()
    error = float((answer.double() - expected).norm() / expected.norm())
    if not error <= most_error:  # a NaN is no answer either
        logger.warning("the %s kernel is not used: its answer is off by %.2g here", name, error)
        return False
    here, there = time(fused), time(plain)
    logger.info("%s takes %.3g ms by the kernel and %.3g ms without", name, here * 1e3, there * 1e3)
    return here < there


@torch.inference_mode()
def compile_kernels(windowed: WindowNetwork) -> None:
    """Run a small forward pass, so that Triton compiles every form of a kernel that the network calls.

    Kernels that cannot be compiled are replaced: first those of a block, then all, by PyTorch's operators.
    """
    window, channels, device = windowed.config.window_size, windowed.config.num_channels, windowed.mean_in.device
    grid = torch.from_numpy(lay_out([(window, window), (window, 2 * window)], window)).to(device)
    pixels = torch.zeros(len(grid) * window**2, channels, device=device)
    chosen = windowed.operators
    for operators in (chosen, replace(chosen, run_block=None, finish=None)):
        windowed.operators = operators
        try:
            windowed(pixels, grid)
        except torch.OutOfMemoryError:
            raise
        except _faults() as fault:
            logger.warning("a kernel cannot be used here: %s", fault)
        else:
            return
    windowed.operators = PLAIN


def load_kernels(device: torch.device, block: Block) -> list[Operators]:
    """The forms in Triton for blocks like this; none on another device than CUDA's, and without Triton."""
    if device.type != "cuda":
        return []
    try:
        kernels = importlib.import_module("model.gpu.kernels")
    except ImportError:
        return []
    found: list[Operators] = kernels.kernels_for(block)
    return found


def _faults() -> tuple[type[Exception], ...]:
    """What goes wrong where a kernel cannot be compiled: Triton's own, no C compiler, no memory that is shared.

    Triton asserts that it finds CUDA's library, and imports what it has compiled.
    """
    faults: tuple[type[Exception], ...] = (
        RuntimeError, OSError, AssertionError, ImportError, subprocess.CalledProcessError,
    )  # fmt: skip
    try:
        errors = importlib.import_module("triton.errors")
    except ImportError:
        return faults
    return (*faults, errors.TritonError)


def time_on_cuda(call: Callable[[], object]) -> float:
    """Seconds that the device takes for a call on the current stream, the median of ``ROUNDS`` after a first one."""
    call()
    ballast = torch.empty(BALLAST_BYTES, dtype=torch.uint8, device="cuda")
    seconds = []
    for _ in range(ROUNDS):
        ballast.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return statistics.median(seconds)
