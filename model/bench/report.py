"""The results of benchmarks as a Markdown table and as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from model.bench.timing import Timing
from model.kernels.library import load_kernel

NOISY = 1.25
"""Ratio of the slowest to the fastest run from which the report mentions it."""

Meaning = Literal[
    "times as fast", "times as long", "of the memory", "of the time", "of the throughput", "largest difference",
    "relative error", "dB less", "failed",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        work: that was measured.
        against: the other side.
        figure: the ratio; None if the other side did not run.
        meaning: of the ratio.
        here, there: the measured values of the two sides, with units, or why there are none.
    """

    work: str
    against: str
    figure: float | None
    meaning: Meaning
    here: str = ""
    there: str = ""


def compare(work: str, timings: Mapping[str, Timing], faults: Mapping[str, str]) -> Iterator[Row]:
    """The speed of ``here`` relative to each other side; for sides that did not run, the reason."""
    here = timings["here"]
    shown = seconds(here.median, here.spread)
    for name, fault in faults.items():
        yield Row(work, name, None, "times as fast", shown, fault)
    for name, theirs in timings.items():
        if name != "here":
            there = seconds(theirs.median, theirs.spread)
            yield Row(work, name, theirs.median / here.median, "times as fast", shown, there)


def describe_machine(device: torch.device, threads: int) -> dict[str, str | int | None]:
    """The machine: processor or GPU, cores, threads, versions, and whether the C kernel is built."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return {
        "cpu": named[1].strip() if named else platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "kernel": "built" if load_kernel() else "not built",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


HEADER = "| work | against | figure | here | there |\n| --- | --- | --- | --- | --- |"


def tabulate(row: Row) -> str:
    """The row as one of a Markdown table under ``HEADER``."""
    figure = "-" if row.figure is None else f"{row.figure:.3g} {row.meaning}"
    return f"| {row.work} | {row.against} | {figure} | {row.here} | {row.there} |"


def show(rows: Iterable[Row]) -> Iterator[Row]:
    """Print a table, each row as soon as it is measured, and yield the rows."""
    _say(HEADER)
    for row in rows:
        _say(tabulate(row))
        yield row


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def describe(machine: Mapping[str, object]) -> str:
    """The machine in a line."""
    return ", ".join(f"{name} {value}" for name, value in machine.items() if value is not None)


def seconds(value: float, spread: float = 1.0) -> str:
    """A time as text, with the ratio of its slowest and fastest run if it is ``NOISY`` or more."""
    text = f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
    return text if spread < NOISY else f"{text} (runs {spread:.1f}x apart)"


def mebibytes(value: float) -> str:
    """A size in memory as text."""
    return f"{value / 2**20:.0f} MiB"


def write_json(file: Path, machine: Mapping[str, object], rows: Iterable[Row]) -> None:
    """Write the results to a file."""
    content = {"machine": machine, "rows": [dataclasses.asdict(row) for row in rows]}
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
