"""What is understood of a device's faults, and how its memory is released and measured."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from app.variants.device import free, is_lost, is_out_of_memory, keep_memory_small, measure, release_memory

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ],
)
def test_that_memory_ran_out_is_understood(error):
    """From PyTorch and from the libraries under it."""
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [ValueError("out of memory"), RuntimeError("shapes do not fit")])
def test_other_faults_are_no_lack_of_memory(error):
    """Whatever their text says, or their class."""
    assert not is_out_of_memory(error)


def test_a_device_is_lost_when_it_does_not_answer_any_more(monkeypatch):
    """One call that failed is not yet that; and no other error is."""
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def fail(_device):
        raise error

    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    assert not is_lost(error, CUDA)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    assert is_lost(error, CUDA)
    assert not is_lost(RuntimeError("shapes do not fit"), CUDA)


class Library:
    """A C library that notes the options that are set."""

    def __init__(self):
        self.options = []

    def mallopt(self, option, value):
        self.options.append((option, value))


def test_variables_of_the_environment_take_precedence(monkeypatch):
    """Each option of malloc is set, but for one that has its variable."""
    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: library)
    for name in ("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    keep_memory_small()
    assert library.options == [(-8, 2), (-3, 4 << 20), (-1, 16 << 20)]
    monkeypatch.setenv("MALLOC_ARENA_MAX", "8")
    keep_memory_small()
    assert library.options[3:] == [(-3, 4 << 20), (-1, 16 << 20)]


@pytest.mark.parametrize("fault", [OSError, AttributeError])
def test_another_c_library_is_left_alone(monkeypatch, fault):
    """One that cannot be opened, or has neither function."""

    def fail(_name):
        raise fault

    monkeypatch.setattr(ctypes, "CDLL", fail)
    keep_memory_small()
    release_memory(torch.device("cpu"))


def test_memory_of_a_gpu_is_released_and_measured(monkeypatch):
    """Of the device and of pinned memory; figures are those of the device that was named."""
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("device"))
    monkeypatch.setattr(torch.accelerator, "empty_host_cache", lambda: emptied.append("host"), raising=False)
    release_memory(CUDA)
    assert emptied == ["device", "host"]
    for name, value in {"memory_allocated": 1, "memory_reserved": 2, "mem_get_info": (3, 4)}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value if device == CUDA else None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(total_memory=4))
    assert dict(measure(CUDA)) == {"allocated": 1.0, "used": 2.0, "total": 4.0}
    assert free(CUDA) == 3
