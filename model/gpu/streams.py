"""What a process shares on a device: the thread that launches, three streams, and the precision of float32."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

V = TypeVar("V")

Precision = Literal["ieee", "tf32"]
"""The digits of float32 numbers that products read: all of them, or the ten bits of TF32."""


class DeviceThread:
    """Runs calls one after the other in one thread.

    cuDNN keeps its plans by thread, so the thread that serves must be the one that was warmed up. It is a daemon: a
    call that hangs does not keep the process from ending.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    @classmethod
    @functools.cache
    def of(cls, device: torch.device) -> DeviceThread:
        """The one of a device."""
        return cls(f"swin2sr-{device}")

    def run(self, call: Callable[[], V]) -> V:
        """Run a call in the thread and return its result; raises what it raises."""
        future: Future[V] = Future()
        self._calls.put((future, call))
        try:
            return future.result()
        finally:
            del future  # or an exception and this frame would keep each other, and the tensors of the call, alive

    def _work(self) -> None:
        while True:
            future, call = self._calls.get()
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                future.set_exception(error)
            del future, call  # nothing of a call is held until the next one


@dataclass(frozen=True)
class Streams:
    """Copies up, computing, copies down: each stream waits for what the one before has been given so far.

    Memory that one stream fills and another reads is not given to others before it was read.
    """

    up: torch.cuda.Stream
    compute: torch.cuda.Stream
    down: torch.cuda.Stream

    @classmethod
    @functools.cache
    def on(cls, device: torch.device) -> Streams:
        """Those of a device, the same for all networks: PyTorch has only a few streams, and reuses them."""
        return cls(*(torch.cuda.Stream(device) for _ in range(3)))  # type: ignore[no-untyped-call]

    def after_upload(self, *read: Tensor) -> AbstractContextManager[object]:
        """The stream that computes, once what is on its way up has come."""
        return self._after(self.up, self.compute, read)

    def after_compute(self, *read: Tensor) -> AbstractContextManager[object]:
        """The stream that copies down, once everything is computed."""
        return self._after(self.compute, self.down, read)

    @staticmethod
    def _after(
        before: torch.cuda.Stream, stream: torch.cuda.Stream, read: Sequence[Tensor]
    ) -> AbstractContextManager[object]:
        stream.wait_stream(before)
        for tensor in read:
            tensor.record_stream(stream)
        return torch.cuda.stream(stream)


_launching = threading.RLock()
"""Held while a graph is recorded, while kernels are timed, and while anything else is launched."""


@contextlib.contextmanager
def float32_precision(convolutions: Precision, products: Precision) -> Iterator[None]:
    """What cuDNN's convolutions and cuBLAS's matrix products may make of float32. One thread at a time.

    PyTorch has one setting for the whole process: who restores it while another still needs it takes it away.
    """
    cudnn, cublas = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]  # properties
    with _launching:
        before = cudnn.fp32_precision, cublas.fp32_precision
        cudnn.fp32_precision, cublas.fp32_precision = convolutions, products
        try:
            yield
        finally:
            cudnn.fp32_precision, cublas.fp32_precision = before
