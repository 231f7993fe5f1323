"""How much of the machine belongs to this process."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cpus(cgroup: Path = CGROUP) -> int:
    """Processors that this process may use: its affinity, bounded by the control group's quota (v2, else v1)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def free_memory(cgroup: Path = CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes of main memory that this process may still take, within its control group (v2); None where unknown."""
    free = None
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            free = int(lines["MemAvailable"].split()[0]) * 1024
    limit_file, used_file = cgroup / "memory.max", cgroup / "memory.current"
    if limit_file.is_file() and used_file.is_file() and (limit := limit_file.read_text().strip()) != "max":
        left = max(0, int(limit) - int(used_file.read_text()))
        free = left if free is None else min(free, left)
    return free


def total_memory(machine: int, cgroup: Path = CGROUP) -> int:
    """Bytes of main memory that this process may have in all: the machine's, within its control group's limit (v2)."""
    limit_file = cgroup / "memory.max"
    limit = limit_file.read_text().strip() if limit_file.is_file() else "max"
    return machine if limit == "max" else min(machine, int(limit))


def _quota(cgroup: Path) -> float | None:
    maximum = cgroup / "cpu.max"
    if maximum.is_file():
        limit, _, period = maximum.read_text().strip().partition(" ")
        return None if limit == "max" else int(limit) / int(period or 100_000)
    limit_file, period_file = cgroup / "cpu/cpu.cfs_quota_us", cgroup / "cpu/cpu.cfs_period_us"
    if limit_file.is_file() and period_file.is_file():
        limit_us = int(limit_file.read_text())
        return None if limit_us < 0 else limit_us / int(period_file.read_text())
    return None
