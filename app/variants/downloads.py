"""Official weights on their way, each in a thread of its own: nothing waits for them that does not want them."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path

from model.official.fetch import FetchError, OfficialWeights, OnStep
from model.variants import Variant


class Downloads:
    """What is being fetched.

    The threads end with the process, in the middle of a download if need be: the next one goes on from there.

    Args:
        official: the authors' weights on this machine.
    """

    def __init__(self, official: OfficialWeights) -> None:
        self._official = official
        self._on_the_way: dict[str, Future[Path]] = {}

    async def fetch(self, variant: Variant, on_step: OnStep) -> Path:
        """Fetch a variant's weights, or wait for those that are on their way.

        Args:
            variant: of the table.
            on_step: told how far it is, in another thread.

        Raises:
            FetchError: if that is not to be; the text says why, and what to do.
        """
        future = self._on_the_way.get(variant.name)
        if future is None or future.done():
            future = self._on_the_way[variant.name] = Future()
            future.set_running_or_notify_cancel()  # from here on, whoever stops waiting stops nobody else
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
                future.set_exception(FetchError("something unexpected; the server's log has it"))
