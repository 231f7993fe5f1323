"""Downloads of official weights, each in its own thread."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path

from model.official.fetch import FetchError, OfficialWeights, OnStep
from model.variants import Variant


class Downloads:
    """The running downloads.

    The threads are daemons: they end with the process, also in the middle of a download. The next process resumes it.

    Args:
        official: the authors' weights on this machine.
    """

    def __init__(self, official: OfficialWeights) -> None:
        self._official = official
        self._running: dict[str, Future[Path]] = {}

    async def fetch(self, variant: Variant, on_step: OnStep) -> Path:
        """Download the weights of a variant, or wait for a running download.

        Args:
            variant: of the table.
            on_step: called with the progress, in another thread.

        Raises:
            FetchError: if it fails; the message says why, and what to do.
        """
        future = self._running.get(variant.name)
        if future is None or future.done():
            future = self._running[variant.name] = Future()
            future.set_running_or_notify_cancel()  # so that a cancelled caller does not cancel it for others
            threading.Thread(
                target=self._fetch, args=(future, variant, on_step), name="swin2sr-fetch", daemon=True
            ).start()
        return await asyncio.wrap_future(future)

    def _fetch(self, future: Future[Path], variant: Variant, on_step: OnStep) -> None:
        try:
            future.set_result(self._official.fetch(variant, on_step))
        except FetchError as error:
            future.set_exception(error)
        except (OSError, RuntimeError, ValueError, MemoryError) as error:
            future.set_exception(FetchError(str(error) or type(error).__name__))
        finally:
            if not future.done():
                future.set_exception(FetchError("unexpected error; see the server's log"))
