"""``python -m model.bench``: prints a table row by row, and writes it as JSON.

With ``--device cuda`` it measures the sections for GPUs.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from model.bench.gpu import CARD_SECTIONS, WrongAnswerError
from model.bench.report import Row, describe, describe_machine, show, write_json
from model.bench.sections import SECTIONS, Bench, measure
from model.precision import PRECISIONS
from model.upscaler import find_device


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m model.bench", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="lightweight x2 weights; default: random weights")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of a forward pass on a CPU")
    parser.add_argument("--precision", default="auto", choices=("auto", *PRECISIONS), help="of the network measured")
    parser.add_argument("--runs", type=int, default=5, help="measurements of each side")
    known = {**SECTIONS, **CARD_SECTIONS}
    parser.add_argument("--only", nargs="+", choices=list(known), help="sections to run; default: those of the device")
    parser.add_argument("--testset", type=Path, help="folder of images, as for `swin2sr evaluate`, for the quality")
    parser.add_argument("--json", type=Path, help="file, or existing folder, to write the results to")
    options = parser.parse_args(arguments)
    try:
        device = find_device(options.device)
    except ValueError as error:
        sys.stderr.write(f"{parser.prog}: {error} A GPU needs its driver and a CUDA build of torch.\n")
        return 1
    bench = Bench(device, options.threads, options.runs, options.checkpoint, options.testset, options.precision)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("model.gpu").setLevel(logging.INFO)  # which kernels were chosen, and by what times
    machine = describe_machine(bench.device, bench.threads)
    sys.stdout.write(f"{describe(machine)}\n\n")
    chosen = options.only or (CARD_SECTIONS if bench.device.type == "cuda" else SECTIONS)
    rows: list[Row] = []
    try:
        rows.extend(show(measure(bench, chosen, known)))
    except WrongAnswerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        if options.json:
            file = options.json / f"{bench.device.type}.json" if options.json.is_dir() else options.json
            write_json(file, machine, rows)
    return int(any(row.meaning == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
