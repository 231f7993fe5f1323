"""Between the thread that finishes pieces of work and the one that joins them: a few at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, Self

LONGEST_PAUSE = 1.0
"""Seconds that whoever finishes a piece waits for room, so that no request can hold up the others for good."""


class Spool:
    """Finished pieces that wait to be joined: where there are ``size`` of them, the next to be finished waits.

    So an image of any size costs its own bytes and these pieces, however fast the network is. Open until the end of a
    ``with`` block. The thread that makes it is the one that must never wait, an event loop's.

    Args:
        futures: of the pieces.
        size: at least as many as are joined at once.
    """

    def __init__(self, futures: Iterable[Future[Any]], size: int) -> None:
        self._room = threading.Semaphore(size)
        self._maker = threading.get_ident()
        self._closed = False
        for future in futures:
            future.add_done_callback(self._put)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._closed = True
        self.take(1)

    def take(self, count: int) -> None:
        """Make room: so many pieces were joined."""
        self._room.release(count)

    def _put(self, _finished: Future[Any]) -> None:
        if not self._closed:
            self._room.acquire(timeout=0 if threading.get_ident() == self._maker else LONGEST_PAUSE)
