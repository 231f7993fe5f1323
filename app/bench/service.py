"""The batcher and the whole service, over the same images without either."""

from __future__ import annotations

import asyncio
import io
import itertools
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from app.batching.batcher import Batcher
from app.bench.load import Send, Window, closed_loop, is_stable, middle, open_loop, percentile, until_stable
from app.bench.server import VARIANT, serve
from model.bench.report import Row, describe, describe_machine, seconds, show, write_json
from model.bench.sections import MIXED, SECTIONS, Bench, measure
from model.bench.workloads import mixed_sizes
from model.padding import pad
from model.types import Pixels8
from model.upscaler import Upscaler

SERVICE = "service"
"""The section that is added to those of ``model.bench``."""

CONCURRENCY = 8
WINDOW_SECONDS = 5.0
"""What a window lasts at least."""

REQUEST_SIDE, REQUESTS = 512, 3
"""Pixels a side of the image of a whole request, and how many requests are timed."""

OPEN_LOAD = 0.7
"""Arrivals of the open loop over what the closed loop has finished."""


def run(bench: Bench, only: Sequence[str] | None = None, json: Path | None = None) -> None:
    """Measure, print the table and write the file: what ``swin2sr bench`` does.

    Args:
        bench: what all sections have in common.
        only: names of sections; all by default.
        json: file for the results.

    Raises:
        ValueError: if a section is unknown, or the checkpoint cannot be used; and at the end if a section failed.
    """
    known = (*SECTIONS, SERVICE)
    if unknown := [name for name in only or () if name not in known]:
        raise ValueError(f"there is no section {unknown[0]!r}; there are {', '.join(known)}")
    machine = describe_machine(bench.device, bench.threads)
    sys.stdout.write(f"{describe(machine)}\n\n")
    service = measure_service(bench) if SERVICE in (only or known) else ()
    rows = list(show(itertools.chain(measure(bench, only or known), service)))
    if json:
        write_json(json, machine, rows)
    if failed := [row.work for row in rows if row.meaning == "failed"]:
        raise ValueError(f"not everything was measured: {', '.join(failed)} failed")


def measure_service(bench: Bench) -> Iterator[Row]:
    """The batcher, and the whole service, over the direct packed loop."""
    torch.set_num_threads(bench.threads)
    count, smallest, largest = MIXED
    images = draw_images(mixed_sizes(count, smallest, largest))
    upscaler = bench.upscaler(VARIANT)
    rounds = _rounds(upscaler, images)
    yield _compare_batcher(upscaler, images, bench)
    yield from asyncio.run(_measure_server(bench, upscaler, images, rounds))


def draw_images(sizes: Sequence[tuple[int, int]]) -> list[Pixels8]:
    """The sample image (H, W, 3) in several sizes (height, width)."""
    with files("app").joinpath("web/sample.png").open("rb") as file, Image.open(file) as sample:
        return [np.asarray(sample.convert("RGB").resize((width, height))) for height, width in sizes]


def run_direct(upscaler: Upscaler, images: Sequence[Pixels8]) -> None:
    """Upscale images without any service, as many at once as the service's callers send."""
    for first in range(0, len(images), CONCURRENCY):
        upscaler(images[first : first + CONCURRENCY])


def _rounds(upscaler: Upscaler, images: Sequence[Pixels8]) -> int:
    run_direct(upscaler, images)
    started = time.perf_counter()
    run_direct(upscaler, images)
    return math.ceil(WINDOW_SECONDS / (time.perf_counter() - started))


def _compare_batcher(upscaler: Upscaler, images: Sequence[Pixels8], bench: Bench) -> Row:
    """All the images at once into the batcher, which packs what fits its budget, over the loop."""
    tiles = [pad(image, upscaler.window_size) for image in images]
    batcher: Batcher[Pixels8, NDArray[np.float32]] = Batcher(
        lambda _key, batch: _forward(upscaler, batch, bench.threads),
        lambda tile: tile.shape[0] * tile.shape[1],
        max_batch_cost=sum(tile.shape[0] * tile.shape[1] for tile in tiles) // (len(tiles) // CONCURRENCY),
        max_queue_cost=2**62,
        max_queue_requests=2**31,
    )
    batcher.start()

    def saturate() -> None:
        submissions = [batcher.admit(VARIANT, [tile]) for tile in tiles]
        for submission in submissions:
            submission.futures[0].result()

    timings = bench.time({"batcher": saturate, "direct": lambda: run_direct(upscaler, images)})
    batcher.close()
    through, direct = timings["batcher"], timings["direct"]
    figure = direct.median / through.median
    here, there = (f"{len(images) / timing.median:.2f} images/s" for timing in (through, direct))
    return Row("batcher, saturated", "direct packed loop", figure, "of the throughput", here, there)


def _forward(upscaler: Upscaler, tiles: Sequence[Pixels8], threads: int) -> list[NDArray[np.float32]]:
    if torch.get_num_threads() != threads:  # every thread has its own number
        torch.set_num_threads(threads)
    return upscaler.forward(tiles)


async def _measure_server(bench: Bench, upscaler: Upscaler, images: Sequence[Pixels8], rounds: int) -> list[Row]:
    bodies = [encode_png(image) for image in images]
    work = list(bodies) * rounds
    async with serve(bench) as send:
        request = await _compare_request(send, upscaler)
        alone = await until_stable(lambda: closed_loop(send, work, 1))
        direct: list[float] = []

        async def in_turns() -> Window:
            started = time.perf_counter()
            for _ in range(rounds):
                run_direct(upscaler, images)
            direct.append(time.perf_counter() - started)
            return await closed_loop(send, work, CONCURRENCY)

        busy = await until_stable(in_turns)
        rate = OPEN_LOAD * len(work) / middle(busy)
        arrivals = [await open_loop(send, work, rate, seed) for seed in range(len(busy))]
    rows = _rows(len(work), alone=alone, busy=busy, direct=direct[-len(busy) :], rate=rate, arrivals=arrivals)
    return [request, *rows]


async def _compare_request(send: Send, upscaler: Upscaler) -> Row:
    """A request with a PNG and its PNG response, over the forward pass of the image, in turns."""
    [image] = draw_images([(REQUEST_SIDE, REQUEST_SIDE)])
    body, whole, forward = encode_png(image), [], []
    for _ in range(1 + REQUESTS):  # the first one warms up
        whole.append((await closed_loop(send, [body], 1)).seconds)
        started = time.perf_counter()
        upscaler([image])
        forward.append(time.perf_counter() - started)
    here, there = (statistics.median(times[1:]) for times in (whole, forward))
    work = f"request of {REQUEST_SIDE}x{REQUEST_SIDE}, PNG to PNG"
    return Row(work, "the network alone", here / there, "times as long", seconds(here), seconds(there))


def _rows(
    count: int,
    *,
    alone: Sequence[Window],
    busy: Sequence[Window],
    direct: Sequence[float],
    rate: float,
    arrivals: Sequence[Window],
) -> list[Row]:
    loop = statistics.median(direct)
    there = f"{count / loop:.2f} images/s"
    rows = []
    for callers, windows in ((1, alone), (CONCURRENCY, busy)):
        here = f"{count / middle(windows):.2f} images/s, {_latency(windows)}"
        if not is_stable(windows):
            here += ", not stable"
        work = f"service, closed loop, {callers} at once"
        rows.append(Row(work, "direct packed loop", loop / middle(windows), "of the throughput", here, there))
    figure = percentile(arrivals, 0.5) / percentile(alone, 0.5)
    work = f"service, open loop, {rate:.2f} images/s"
    return [*rows, Row(work, "one at once", figure, "times as long", _latency(arrivals), _latency(alone))]


def _latency(windows: Sequence[Window]) -> str:
    return f"half in {seconds(percentile(windows, 0.5))}, 99 % in {seconds(percentile(windows, 0.99))}"


def encode_png(image: Pixels8) -> bytes:
    """An image (H, W, 3) as PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
