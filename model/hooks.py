"""Detects hooks, training mode and replaced ``forward`` methods in a network, and defines the heartbeat hook."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules import module as all_modules

METHODS = frozenset(("forward", "get_attn_mask", "position_bias", "scale"))
"""Methods of the network's modules that compute something."""


class HeartbeatHook:
    """A forward pre-hook that reports progress and reads nothing.

    Args:
        report: called before a module computes.
    """

    def __init__(self, report: Callable[[], None]) -> None:
        self._report = report

    def __call__(self, _module: nn.Module, _args: object) -> None:
        """Called by PyTorch."""
        self._report()


def is_tracing() -> bool:
    """Whether torch.jit traces the program, so that sizes are tensors and cannot be used in conditions."""
    return torch._C._get_tracing_state() is not None  # noqa: SLF001


def has_observers(network: nn.Module) -> bool:
    """Whether a module is in training, has a hook, or an instance attribute replaces one of its methods.

    Reads the modules' dictionaries, because ``network.modules()`` would take longer than computing a tiny image.
    """
    if all_modules._global_forward_hooks or all_modules._global_forward_pre_hooks:  # noqa: SLF001
        return True
    waiting: list[nn.Module] = [network]
    while waiting:
        part = vars(waiting.pop())
        if part["training"] or part["_forward_hooks"] or not METHODS.isdisjoint(part):
            return True
        before = part["_forward_pre_hooks"]
        if before and not all(isinstance(hook, HeartbeatHook) for hook in before.values()):
            return True
        waiting.extend(child for child in part["_modules"].values() if child is not None)
    return False
