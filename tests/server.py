"""The real server, started as a user starts it: a process of its own on a free port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.forks import Fork

ROOT = Path(__file__).parents[1]
SERVE = ("app.__main__", "serve")
"""``swin2sr serve``, as a program to fork."""

PATIENCE = 120.0
"""Seconds from start to ready, and from SIGTERM to the end, after which a test has failed."""


def free_ports(count: int) -> list[int]:
    """Free ports of this machine."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def children(pid: int) -> list[int]:
    """The processes that a process's first thread has started and that are still there."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class ServerProcess:
    """``swin2sr serve`` until the end of a ``with`` block; ready when the block begins.

    Args:
        arguments: options of ``serve``.
        program: another program that prints what ``serve`` prints, as arguments of ``python``.
        runner: a command that starts it, such as ``unshare``.
        fork: module and first arguments of a program that is forked instead, which is quick: ``SERVE`` is ``serve``.
        settings: as ``port=0``; environment variables of the process.

    Attributes:
        url: where it listens.
        process: to send signals to.
        output: lines of both its streams so far.
    """

    def __init__(
        self,
        *arguments: str,
        program: Sequence[str] = ("-m", "app", "serve"),
        runner: Sequence[str] = (),
        fork: Sequence[str] = (),
        **settings: object,
    ) -> None:
        chosen = {"port": 0, "drain_delay_ms": 0, **settings}
        self._command = [*runner, sys.executable, *program, *arguments]
        self._fork = [*fork, *arguments] if fork else []
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SWIN2SR_")},
            **{f"SWIN2SR_{name.upper()}": str(value) for name, value in chosen.items()},
            "PYTHONUNBUFFERED": "1",
        }
        self.url = ""
        self.output: list[str] = []
        self._listening = threading.Event()
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        """Start, and wait until it says that it is ready."""
        self.start()
        self.wait_until_ready()
        return self

    def __exit__(self, *_error: object) -> None:
        """End it, whatever state it is in."""
        if self.process.poll() is None:
            self.stop()

    def start(self) -> None:
        """Start, and wait until it listens."""
        self.process = self._launch()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._wait(self._listening, "listen")

    def _launch(self) -> subprocess.Popen[str] | Fork:
        if self._fork:
            return Fork(self._fork[0], self._fork[1:], self._environment)
        return subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_until_ready(self) -> None:
        """Wait until everything is loaded and warm."""
        self._wait(self._ready, "become ready")

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal, if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end, and return the exit status; kills it if it does not end."""
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        self._reader.join(PATIENCE)
        if self.process.stdout and not self._reader.is_alive():  # a child that lives on keeps the stream open
            self.process.stdout.close()
        return status

    def stop(self) -> int:
        """Ask it to end, and wait."""
        self.signal()
        return self.wait()

    def _wait(self, event: threading.Event, what: str) -> None:
        if not event.wait(PATIENCE) or self.process.poll() is not None:
            self.signal(signal.SIGKILL)
            self.wait()
            raise RuntimeError(f"the server did not {what}:\n" + "".join(self.output))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if " listens on " in line:
                self.url = line.split()[-1]
                self._listening.set()
            elif line.startswith("Ready."):
                self._ready.set()
        self._listening.set()  # it ended; waiting callers check this
        self._ready.set()
