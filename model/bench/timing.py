"""Wall clock times of several sides, measured in turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Run = Callable[[], object]

SHORTEST = 0.1
"""Minimum duration of one measurement in seconds; shorter runs are repeated."""


@dataclass(frozen=True)
class Timing:
    """Seconds of each warm run of one side."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.runs)

    @property
    def spread(self) -> float:
        """Slowest over fastest run: far above 1 if other programs used the machine."""
        return max(self.runs) / min(self.runs)


def attempt(makers: Mapping[str, Callable[[], Run]]) -> tuple[dict[str, Run], dict[str, str]]:
    """Create the sides to be timed, and run each once.

    Args:
        makers: functions that create a side, by name.

    Returns:
        The sides that run, and for the others the reason in one line.
    """
    runs: dict[str, Run] = {}
    faults: dict[str, str] = {}
    for name, make in makers.items():
        try:
            run = make()
            run()
        except ImportError:
            faults[name] = "not installed"
        except RuntimeError as error:  # no compiler, or not enough memory
            faults[name] = f"failed: {str(error).partition(chr(10))[0]}"
        else:
            runs[name] = run
    return runs, faults


def interleave(sides: Mapping[str, Run], runs: int, device: torch.device) -> dict[str, Timing]:
    """Time the sides in turns, A B A B, so that other load on the machine slows all of them.

    Args:
        sides: what to run, by name.
        runs: measurements of each side, after one that is thrown away.
        device: what to wait for; work on a GPU continues after a call has returned.
    """
    repeats = {}
    for name, run in sides.items():
        run()
        repeats[name] = math.ceil(SHORTEST / max(_seconds(run, 1, device), 1e-6))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, run in sides.items():
            seconds[name].append(_seconds(run, repeats[name], device))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _seconds(run: Run, repeats: int, device: torch.device) -> float:
    _synchronise(device)
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    _synchronise(device)
    return (time.perf_counter() - started) / repeats


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
