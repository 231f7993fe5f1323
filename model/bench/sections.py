"""The comparisons, in the order of the table; each section yields its rows as they are measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model.bench.baselines import BASELINES, load_port
from model.bench.memory import NoMemoryError, measure_peak
from model.bench.profile import profile_forward
from model.bench.report import Row, mebibytes, seconds
from model.bench.roofline import matrix_product, multiply_adds_per_pixel
from model.bench.timing import Run, Timing, interleave
from model.bench.workloads import draw_pixels, make_network, mixed_sizes, pad_to_largest, upscale_tiled
from model.network import Swin2SR
from model.padding import to_tensor
from model.precision import PRECISIONS
from model.upscaler import Upscaler

logger = logging.getLogger(__name__)

FORWARD = (("lightweight-x2", 128), ("lightweight-x2", 256), ("classical-x2", 128))
"""Variants and sides of the images that are compared with other runtimes."""

TINY = (("lightweight-x2", 8), ("lightweight-x2", 64))
"""The same where the arithmetic takes so little time that what stands around it counts."""

MANY_THREADS = 16
"""More threads than most machines have processors, as in a container that sees the processors of its host."""

GROWTH = (64, 128, 256, 512, 1024)
UNIT = 128
"""Sides of the images whose time per pixel is compared, and the one that it is compared with."""

MIXED = (16, 32, 200)
"""How many images of different sizes share a pack, and their smallest and largest side."""

LARGE = 1024
"""Side of the image whose peak memory is measured."""


@dataclass(frozen=True)
class Bench:
    """The parameters of all sections.

    Attributes:
        device: of all measurements.
        threads: of the forward pass on a CPU.
        runs: measurements of each side, an odd number.
        checkpoint: of a lightweight x2 network; random weights without one.
        testset: folder of images whose fidelity is measured, as ``swin2sr evaluate`` takes it.
        precision: of the upscaler that is compared with others, as in ``Upscaler``.
    """

    device: torch.device
    threads: int
    runs: int = 5
    checkpoint: Path | None = None
    testset: Path | None = None
    precision: str = "auto"
    _made: dict[tuple[str, str], Upscaler] = field(init=False, default_factory=dict, repr=False, compare=False)

    def network(self, variant: str) -> Swin2SR:
        """The variant's network, for ``lightweight-x2`` with the checkpoint."""
        return make_network(variant, self.checkpoint if variant == "lightweight-x2" else None)

    def upscaler(self, variant: str = "lightweight-x2", precision: str | None = None) -> Upscaler:
        """The variant's upscaler, in this precision or the bench's. Cached, because creating it takes long on a GPU."""
        key = (variant, precision or self.precision)
        if key not in self._made:
            self._made[key] = Upscaler(self.network(variant), device=str(self.device), precision=key[1])
        return self._made[key]

    def time(self, sides: Mapping[str, Run]) -> dict[str, Timing]:
        """Time the sides in turns."""
        return interleave(sides, self.runs, self.device)


def compare_forward(bench: Bench, variant: str, side: int) -> Iterator[Row]:
    """One image through the network, against other runtimes and against the arithmetic floor."""
    work, network, image = f"{variant} {side}x{side}", bench.network(variant), draw_pixels(side, side)
    work_per_pixel = multiply_adds_per_pixel(network)
    baselines, missing = _baselines(network, image, bench.device)
    upscaler = Upscaler(network, device=str(bench.device), precision=bench.precision)
    product, product_work = matrix_product(bench.device, upscaler.dtype)
    [expected] = upscaler.forward([image])
    here = {"here": lambda: upscaler.forward([image])}
    timings = bench.time({**here, **baselines, "floor": product})
    mine = timings["here"]
    for name, run in baselines.items():
        theirs = timings[name]
        apart = float(np.abs(np.asarray(run())[0].transpose(1, 2, 0) - expected).max())
        yield Row(f"{work}, values", name, apart, "largest difference")
        yield Row(work, name, theirs.median / mine.median, "times as fast", _show(mine), _show(theirs))
    for name in missing:
        yield Row(work, name, None, "times as fast", _show(mine), "not installed")
    rate = product_work / timings["floor"].median
    floor = work_per_pixel * side**2 / rate
    there = f"{seconds(floor)} at {2 * rate / 1e9:.0f} GFLOP/s"
    yield Row(work, "arithmetic floor", mine.median / floor, "times as long", _show(mine), there)


def _baselines(network: Swin2SR, image: np.ndarray, device: torch.device) -> tuple[dict[str, Run], list[str]]:
    """The baselines that are installed, ready to run on an image, and the names of those that are not."""
    try:
        port: nn.Module = load_port(network).to(device)
    except ImportError:
        return {}, list(BASELINES)
    ready: dict[str, Run] = {}
    canvas = to_tensor(image)[None].to(device)
    makers = {name: make for name, make in BASELINES.items() if device.type == "cpu" or name == "Transformers"}
    for name, make in makers.items():
        try:
            ready[name] = make(port, canvas)
        except ImportError:
            continue
    return ready, [name for name in makers if name not in ready]


def compare_growth(bench: Bench) -> Iterator[Row]:
    """Time per pixel as the image grows, tiled and stitched as the service does."""
    upscaler = bench.upscaler()
    images = {side: draw_pixels(side, side) for side in GROWTH}
    timings = bench.time({str(side): _tiled(upscaler, images[side]) for side in GROWTH})
    microseconds = {side: timings[str(side)].median / side**2 * 1e6 for side in GROWTH}
    for side in GROWTH:
        if side != UNIT:
            here = f"{microseconds[side]:.2f} us a pixel"
            there = f"{microseconds[UNIT]:.2f} us a pixel"
            growth = microseconds[side] / microseconds[UNIT]
            yield Row(
                f"lightweight-x2 {side}x{side}, per pixel", f"{UNIT}x{UNIT}", growth, "times as long", here, there
            )


def compare_precisions(bench: Bench) -> Iterator[Row]:
    """`high` and `fast` against `exact`, in time and in values, where the hardware has them."""
    for variant, side in FORWARD[1:]:
        image = draw_pixels(side, side)
        upscalers = {name: bench.upscaler(variant, name) for name in PRECISIONS}
        timings = bench.time({name: partial(upscaler.forward, [image]) for name, upscaler in upscalers.items()})
        [expected] = upscalers["exact"].forward([image])
        for name in PRECISIONS[1:]:
            work = f"{variant} {side}x{side} in {name}"
            if upscalers[name].precision != name:
                yield Row(work, "exact", None, "times as fast", there="not on this hardware")
                continue
            apart = float(np.abs(upscalers[name].forward([image])[0] - expected).max())
            yield Row(f"{work}, values", "exact", apart, "largest difference")
            here, there = timings[name], timings["exact"]
            yield Row(work, "exact", there.median / here.median, "times as fast", _show(here), _show(there))


def compare_threads(bench: Bench) -> Iterator[Row]:
    """A tiny image with far more threads than processors, against the bench's."""
    if bench.device.type != "cpu":
        return
    upscaler, (variant, side) = bench.upscaler(), TINY[-1]
    image = draw_pixels(side, side)

    def run(threads: int) -> None:
        torch.set_num_threads(threads)
        upscaler.forward([image])

    try:
        timings = bench.time({"many": partial(run, MANY_THREADS), "few": partial(run, bench.threads)})
    finally:
        torch.set_num_threads(bench.threads)
    many, few = timings["many"], timings["few"]
    work = f"{variant} {side}x{side} with {MANY_THREADS} threads"
    yield Row(work, f"{bench.threads} threads", many.median / few.median, "times as long", _show(many), _show(few))


def _tiled(upscaler: Upscaler, image: np.ndarray) -> Run:
    return lambda: upscale_tiled(upscaler, image)


def compare_mixed(bench: Bench) -> Iterator[Row]:
    """Images of different sizes in one pack, against the two methods without packing."""
    upscaler = bench.upscaler()
    count, smallest, largest = MIXED
    images = [draw_pixels(*size) for size in mixed_sizes(count, smallest, largest)]
    padded = pad_to_largest(images)
    sides: dict[str, Run] = {
        "packed": lambda: upscaler(images),
        "one by one": lambda: [upscaler([image]) for image in images],
        "padding all to the largest": lambda: upscaler(padded),
    }
    timings = bench.time(sides)
    work, packed = f"{count} images of {smallest} to {largest} a side, packed", timings["packed"]
    for name in list(sides)[1:]:
        ratio = timings[name].median / packed.median
        yield Row(work, name, ratio, "times as fast", _show(packed), _show(timings[name]))


def compare_memory(bench: Bench) -> Iterator[Row]:
    """Peak resident memory of one large image, against the whole image in Transformers."""
    if bench.device.type != "cpu":
        return
    work = f"lightweight-x2 {LARGE}x{LARGE}, peak resident memory"
    here = measure_peak("here", LARGE, bench.checkpoint, bench.threads)
    try:
        there = measure_peak("Transformers", LARGE, bench.checkpoint, bench.threads)
    except ImportError:
        yield Row(work, "Transformers", None, "of the memory", mebibytes(here), "not installed")
    except NoMemoryError as error:
        yield Row(work, "Transformers", None, "of the memory", mebibytes(here), f"more than there is: {error}")
    else:
        yield Row(work, "Transformers", here / there, "of the memory", mebibytes(here), mebibytes(there))


def profile_forwards(bench: Bench) -> Iterator[Row]:
    """Profile of the forward passes of the first section."""
    for variant, side in FORWARD:
        shares = profile_forward(bench.upscaler(variant), draw_pixels(side, side), bench.runs)
        for family, share in shares.items():
            yield Row(f"{variant} {side}x{side}, time in", family, share, "of the time")


def _show(timing: Timing) -> str:
    return seconds(timing.median, timing.spread)


Section = Callable[[Bench], Iterator[Row]]

SECTIONS: Mapping[str, Section] = {
    **{
        f"{variant}-{side}": partial(compare_forward, variant=variant, side=side) for variant, side in (*FORWARD, *TINY)
    },
    "precisions": compare_precisions,
    "threads": compare_threads,
    "mixed": compare_mixed,
    "growth": compare_growth,
    "memory": compare_memory,
    "profile": profile_forwards,
}
"""All comparisons by the names of the command line."""


def measure(bench: Bench, chosen: Iterable[str], sections: Mapping[str, Section] = SECTIONS) -> Iterator[Row]:
    """Run sections by their names, in the table's order. A section that fails gives a row that says so."""
    torch.set_num_threads(bench.threads)
    names = set(chosen)
    for name, section in sections.items():
        if name not in names:
            continue
        try:
            yield from section(bench)
        except (RuntimeError, OSError, ImportError, AssertionError) as error:
            logger.exception("the section %s failed", name)
            yield Row(name, "itself", None, "failed", there=str(error).partition("\n")[0])
