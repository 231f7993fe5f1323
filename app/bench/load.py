"""Load generators: closed loop and open loop, and the latencies of their requests in windows of the same work."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

Send = Callable[[bytes], Awaitable[None]]
"""Sends a request and waits for its response; raises if it is not an image."""

AGREEING, AGREEMENT, MOST_WINDOWS = 3, 1.1, 6
"""A figure is stable if ``AGREEING`` windows in a row, of at most ``MOST_WINDOWS``, are within the factor
``AGREEMENT``."""


@dataclass(frozen=True)
class Window:
    """A period of steady work: its duration, and the latency of each request that ended in it, in seconds."""

    seconds: float
    latencies: tuple[float, ...]


async def until_stable(measure: Callable[[], Awaitable[Window]]) -> list[Window]:
    """Measure until the last windows agree, or ``MOST_WINDOWS`` were measured, and return the last ones."""
    windows: list[Window] = []
    while len(windows) < MOST_WINDOWS:
        windows.append(await measure())
        if len(windows) >= AGREEING and is_stable(windows[-AGREEING:]):
            break
    return windows[-AGREEING:]


def is_stable(windows: Sequence[Window]) -> bool:
    """Whether windows of the same work took about the same time."""
    lengths = [window.seconds for window in windows]
    return max(lengths) <= AGREEMENT * min(lengths)


def middle(windows: Sequence[Window]) -> float:
    """Seconds of the window in the middle."""
    return statistics.median(window.seconds for window in windows)


def percentile(windows: Sequence[Window], share: float) -> float:
    """The latency in seconds that this share of all requests stayed below."""
    latencies = sorted(latency for window in windows for latency in window.latencies)
    return latencies[min(len(latencies) - 1, int(share * len(latencies)))]


async def closed_loop(send: Send, work: Sequence[bytes], concurrency: int) -> Window:
    """``concurrency`` clients, each of which sends its next request when it has the response to the last one.

    The window begins when ``concurrency`` requests have ended, and contains ``len(work)`` requests.
    """
    stream = itertools.cycle(work)
    ends: list[float] = []
    latencies: list[float] = []

    async def call() -> None:
        while len(ends) < concurrency + len(work):
            started = time.perf_counter()
            await send(next(stream))
            ends.append(time.perf_counter())
            latencies.append(ends[-1] - started)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(call())
    last = concurrency + len(work)
    return Window(ends[last - 1] - ends[concurrency - 1], tuple(latencies[concurrency:last]))


async def open_loop(send: Send, work: Sequence[bytes], rate: float, seed: int = 0) -> Window:
    """Requests at random times, ``rate`` a second on average, independent of the responses.

    Latency is measured from the time at which a request was due.
    """
    generator = random.Random(seed)  # noqa: S311 - not for secrets
    latencies: list[float] = []

    async def call(body: bytes, due: float) -> None:
        await asyncio.sleep(due - time.perf_counter())
        await send(body)
        latencies.append(time.perf_counter() - due)

    started = due = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for body in work:
            due += generator.expovariate(rate)
            group.create_task(call(body, due))
    return Window(time.perf_counter() - started, tuple(latencies))
