"""The two clients: what they wait with differs, what they do is in ``call`` and ``answer``."""

from __future__ import annotations

import asyncio
import time
from typing import BinaryIO, Self, Unpack
from urllib.parse import quote

import httpx

from ..errors import ServiceError
from ..schemas import VariantDescription, VariantList
from .answer import OnProgress, UpscaledImage, check
from .call import CONNECT_SECONDS, Call, Options, Source, opened, query, unreachable

URL = "http://127.0.0.1:8000"
CHUNK = 1 << 16
"""Bytes that are read from an answer at once."""


class Client:
    """A synchronous client; threads may share one.

    Args:
        url: of the server.
        api_key: sent as bearer token.
        timeout: seconds that an image may take, retries included.
        retry_window: seconds for which a server that cannot be reached, or is not ready, is tried again.
        transport: of httpx, in place of the network.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        retry_window: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._timeout, self._retry_window = timeout, retry_window
        self._http = httpx.Client(base_url=url, headers=_headers(api_key), transport=transport)

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close its connections."""
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def upscale(
        self,
        image: Source,
        variant: str | None = None,
        *,
        into: BinaryIO | None = None,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> UpscaledImage:
        """Upscale one image; waits and tries again where the server says so, and after a lost connection.

        Args:
            image: to send; read piece by piece.
            variant: a name or an alias; None takes the server's first.
            into: a seekable file that the answer is written to piece by piece.
            on_progress: called in this thread with each step.
            timeout: seconds, in place of the client's own.
            options: as ``app.schemas.UpscaleOptions``.

        Raises:
            ServiceError: of the class that the server raised; DeadlineExceeded also where its answer comes too late.
            ServerUnreachable: if there is none.
        """
        with opened(image) as file:
            call = Call(
                file,
                query(variant, options),
                timeout=timeout or self._timeout,
                retry_window=self._retry_window,
                into=into,
                on_progress=on_progress,
            )
            while True:
                try:
                    with self._http.stream(**call.attempt(), content=call.chunks()) as response:
                        answer = call.receive(response)
                        for chunk in response.iter_bytes(CHUNK):
                            call.check_deadline()
                            answer.feed(chunk)
                    return answer.finish()
                except (ServiceError, httpx.TransportError) as error:
                    time.sleep(call.pause_after(error))

    def variants(self) -> VariantList:
        """What the server has."""
        return VariantList.model_validate_json(self._get("/v1/variants"))

    def variant(self, name: str) -> VariantDescription:
        """One variant, by its name or by an alias."""
        return VariantDescription.model_validate_json(self._get(f"/v1/variants/{quote(name, safe='')}"))

    def _get(self, path: str) -> bytes:
        try:
            return check(self._http.get(path, timeout=CONNECT_SECONDS))
        except httpx.TransportError as error:
            raise unreachable(self._http.base_url, error) from error


class AsyncClient:
    """The same for asyncio; takes what ``Client`` takes."""

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        retry_window: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._timeout, self._retry_window = timeout, retry_window
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(api_key), transport=transport)

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Close its connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def upscale(
        self,
        image: Source,
        variant: str | None = None,
        *,
        into: BinaryIO | None = None,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the server is told the deadline too
        **options: Unpack[Options],
    ) -> UpscaledImage:
        """As ``Client.upscale``; cancelling the task stops the work on the server."""
        with opened(image) as file:
            call = Call(
                file,
                query(variant, options),
                timeout=timeout or self._timeout,
                retry_window=self._retry_window,
                into=into,
                on_progress=on_progress,
            )
            while True:
                try:
                    async with self._http.stream(**call.attempt(), content=call.achunks()) as response:
                        answer = call.receive(response)
                        async for chunk in response.aiter_bytes(CHUNK):
                            call.check_deadline()
                            answer.feed(chunk)
                    return answer.finish()
                except (ServiceError, httpx.TransportError) as error:
                    await asyncio.sleep(call.pause_after(error))

    async def variants(self) -> VariantList:
        """What the server has."""
        return VariantList.model_validate_json(await self._get("/v1/variants"))

    async def variant(self, name: str) -> VariantDescription:
        """One variant, by its name or by an alias."""
        return VariantDescription.model_validate_json(await self._get(f"/v1/variants/{quote(name, safe='')}"))

    async def _get(self, path: str) -> bytes:
        try:
            return check(await self._http.get(path, timeout=CONNECT_SECONDS))
        except httpx.TransportError as error:
            raise unreachable(self._http.base_url, error) from error


def _headers(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}
