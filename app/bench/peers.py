"""The service beside LitServe with Transformers and with OpenVINO, over the same weights, images and callers.

    python -m app.bench.peers --checkpoint FOLDER

The servers are processes of their own and take turns. OpenVINO computes at the largest size, because a model for each
of sixteen sizes takes over 16 GB: smaller images are padded, and the result is cut.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import os
import signal
import socket
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import torch

from app.bench.load import Send, Window, closed_loop, percentile
from app.bench.server import VARIANT, serve
from app.bench.service import draw_images, encode_png
from app.cgroup import usable_cpus
from model.bench.report import describe, describe_machine, seconds
from model.bench.sections import MIXED, Bench
from model.bench.workloads import mixed_sizes
from model.checkpoints import write_pretrained

PEERS = ("transformers", "openvino")
SERVED = ("auto", "exact", "high", "fast")


@asynccontextmanager
async def serve_peer(peer: str, folder: Path, threads: int, largest: int) -> AsyncIterator[Send]:
    """LitServe in a process of its own; what sends it an image and waits for the answer.

    Raises:
        RuntimeError: if it ends before it is ready.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (peer, str(folder), str(port), str(threads), str(largest))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app.bench.litserve_peer", *arguments),
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None) as client:  # noqa: S113
            while not await _is_healthy(client):
                if process.returncode is not None:
                    raise RuntimeError(f"LitServe with {peer} ended with {process.returncode}")
                await asyncio.sleep(0.2)

            async def send(body: bytes) -> None:
                response = await client.post("/predict", files={"file": ("image.png", body, "image/png")})
                response.raise_for_status()

            yield send
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # LitServe leaves its workers behind on SIGTERM
        await process.wait()


async def _is_healthy(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


async def compare(bench: Bench, precisions: Sequence[str], callers: int, rounds: int, count: int) -> list[str]:
    """Measure all servers in turns.

    Args:
        bench: threads and checkpoint.
        precisions: of our service, one server each.
        callers: requests at a time.
        rounds: turns of each server.
        count: images of a turn.

    Returns:
        The rows of a table: the service in each precision, then each peer with its ratios to them.
    """
    _, smallest, largest = MIXED
    bodies = [encode_png(image) for image in draw_images(mixed_sizes(count, smallest, largest))]
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_pretrained(bench.network(VARIANT), folder)
        servers = {f"service, {name}": serve(replace(bench, precision=name)) for name in precisions}
        servers |= {f"LitServe, {peer}": serve_peer(peer, folder, bench.threads, largest) for peer in PEERS}
        sends = {name: await stack.enter_async_context(server) for name, server in servers.items()}
        windows: dict[str, list[Window]] = {name: [] for name in sends}
        for number in range(1, rounds + 1):
            for name, send in sends.items():
                windows[name].append(await closed_loop(send, bodies, callers))
                taken = seconds(windows[name][-1].seconds)
                print(f"turn {number} of {rounds}, {name}: {count} images in {taken}", file=sys.stderr)
    return tabulate(windows, count, len(precisions))


def tabulate(windows: dict[str, list[Window]], count: int, own: int) -> list[str]:
    """The rows of the table.

    Args:
        windows: of each server, ours first.
        count: requests of a window.
        own: how many servers are ours.
    """
    figures = {
        name: (count / statistics.median(each.seconds for each in some), percentile(some, 0.5), percentile(some, 0.99))
        for name, some in windows.items()
    }
    names = list(figures)
    rows = ["| server | images/s | p50 | p99 |" + "".join(f" {name}: images/s, p50, p99 |" for name in names[:own])]
    rows.append("| --- " * (4 + own) + "|")
    for name, (rate, half, most) in figures.items():
        ratios = [(figures[mine][0] / rate, half / figures[mine][1], most / figures[mine][2]) for mine in names[:own]]
        cells = "".join(f" {' / '.join(f'{ratio:.2f}' for ratio in each)} |" for each in ratios)
        rows.append(f"| {name} | {rate:.2f} | {seconds(half)} | {seconds(most)} |{cells}")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare and print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--checkpoint", type=Path, help="lightweight-x2 weights; random ones by default")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="of each server")
    parser.add_argument("--callers", type=int, default=8, help="requests at a time")
    parser.add_argument("--images", type=int, default=MIXED[0], help="of a turn, 32 to 200 pixels a side")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server")
    parser.add_argument("--precision", choices=SERVED, action="append", help="of the service; may be repeated")
    chosen = parser.parse_args(arguments)
    if missing := [name for name in ("litserve", "transformers", "openvino") if not importlib.util.find_spec(name)]:
        parser.error(f"{', '.join(missing)} cannot be imported. Install: pip install 'swin2sr-serve[bench]'")
    bench = Bench(torch.device("cpu"), chosen.threads, checkpoint=chosen.checkpoint)
    print(describe(describe_machine(bench.device, bench.threads)), end="\n\n")
    precisions = chosen.precision or ["auto"]
    print("\n".join(asyncio.run(compare(bench, precisions, chosen.callers, chosen.rounds, chosen.images))))


if __name__ == "__main__":
    main()
