"""Processors and memory that this process may use, within the limits of its control groups."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")

UNLIMITED = 2**60
"""Bytes from which a limit of version 1 means no limit."""


def usable_cpus(cgroup: Path = CGROUP, own: Path = OWN) -> int:
    """Processors that this process may use: its affinity, bounded by the quotas of its control groups.

    Args:
        cgroup: where control groups are mounted, version 2 or 1.
        own: file that names the groups of this process; the groups above them count too.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(cgroup, own, "cpu") if (quota := _quota(folder)) is not None]
    return max(1, min(affinity, *(math.ceil(quota) for quota in quotas))) if quotas else affinity


def free_memory(cgroup: Path = CGROUP, meminfo: Path = Path("/proc/meminfo"), own: Path = OWN) -> int | None:
    """Bytes of main memory that this process can still use, within its control groups; None if unknown."""
    free = []
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            free.append(int(lines["MemAvailable"].split()[0]) * 1024)
    for folder in _groups(cgroup, own, "memory"):
        limit = _memory_limit(folder)
        used = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            free.append(max(0, limit - used))
    return min(free, default=None)


def total_memory(machine: int, cgroup: Path = CGROUP, own: Path = OWN) -> int:
    """Bytes of main memory that this process may use: the machine's, within the limits of its control groups."""
    limits = [limit for folder in _groups(cgroup, own, "memory") if (limit := _memory_limit(folder)) is not None]
    return min([machine, *limits])


def _groups(cgroup: Path, own: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups that limit this process, its own and those above it, in both versions.

    In a container its own group is often mounted as the root, while the kernel reports the path on the host. Folders
    that do not exist are left out.
    """
    for line in own.read_text().splitlines() if own.is_file() else ["0::/"]:
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        for base in [cgroup / names, cgroup / controller] if names else [cgroup]:
            folders = [base / path.strip("/"), *(base / part for part in Path(path.strip("/")).parents)]
            yield from (folder for folder in dict.fromkeys(folders) if folder.is_dir())
    if (cgroup / controller).is_dir():  # version 1, if the process's group is unknown
        yield cgroup / controller


def _quota(folder: Path) -> float | None:
    """Processors of one group; None if it has no limit."""
    maximum = folder / "cpu.max"
    if maximum.is_file():
        limit, _, period = maximum.read_text().strip().partition(" ")
        return None if limit == "max" else int(limit) / int(period or 100_000)
    limit_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return None if limit_us is None or limit_us < 0 or not period_us else limit_us / period_us


def _memory_limit(folder: Path) -> int | None:
    """Bytes of one group; None if it has no limit."""
    limit = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
    return None if limit is None or limit >= UNLIMITED else limit


def _number(*files: Path) -> int | None:
    """The number in the first of these files that exists; None for ``max``."""
    for file in files:
        if file.is_file():
            text = file.read_text().strip()
            return None if text == "max" else int(text)
    return None
