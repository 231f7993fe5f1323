"""Prints the tables of docs/operations.md: memory by image size and format, and throughput by variant.

    python -m tests.sizing [VARIANT]

Memory is the server's largest resident memory during a request, less that when it became ready.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import httpx
from PIL import Image

from app.bench.service import draw_images
from tests.server import ServerProcess

SIDES = (512, 1024)
FORMATS = ("png", "jpeg", "webp", "avif")


def photo(side):
    """The sample image as a JPEG of this many pixels a side."""
    file = io.BytesIO()
    [image] = draw_images([(side, side)])
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return file.getvalue()


def memory(pid, name):
    """A figure of /proc/PID/status in MiB."""
    return int(re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def peak(server, body, format_):
    """MiB at the peak of a request, and the milliseconds of its forward pass."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    response = httpx.post(f"{server.url}/v1/upscale?format={format_}", content=body, timeout=600)
    response.raise_for_status()
    forward = float(re.search(r"forward;dur=([\d.]+)", response.headers["server-timing"])[1])
    return memory(server.process.pid, "VmHWM"), forward


def main():
    """Measure and print."""
    variant = (sys.argv[1:] or ["small-x2"])[0]
    with ServerProcess(variants=variant) as server:
        ready = memory(server.process.pid, "VmRSS")
        print(f"{variant}: {ready:.0f} MiB when ready")
        print("| input, JPEG | " + " | ".join(FORMATS) + " | pixels a second |\n" + "| --- " * (len(FORMATS) + 2) + "|")
        for side in SIDES:
            figures = [peak(server, photo(side), format_) for format_ in FORMATS]
            speed = side**2 / min(forward for _, forward in figures) * 1000
            cells = " | ".join(f"{most - ready:.0f} MiB" for most, _ in figures)
            print(f"| {side}x{side} | {cells} | {speed:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
