"""Programs that begin as copies of a process that has imported what they need: a start takes no seconds.

:class:`Fork` is to such a program what ``subprocess.Popen`` is to one that is started anew. ``python -m tests.forks
DESCRIPTOR`` is the process that is copied: for each message on its socket it starts a program.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from app import logs

IMPORTED = ("tests.scripted_server", "app.cli.commands", "app.__main__")
MESSAGE_BYTES = 2**20
NUMBER = struct.Struct("q")
ROOT = Path(__file__).parents[1]


@functools.cache
def origin() -> socket.socket:
    """The socket of the process that is copied; it ends with this process."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far:
        command = [sys.executable, "-W", "ignore", "-m", "tests.forks", str(far.fileno())]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[far.fileno()])

    def end() -> None:
        near.close()
        process.wait()

    atexit.register(end)
    return near


class Fork:
    """A running program: ``main()`` of a module.

    Args:
        module: that has it.
        arguments: of the program.
        environment: its variables.

    Attributes:
        pid: of the process.
        stdout: both its streams.
        returncode: the exit status, or the negative number of the signal; None while it runs.
    """

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        output, outputs_end = os.pipe()
        status, statuss_end = os.pipe()
        message = json.dumps([module, list(arguments), dict(environment)]).encode()
        socket.send_fds(origin(), [message], [outputs_end, statuss_end])
        os.close(outputs_end)
        os.close(statuss_end)
        self.stdout = os.fdopen(output)
        self._status = os.fdopen(status, "rb", buffering=0)
        self.pid = self._receive()
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit status.

        Raises:
            subprocess.TimeoutExpired: if it runs on for so many seconds.
        """
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("fork", timeout or 0)
            self.returncode = self._receive()
            self._status.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _receive(self) -> int:
        return NUMBER.unpack(self._status.read(NUMBER.size))[0]


def main(descriptor: str) -> None:
    """Import what servers need, and start a program for each message, until the socket is closed."""
    for module in IMPORTED:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system removes watching processes that have ended
    with socket.socket(fileno=int(descriptor)) as near:
        while True:
            message, descriptors, _, _ = socket.recv_fds(near, MESSAGE_BYTES, 2)
            if not message:
                return
            if not os.fork():
                near.close()
                watch(*json.loads(message), *descriptors)
            for each in descriptors:
                os.close(each)


def watch(module: str, arguments: list[str], environment: dict[str, str], output: int, status: int) -> None:
    """Start the program, write the number of its process, wait for its end, and write its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if not pid:
        os.close(status)
        run(module, arguments, environment, output)
    os.close(output)
    os.write(status, NUMBER.pack(pid))
    _, ended = os.waitpid(pid, 0)
    os.write(status, NUMBER.pack(os.waitstatus_to_exitcode(ended)))
    os._exit(0)


def run(name: str, arguments: list[str], environment: dict[str, str], output: int) -> None:
    """Be the program, to the last line of its log."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.argv = [name, *arguments]
    os.environ.clear()
    os.environ.update(environment)
    status = 1
    try:
        status = importlib.import_module(name).main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(*sys.exc_info())
    logs.leave(status or 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
