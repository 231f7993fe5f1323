"""Processors and memory that this process may use, within the limits of its control groups."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")

PERIOD_US = "100000"
"""The kernel's period of a quota, if it is not written."""

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
    available = re.search(r"^MemAvailable:\s*(\d+) kB$", _text(meminfo), re.ASCII | re.MULTILINE)
    free = [int(available[1]) * 1024] if available else []
    for folder in _groups(cgroup, own, "memory"):
        limit = _memory_limit(folder)
        used = _number(_text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes"))
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
    lines = [line.split(":", 2) for line in _text(own).splitlines() if line.count(":") >= 2]
    for _, names, path in lines or [["0", "", "/"]]:
        if names and controller not in names.split(","):
            continue
        for base in [cgroup / names, cgroup / controller] if names else [cgroup]:
            folders = [base / path.strip("/"), *(base / part for part in Path(path.strip("/")).parents)]
            yield from (folder for folder in dict.fromkeys(folders) if folder.is_dir())
    if (cgroup / controller).is_dir():  # version 1, if the process's group is unknown
        yield cgroup / controller


def _quota(folder: Path) -> float | None:
    """Processors of one group; None if it has no limit."""
    limit, _, period = _text(folder / "cpu.max").partition(" ")
    quota_us = _number(limit or _text(folder / "cpu.cfs_quota_us"))
    period_us = _number(period or _text(folder / "cpu.cfs_period_us") or PERIOD_US)
    return quota_us / period_us if quota_us and period_us else None


def _memory_limit(folder: Path) -> int | None:
    """Bytes of one group; None if it has no limit."""
    limit = _number(_text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes"))
    return limit if limit and limit < UNLIMITED else None


def _number(text: str) -> int | None:
    """A number of the kernel; None for ``max``, -1, and what it would not write."""
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text) else None


def _text(file: Path) -> str:
    """The text of a file, without blanks around it; empty if it cannot be read."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
