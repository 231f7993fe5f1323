"""The sections for a GPU: correctness of the values, speed, quality, and a profile.

Every time is from tiles in main memory to values in main memory, on both sides. The sections also run on a CPU with
less work, so that they can be tested without a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from model.bench.baselines import Form, compiled_bfloat16, eager_bfloat16, eager_float32, load_port
from model.bench.blocks import compare_block
from model.bench.profile import count_arithmetic, count_traffic, time_families
from model.bench.report import Row, compare, seconds
from model.bench.roofline import Ceilings, least_bytes, measure_ceilings, multiply_adds_per_pixel
from model.bench.sections import Bench, Section
from model.bench.timing import Run, Timing, attempt
from model.bench.workloads import draw_pixels, mixed_sizes
from model.evaluate import evaluate_folder
from model.gpu.pending import PendingBatch
from model.inference.cpu import Inference
from model.network import Swin2SR
from model.padding import pad, to_tensor
from model.precision import PRECISIONS
from model.types import Pixels8, Values
from model.upscaler import Upscaler


@dataclass(frozen=True)
class Amount:
    """The amount of work.

    Attributes:
        batch: number of images, and their side.
        mixed: number of images, their smallest and their largest side.
        checked: tiles (height, width) whose values are compared with float64.
        large: one more tile for the lightweight network, with more windows than CUDA graphs are recorded for.
    """

    batch: tuple[int, int]
    mixed: tuple[int, int, int]
    checked: tuple[tuple[int, int], ...]
    large: tuple[int, int]


AMOUNTS = {
    "cuda": Amount((8, 256), (64, 32, 256), ((40, 64), (64, 64), (8, 24)), (480, 320)),
    "cpu": Amount((2, 32), (4, 16, 40), ((16, 24), (8, 8)), (32, 24)),
}

MOST_ERROR = {"fast": 2e-2, "high": 5e-3, "exact": 1e-4}
"""Largest relative error of the image with which the values count as correct."""

BATCHES = 4
"""Batches of the packed images in the batcher, and in the direct loop."""


class WrongAnswerError(Exception):
    """The values of the network are wrong, so its speed is not reported."""


def check_values(bench: Bench) -> Iterator[Row]:
    """The values of this device, each image alone and all in one pack, against the network in float64 on the CPU.

    Raises:
        WrongAnswerError: if they are off by more than ``MOST_ERROR``.
    """
    amount = AMOUNTS[bench.device.type]
    for variant, sizes in (
        ("lightweight-x2", (*amount.checked, amount.large)),
        ("classical-x2", amount.checked),
    ):
        tiles = [draw_pixels(*size, seed=seed) for seed, size in enumerate(sizes)]
        expected = _in_float64(bench.network(variant), tiles)
        for precision in PRECISIONS:
            upscaler = bench.upscaler(variant, precision)
            together = upscaler.forward(tiles)
            alone = [upscaler.forward([tile])[0] for tile in tiles]
            work = f"{variant}, {precision}"
            for how, values in (("in one pack", together), ("alone", alone)):
                error = _relative_error(values, expected)
                yield Row(f"{work}, {how}", "float64", error, "relative error")
                if not error <= MOST_ERROR[upscaler.precision]:  # also if it is NaN
                    raise WrongAnswerError(f"{work}, {how}: off by {error:.3g} of the image.")


def _in_float64(network: Swin2SR, tiles: Sequence[Pixels8]) -> list[Values]:
    with torch.inference_mode():
        exact = Inference(network.double()).reconstruct([to_tensor(tile, torch.float64) for tile in tiles])
    return [each.image.permute(1, 2, 0).float().numpy() for each in exact]


def _relative_error(values: Sequence[Values], expected: Sequence[Values]) -> float:
    """The norm of the differences over the norm of the images without their means."""
    off = sum(float(np.square(value - right).sum()) for value, right in zip(values, expected, strict=True))
    whole = sum(float(np.square(right - right.mean()).sum()) for right in expected)
    return float(np.sqrt(off / whole))


def compare_batch(bench: Bench) -> Iterator[Row]:
    """Classical x2 on a batch of equal images: against Transformers in two forms, and against the card."""
    count, side = AMOUNTS[bench.device.type].batch
    tiles = [draw_pixels(side, side, seed=seed) for seed in range(count)]
    forms = {"Transformers float32": eager_float32, "Transformers bfloat16, torch.compile": compiled_bfloat16}
    yield from _compare(bench, "classical-x2", tiles, f"{side}x{side}, batch {count}", forms)


def compare_packed(bench: Bench) -> Iterator[Row]:
    """Lightweight x2 on many images of as many sizes in one pack: against Transformers one by one, and the card."""
    tiles = _draw_mixed(bench)
    forms = {"Transformers bfloat16, one by one": eager_bfloat16}
    yield from _compare(bench, "lightweight-x2", tiles, f"{len(tiles)} images of {len(tiles)} sizes, packed", forms)


def _compare(
    bench: Bench, variant: str, tiles: Sequence[Pixels8], title: str, forms: Mapping[str, Form]
) -> Iterator[Row]:
    work, network = f"{variant} {title}", bench.network(variant)
    arithmetic = 2 * multiply_adds_per_pixel(network) * _area(tiles)
    upscaler = bench.upscaler(variant)
    runs, faults = attempt({name: partial(_run, form, bench, variant, tiles) for name, form in forms.items()})
    ceilings = measure_ceilings(upscaler.device, upscaler.dtype)
    timings = bench.time({"here": partial(upscaler.forward, tiles), **runs})
    yield from compare(work, timings, faults)
    mine = timings["here"]
    moved = least_bytes(upscaler.config, _area(tiles), upscaler.dtype.itemsize)
    floor = max(arithmetic / ceilings.flops, moved / ceilings.bandwidth)
    there = f"{seconds(floor)} at {_describe(ceilings)}"
    yield Row(work, "floor", mine.median / floor, "times as long", _show(mine), there)


def _run(form: Form, bench: Bench, variant: str, tiles: Sequence[Pixels8]) -> Run:
    return form(load_port(bench.network(variant)), tiles, bench.device)


def compare_batcher(bench: Bench) -> Iterator[Row]:
    """Images per second through the service's batcher when everything waits, over the same batches without it."""
    tiles = sorted(_draw_mixed(bench), key=_pixels)
    upscaler = bench.upscaler()
    groups = [tiles[first::BATCHES] for first in range(BATCHES)]
    work, against = "batcher, saturated", "direct loop"
    try:
        # By its name, because `model` does not depend on `app` and can be measured without it.
        batcher = importlib.import_module("app.batching.batcher").Batcher(
            lambda _key, batch: _begin(upscaler, batch, bench.threads),
            _pixels,
            max_batch_cost=max(_area(group) for group in groups),
            max_queue_cost=2**62,
            max_queue_requests=2**31,
        )
    except ImportError as error:
        yield Row(work, against, None, "of the throughput", "", f"not installed: {error}")
        return
    batcher.start()

    def saturate() -> None:
        submissions = [batcher.admit("lightweight-x2", [tile]) for group in groups for tile in group]
        for submission in submissions:
            submission.futures[0].result()

    def loop() -> None:
        for group in groups:
            upscaler.forward(group)

    timings = bench.time({"batcher": saturate, "direct": loop})
    batcher.close()
    through, direct = timings["batcher"], timings["direct"]
    here, there = (f"{len(tiles) / timing.median:.3g} images/s" for timing in (through, direct))
    yield Row(work, against, direct.median / through.median, "of the throughput", here, there)


def _begin(upscaler: Upscaler, tiles: Sequence[Pixels8], threads: int) -> list[Values] | PendingBatch:
    """Run a batch as the service does."""
    if torch.get_num_threads() != threads:  # every thread has its own number
        torch.set_num_threads(threads)
    return upscaler.launch(tiles) if upscaler.runs_ahead else upscaler.forward(tiles)


def compare_quality(bench: Bench) -> Iterator[Row]:
    """PSNR on Y of a test set with the checkpoint, `fast` and `exact`."""
    if bench.checkpoint is None or bench.testset is None:
        why = "give --checkpoint and --testset"
        yield Row("lightweight-x2, fast", "exact", None, "dB less", "", why)
        return
    found = {}
    for precision in ("fast", "exact"):
        upscaler = bench.upscaler("lightweight-x2", precision)
        found[precision] = evaluate_folder(upscaler, bench.testset).upscaled.psnr_y
    here, there = (f"{value:.4f} dB" for value in found.values())
    work = f"lightweight-x2 on {bench.testset.name}, fast"
    yield Row(work, "exact", found["exact"] - found["fast"], "dB less", here, there)


def profile_card(bench: Bench) -> Iterator[Row]:
    """Time of each family of kernels, and its share of the hardware limits."""
    count, side = AMOUNTS[bench.device.type].batch
    works = {"classical-x2": [draw_pixels(side, side)] * count, "lightweight-x2": _draw_mixed(bench)}
    for variant, tiles in works.items():
        upscaler = bench.upscaler(variant)
        ceilings = measure_ceilings(upscaler.device, upscaler.dtype)
        arithmetic = count_arithmetic(bench.network(variant), _area(tiles))
        traffic = count_traffic(upscaler.config, _area(tiles), upscaler.dtype.itemsize)
        families = time_families(upscaler, tiles, bench.runs)
        whole = sum(families.values())
        for family, spent in families.items():
            rates = []
            if family in arithmetic:
                rates.append(_share(arithmetic[family] / spent, ceilings.flops, "TFLOP/s"))
            if family in traffic:
                rates.append(_share(traffic[family] / spent, ceilings.bandwidth, "TB/s"))
            yield Row(f"{variant}, time in", family, spent / whole, "of the time", seconds(spent), ", ".join(rates))
        wall = bench.time({"here": partial(upscaler.forward, tiles)})["here"]
        busy = f"{seconds(whole)} in kernels"
        yield Row(f"{variant}, kernels", "whole forward", whole / wall.median, "of the time", busy, _show(wall))


def _share(rate: float, ceiling: float, unit: str) -> str:
    return f"{rate / 1e12:.3g} {unit}, {rate / ceiling:.0%} of the measured limit"


def _describe(ceilings: Ceilings) -> str:
    return f"{ceilings.flops / 1e12:.3g} TFLOP/s, {ceilings.bandwidth / 1e12:.3g} TB/s"


def _draw_mixed(bench: Bench) -> list[Pixels8]:
    """Images of different sizes, padded to the window."""
    sizes = mixed_sizes(*AMOUNTS[bench.device.type].mixed)
    return [pad(draw_pixels(*size), 8) for size in sizes]


def _pixels(tile: Pixels8) -> int:
    return tile.shape[0] * tile.shape[1]


def _area(tiles: Sequence[Pixels8]) -> int:
    return sum(_pixels(tile) for tile in tiles)


def _show(timing: Timing) -> str:
    return seconds(timing.median, timing.spread)


CARD_SECTIONS: Mapping[str, Section] = {
    "values": check_values,
    "batch": compare_batch,
    "packed": compare_packed,
    "batcher": compare_batcher,
    "quality": compare_quality,
    "kernels": profile_card,
    "block": compare_block,
}
"""Sections for a GPU by their names on the command line."""
