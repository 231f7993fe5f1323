"""``python -m model.bench``: the table on standard output as it is measured, and all of it as JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from model.bench.report import describe, describe_machine, show, write_json
from model.bench.sections import SECTIONS, Bench, measure
from model.upscaler import find_device


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m model.bench", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="lightweight x2 weights; random ones without it")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of a forward pass on a CPU")
    parser.add_argument("--runs", type=int, default=5, help="measurements of each side")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="sections to measure")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options = parser.parse_args(arguments)
    bench = Bench(find_device(options.device), options.threads, options.runs, options.checkpoint)
    machine = describe_machine(bench.device, bench.threads)
    sys.stdout.write(f"{describe(machine)}\n\n")
    rows = show(measure(bench, options.only))
    if options.json:
        write_json(options.json, machine, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
