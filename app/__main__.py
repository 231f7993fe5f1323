"""Entry point of ``swin2sr`` and ``python -m app``. Handles SIGTERM while modules are imported."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType


def main() -> None:
    """Install signal handlers before the imports, which take seconds, and run the command."""
    _open_standard_streams()
    if sys.argv[1:2] == ["serve"]:
        signal.signal(signal.SIGTERM, _leave)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(signal.SIGHUP, _leave)
    from app.cli import commands  # noqa: PLC0415

    commands.main()


def _open_standard_streams() -> None:
    """Open the null device in place of closed standard streams.

    Otherwise the next file or socket would get the number of the stream, and prints would be written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - open as long as the process runs
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """End at once, because no request was accepted yet.

    Process 1 of a container ignores signals without a handler. An exception could be caught by an import.
    """
    os._exit(0)


if __name__ == "__main__":
    main()
