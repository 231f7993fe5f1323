"""How much slower small images are through Ray than without: ``python -m tests.ray_overhead``, on a quiet machine.

The plain service and one replica on Ray, in turns, each a process of its own with every processor; the embedded x2
network, PNGs of 64x64, one caller and eight. A figure is a median of windows of 50 requests.
"""

from __future__ import annotations

import asyncio
import statistics
import sys

import httpx

from app.bench.load import closed_loop
from tests.server import ServerProcess
from tests.service import noise, png

ROUNDS, WINDOWS, REQUESTS = 3, 5, 50
CALLERS = (1, 8)
SIZE = 64


async def measure(url: str) -> dict[int, list[float]]:
    """Seconds for a request, by the number of callers, in each window."""
    work = [png(noise(SIZE, SIZE, seed=seed)) for seed in range(REQUESTS)]
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:

        async def send(body: bytes) -> None:
            (await client.post("/v1/upscale", content=body, headers={"Content-Type": "image/png"})).raise_for_status()

        await closed_loop(send, work, 8)  # what happens for the first time is no part of it
        return {
            callers: [(await closed_loop(send, work, callers)).seconds / REQUESTS for _ in range(WINDOWS)]
            for callers in CALLERS
        }


def main() -> None:
    """Measure in turns, and print both figures and their ratio."""
    seconds: dict[str, dict[int, list[float]]] = {
        command: {callers: [] for callers in CALLERS} for command in ("serve", "ray")
    }
    for _ in range(ROUNDS):
        for command, found in seconds.items():
            with ServerProcess(program=("-m", "app", command), variants="small-x2", device="cpu") as server:
                for callers, windows in asyncio.run(measure(server.url)).items():
                    found[callers] += windows
    for callers in CALLERS:
        plain, on_ray = (statistics.median(seconds[command][callers]) for command in ("serve", "ray"))
        spread = ", ".join(
            f"{min(found[callers]) * 1000:.1f} to {max(found[callers]) * 1000:.1f}" for found in seconds.values()
        )
        sys.stdout.write(
            f"{callers} at once: {plain * 1000:.1f} ms a request, on Ray {on_ray * 1000:.1f} ms: "
            f"{on_ray / plain:.2f} times as long ({spread})\n"
        )


if __name__ == "__main__":
    main()
