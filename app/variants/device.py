"""Memory of a device: how much is free, whether it ran out, and how to release it. Threads of a forward pass."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from app.cgroup import free_memory, total_memory

_PHRASES = (
    "can't allocate memory", "out of memory", "alloc_failed", "bad_alloc", "not enough memory",
    "unable to find an engine",
)  # fmt: skip
"""Parts of messages of plain RuntimeErrors from torch's CPU allocator, CUDA and its libraries. cuDNN raises the last
one if no algorithm for a convolution got the memory that it needs."""

_MALLOC_LIMITS = (
    (-8, "MALLOC_ARENA_MAX", 2),
    (-3, "MALLOC_MMAP_THRESHOLD_", 4 << 20),
    (-1, "MALLOC_TRIM_THRESHOLD_", 16 << 20),
)
"""Options of ``mallopt`` by their numbers in malloc.h, their variables, and values: arenas, and sizes in bytes.

A fixed threshold for ``mmap`` is larger than what a small request allocates, so that small requests stay as fast.
"""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in _PHRASES)


def is_lost(error: BaseException, device: torch.device) -> bool:
    """Whether the GPU cannot be used any more in this process, as opposed to one failed call."""
    if not isinstance(error, torch.AcceleratorError):
        return False
    try:
        torch.cuda.synchronize(device)
    except torch.AcceleratorError:
        return True
    return False


def release_memory(device: torch.device) -> None:
    """Return unused memory to the device and to the operating system."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        if hasattr(torch.accelerator, "empty_host_cache"):  # not in every version
            torch.accelerator.empty_host_cache()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library without it
            ctypes.CDLL(None).malloc_trim(0)


def keep_memory_small() -> None:
    """Make glibc return freed memory to the operating system early; does nothing with another C library.

    By default each thread gets an arena of its own, up to eight for each processor, and an arena keeps the memory that
    was freed in it. With images of many sizes, resident memory grew from 317 to 527 MB over 600 requests; with these
    limits to 454.
    Variables of the environment, ``MALLOC_ARENA_MAX`` and the others, take precedence.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for option, variable, value in _MALLOC_LIMITS:
        if variable not in os.environ:
            mallopt(option, value)


def use_threads(count: int) -> None:
    """Let PyTorch use ``count`` threads in the calling thread. PyTorch stores the number for each thread."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def free(device: torch.device) -> int | None:
    """Bytes of free memory for a forward pass on a device; None if unknown."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_memory()


def measure(device: torch.device) -> Iterator[tuple[str, float]]:
    """Kinds of memory of a device and their bytes: ``used`` by this process, ``total``, on a GPU also ``allocated``."""
    if device.type == "cuda":
        yield "allocated", float(torch.cuda.memory_allocated(device))
        yield "used", float(torch.cuda.memory_reserved(device))
        yield "total", float(torch.cuda.get_device_properties(device).total_memory)
        return
    if (used := resident_memory()) is not None:
        yield "used", float(used)
        yield "total", float(total_memory(machine_memory()))


def machine_memory() -> int:
    """Bytes of main memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def resident_memory() -> int | None:
    """Bytes of main memory that this process uses; None on other systems than Linux."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.is_file() else None
