"""What a network's packed weights depend on, so that they are packed again after any change and not otherwise.

Weights change in ways that leave no trace: `p.data.mul_()` changes neither a tensor's version nor its address. So the
contents are compared, by a checksum that is computed in less than a tenth of the time of packing.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from model.kernels import library

T = TypeVar("T")


@dataclass(frozen=True)
class Fingerprint:
    """Equal for equal weights in the same modules.

    Attributes:
        modules: themselves, which also keeps others from getting their addresses.
        settings: their classes and attributes, the configuration, and shape and address of every tensor.
        checksum: of the contents of all tensors.
    """

    modules: tuple[nn.Module, ...]
    settings: tuple[Any, ...]
    checksum: int

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fingerprint) or self.checksum != other.checksum:
            return False
        try:
            return self.modules == other.modules and self.settings == other.settings
        except (RuntimeError, ValueError):  # an attribute is another tensor or array than before
            return False

    __hash__ = None  # type: ignore[assignment]  # compared, never looked up


def fingerprint_of(network: nn.Module) -> Fingerprint | None:
    """The network's fingerprint now; None where its contents cannot be compared: without the kernel, or off the CPU."""
    kernel = library.load_kernel()
    if kernel is None:
        return None
    modules: list[nn.Module] = [network]
    settings: list[Any] = [tuple(vars(network.config).items())]
    tensors: list[torch.Tensor] = []
    for part in modules:  # grows
        own = vars(part)
        settings.append((type(part), dict(own)))
        tensors += [
            tensor for name in ("_parameters", "_buffers") for tensor in own[name].values() if tensor is not None
        ]
        modules += [child for child in own["_modules"].values() if child is not None]
    usual = (torch.Tensor, nn.Parameter)  # other classes may keep their contents elsewhere
    if not all(type(each) in usual and each.device.type == "cpu" and each.is_contiguous() for each in tensors):
        return None
    addresses = [tensor.data_ptr() for tensor in tensors]
    settings += [(tensor.shape, tensor.dtype) for tensor in tensors], addresses
    places = (ctypes.c_void_p * len(tensors))(*addresses)
    sizes = (ctypes.c_long * len(tensors))(*[tensor.nbytes for tensor in tensors])
    return Fingerprint(tuple(modules), tuple(settings), kernel.checksum(places, sizes, len(tensors)))


class Kept(Generic[T]):
    """The last thing that was made of a network's weights. Safe to use from several threads; a copy begins empty."""

    def __init__(self) -> None:
        self._last: tuple[Fingerprint, T] | None = None

    def get(self, fingerprint: Fingerprint | None) -> T | None:
        """What was kept, if the network still has this fingerprint."""
        last = self._last
        return last[1] if last is not None and fingerprint is not None and last[0] == fingerprint else None

    def put(self, fingerprint: Fingerprint | None, made: T) -> None:
        """Keep this in place of what was kept."""
        self._last = None if fingerprint is None else (fingerprint, made)

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ()
