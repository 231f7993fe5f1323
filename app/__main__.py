"""The program ``swin2sr``, also ``python -m app``: a server that can be stopped from its first moment on."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Listen to SIGTERM before what takes seconds to import, torch above all."""
    if sys.argv[1:2] == ["serve"]:
        signal.signal(signal.SIGTERM, _leave)
    from app.cli import commands  # noqa: PLC0415

    commands.main()


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """End at once: nothing was accepted yet. Process 1 of a container would not even hear the signal otherwise.

    An exception could get lost in what is being imported.
    """
    os._exit(0)


if __name__ == "__main__":
    main()
