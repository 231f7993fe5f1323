"""Who looks at a network while it computes.

Whoever computes several modules at once, or in memory that is used again, has to know that nobody sees the difference.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.modules import module as everywhere


class Beat:
    """A forward pre-hook that looks at nothing: it tells that a network goes on, however that computes.

    Args:
        tell: called before a module computes; not for modules within a block or behind a stage, which the kernel takes
            together.
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def __call__(self, _module: nn.Module, _args: object) -> None:
        """What PyTorch calls."""
        self._tell()


def is_watched(module: nn.Module) -> bool:
    """Whether a module or one within it has a hook that could see how values come about."""
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:  # noqa: SLF001
        return True
    return any(
        not isinstance(hook, Beat)
        for part in module.modules()
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())  # noqa: SLF001
    )
