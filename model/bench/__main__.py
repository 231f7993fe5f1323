"""``python -m model.bench``: the table on standard output as it is measured, and all of it as JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from model.bench.profile import profile_forward
from model.bench.report import HEADER, Row, describe_machine, tabulate, write_json
from model.bench.sections import FORWARD, SECTIONS, Bench
from model.bench.works import draw_pixels
from model.upscaler import find_device


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m model.bench", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="lightweight x2 weights; random ones without it")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of a forward pass on a CPU")
    parser.add_argument("--runs", type=int, default=5, help="measurements of each side")
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS, "profile"], default=[*SECTIONS, "profile"])
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    bench = Bench(find_device(options.device), options.threads, options.runs, options.checkpoint)
    machine = describe_machine(bench.device, options.threads)
    _say(", ".join(f"{name} {value}" for name, value in machine.items() if value is not None) + "\n")
    rows = measure(bench, [name for name in SECTIONS if name in options.only])
    shares = show_profiles(bench) if "profile" in options.only else {}
    if options.json:
        write_json(options.json, machine, rows, profile=shares)
    return 0


def measure(bench: Bench, sections: Iterable[str]) -> list[Row]:
    """Run sections, printing each row when it is there."""
    rows = []
    _say(HEADER)
    for name in sections:
        for row in SECTIONS[name](bench):
            _say(tabulate(row))
            rows.append(row)
    return rows


def show_profiles(bench: Bench) -> dict[str, dict[str, float]]:
    """Profile the forward passes of the table, printing each."""
    profiles = {}
    for variant, side in FORWARD:
        shares = profile_forward(bench.upscaler(variant), draw_pixels(side, side), bench.runs)
        profiles[f"{variant} {side}x{side}"] = shares
        parts = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        _say(f"\nWhere the time of {variant} {side}x{side} goes: {parts}")
    return profiles


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
