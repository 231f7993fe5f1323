"""Peak resident memory for one large image, measured in a new process for each side."""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
from pathlib import Path

import torch

from model.bench.baselines import eager, load_port
from model.bench.workloads import draw_pixels, make_network, upscale_tiled
from model.padding import to_tensor
from model.upscaler import Upscaler

RESERVE = 2 * 2**30
"""Bytes of the machine's memory that are left free."""


class NoMemoryError(Exception):
    """The machine has too little memory for a side."""


def measure_peak(side: str, size: int, checkpoint: Path | None, threads: int) -> int:
    """Peak resident memory in bytes of a new process that upscales one image of ``size`` x ``size``.

    Args:
        side: ``here``, tiled as the service does; or ``Transformers``, the whole image at once.
        size: of the image, pixels.
        checkpoint: of a lightweight network; random weights without one.
        threads: of the forward pass.

    Raises:
        ImportError: if Transformers is needed and not installed.
        NoMemoryError: if it needs more than the machine has.
    """
    command = [sys.executable, "-m", "model.bench.memory", side, str(size), str(threads)]
    if checkpoint is not None:
        command += ["--checkpoint", str(checkpoint)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - it is this module
    if result.returncode == 0:
        return int(result.stdout)
    lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
    if "No module named" in lines[-1]:
        raise ImportError(lines[-1])
    raise NoMemoryError(lines[-1])


def read_peak() -> int:
    """Peak resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would include the parent's memory before exec
        peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        assert peak is not None
        return int(peak[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def limit_memory() -> None:
    """Limit the memory of this process, so that an allocation fails before the machine runs out of memory."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        available = re.search(r"MemAvailable:\s*(\d+) kB", meminfo.read_text())
        assert available is not None
        limit = max(int(available[1]) * 1024 - RESERVE, RESERVE)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def main() -> int:
    """Upscale one image and print this process's peak in bytes."""
    parser = argparse.ArgumentParser(prog="python -m model.bench.memory")
    parser.add_argument("side", choices=["here", "Transformers"])
    parser.add_argument("size", type=int)
    parser.add_argument("threads", type=int)
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    limit_memory()
    torch.set_num_threads(options.threads)
    network = make_network("lightweight-x2", options.checkpoint)
    image = draw_pixels(options.size, options.size)
    if options.side == "here":
        upscale_tiled(Upscaler(network, device="cpu"), image)
    else:
        eager(load_port(network), to_tensor(image)[None])()
    sys.stdout.write(f"{read_peak()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
