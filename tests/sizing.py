"""Prints the tables of docs/operations.md on sizing.

    python -m tests.sizing memory [--variant NAME]
    python -m tests.sizing throughput [--variant NAME] [--checkpoint FOLDER]

Memory is the server's largest resident memory during a request, less that when it became ready. Throughput is that of
the network in input pixels: median of passes in which the precisions take turns.
"""

from __future__ import annotations

import argparse
import io
import re
from functools import partial
from pathlib import Path

import httpx
import imagecodecs
import numpy as np
import torch
from PIL import Image

from app.bench.service import draw_images
from app.cgroup import usable_cpus
from model.bench.report import describe, describe_machine
from model.bench.timing import interleave
from model.bench.workloads import draw_pixels
from model.precision import PRECISIONS
from model.upscaler import Upscaler
from model.variants import VARIANTS, embedded_path
from tests.server import ServerProcess

SIDES = (512, 1024, 2048)
DEEP = 1024
"""Side of the image of 16 bits a sample."""
FORMATS = ("png", "jpeg", "webp", "avif", "tiff")


def photos():
    """The sample image in growing sizes as JPEG, and once as PNG of 16 bits, by what the table calls them."""
    for side in SIDES:
        [image] = draw_images([(side, side)])
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=90)
        yield f"{side}x{side}, JPEG", file.getvalue()
    [image] = draw_images([(DEEP, DEEP)])
    yield f"{DEEP}x{DEEP}, PNG of 16 bits", imagecodecs.png_encode(image.astype(np.uint16) * 257)


def resident(pid, name):
    """A figure of /proc/PID/status in MiB."""
    return int(re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def peak(server, body, format_):
    """MiB at the peak of a request; None if the format cannot hold the result."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    response = httpx.post(f"{server.url}/v1/upscale?format={format_}", content=body, timeout=600)
    if response.status_code == 413:
        return None
    response.raise_for_status()
    return resident(server.process.pid, "VmHWM")


def memory(variant):
    """Memory of single requests by size and output format."""
    with ServerProcess(variants=variant) as server:
        ready = resident(server.process.pid, "VmRSS")
        print(f"{variant}: {ready:.0f} MiB when ready\n")
        print("| input | " + " | ".join(FORMATS) + " |\n" + "| --- " * (len(FORMATS) + 1) + "|")
        for name, body in photos():
            figures = [peak(server, body, format_) for format_ in FORMATS]
            cells = (f"{figure - ready:.0f} MiB" if figure else "refused" for figure in figures)
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def throughput(only, checkpoint):
    """Input pixels a second of each embedded variant, and of lightweight-x2 with its weights, in each precision."""
    device, threads = torch.device("cpu"), usable_cpus()
    torch.set_num_threads(threads)
    print(describe(describe_machine(device, threads)) + "\n")
    print("| variant | image | " + " | ".join(f"`{name}`" for name in PRECISIONS) + " |")
    print("| --- " * (len(PRECISIONS) + 2) + "|")
    places = {name: embedded_path(name) for name in VARIANTS}
    if checkpoint:
        places["lightweight-x2"] = checkpoint
    for variant, place in places.items():
        if place is None or only not in (None, variant):
            continue
        side = 256 if variant == "lightweight-x2" else 512
        image = draw_pixels(side, side)
        upscalers = {name: Upscaler.from_pretrained(place, device="cpu", precision=name) for name in PRECISIONS}
        here = {name: each for name, each in upscalers.items() if each.precision == name}
        timings = interleave({name: partial(each.forward, [image]) for name, each in here.items()}, 3, device)
        cells = (f"{side**2 / timings[name].median:,.0f}" if name in timings else "" for name in PRECISIONS)
        print(f"| `{variant}` | {side}x{side} | {' | '.join(cells)} |", flush=True)


def main(arguments=None):
    """Measure and print what the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m tests.sizing", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("memory").add_argument("--variant", default="small-x2")
    throughput_parser = commands.add_parser("throughput")
    throughput_parser.add_argument("--variant")
    throughput_parser.add_argument("--checkpoint", type=Path, help="weights of lightweight-x2")
    options = parser.parse_args(arguments)
    if options.command == "memory":
        memory(options.variant)
    else:
        throughput(options.variant, options.checkpoint)


if __name__ == "__main__":
    main()
