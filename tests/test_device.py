"""What is understood of a device's faults."""

import pytest
import torch

from app.variants.device import is_lost, is_out_of_memory

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
