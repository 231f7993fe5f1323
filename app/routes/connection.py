"""Cancels the work of a request when its client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

V = TypeVar("V")


async def while_connected(receive: Receive, work: Awaitable[V]) -> V:
    """Return the result of some work, or cancel it when the client disconnects.

    Args:
        receive: of a request whose body was read.
        work: of the request.

    Raises:
        ClientDisconnect: if the client disconnects first.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_until_disconnect(receive))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        leaving.cancel()
        await asyncio.wait((task, leaving))


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
