"""The synchronous and the asynchronous client. They differ in how they wait; the rest is in ``request``."""

from __future__ import annotations

import asyncio
import time
from typing import BinaryIO, Self, TypedDict, Unpack
from urllib.parse import quote

import httpx

from ..errors import ServiceError
from ..schemas import VariantDescription, VariantList
from .images import Source, open_image
from .request import CHUNK, Options, UpscaleRequest, build_query, new_request_id
from .response import OnProgress, UpscaledImage, check
from .retries import Retries, Server, check_timeout

URL = "http://127.0.0.1:8000"
READ_TIMEOUT_S = 10.0
"""Seconds to wait for a response that needs no computing, such as the list of variants."""


class Client:
    """A synchronous client. Threads may share one.

    Args:
        url: of the server.
        api_key: sent as bearer token; None sends none.
        timeout: seconds for each image, retries included.
        connect_timeout: seconds to wait for a server that has never answered.
        retry_window: seconds to wait for a server that has answered before and cannot be reached, or is not ready.
        transport: of httpx, for tests.

    Raises:
        ValueError: if the URL is malformed.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        connect_timeout: float = 5.0,
        retry_window: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._timeout = check_timeout(timeout)
        self._server = Server(url, connect_timeout, retry_window)
        try:
            self._http = httpx.Client(base_url=url, headers=_headers(api_key), transport=transport)
        except httpx.InvalidURL as error:
            raise ValueError(f"{url!r} is not a URL: {error}") from error

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
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
        """Upscale one image. Repeats the request if the server asks for it, and after a lost connection.

        Args:
            image: encoded bytes, a path, an open binary file, a PIL image, or an array of uint8 or uint16 with the
                shape (H,W) or (H,W,C). Files are read in chunks.
            variant: variant or alias; None uses the server's default.
            into: seekable file for the response; None keeps it in memory.
            on_progress: called with each step, in this thread.
            timeout: seconds, instead of the client's.
            options: as in ``app.schemas.UpscaleOptions``. ``timeout_ms`` shortens ``timeout``.

        Raises:
            ServiceError: of the class that the server raised, with its ``request_id``; DeadlineExceeded also if the
                response comes too late, ServerUnreachable if no server answers.
            TypeError, ValueError, OSError: if the image cannot be read or encoded, or ``timeout`` is not above 0.
        """
        request_id = new_request_id()
        query = build_query(variant, options, request_id)
        with open_image(image) as file:
            request = UpscaleRequest(
                file,
                query,
                server=self._server,
                request_id=request_id,
                timeout=self._timeout if timeout is None else check_timeout(timeout),
                into=into,
                on_progress=on_progress,
            )
            while True:
                try:
                    with self._http.stream(**request.attempt(), content=request.chunks()) as response:
                        reader = request.read(response)
                        for chunk in response.iter_bytes(CHUNK):
                            request.retries.check_deadline()
                            reader.feed(chunk)
                    return reader.finish()
                except (ServiceError, httpx.TransportError) as error:
                    time.sleep(request.retries.pause_after(error))

    def variants(self) -> VariantList:
        """The variants of the server.

        Raises:
            ServiceError: as in ``upscale``.
        """
        return VariantList.model_validate_json(self._get("/v1/variants"))

    def variant(self, name: str) -> VariantDescription:
        """One variant, by its name or an alias.

        Raises:
            ServiceError: as in ``upscale``; UnknownVariant if there is none.
        """
        return VariantDescription.model_validate_json(self._get(f"/v1/variants/{quote(name, safe='')}"))

    def _get(self, path: str) -> bytes:
        request_id = new_request_id()
        retries = Retries(self._server, self._timeout, request_id)
        while True:
            try:
                retries.begin_attempt()
                response = self._http.get(path, **_get_arguments(self._server, request_id))
                self._server.answered = True
                return check(response)
            except httpx.ReadTimeout as error:
                raise retries.unreachable(error) from error
            except (ServiceError, httpx.TransportError) as error:
                time.sleep(retries.pause_after(error))


class AsyncClient:
    """The same for asyncio. Takes the arguments of ``Client``."""

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        connect_timeout: float = 5.0,
        retry_window: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._timeout = check_timeout(timeout)
        self._server = Server(url, connect_timeout, retry_window)
        try:
            self._http = httpx.AsyncClient(base_url=url, headers=_headers(api_key), transport=transport)
        except httpx.InvalidURL as error:
            raise ValueError(f"{url!r} is not a URL: {error}") from error

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Close the connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def upscale(
        self,
        image: Source,
        variant: str | None = None,
        *,
        into: BinaryIO | None = None,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the server gets the deadline too
        **options: Unpack[Options],
    ) -> UpscaledImage:
        """Upscale one image, as ``Client.upscale`` does. Cancelling the task stops the work on the server."""
        request_id = new_request_id()
        query = build_query(variant, options, request_id)
        with await asyncio.to_thread(open_image, image) as file:
            request = UpscaleRequest(
                file,
                query,
                server=self._server,
                request_id=request_id,
                timeout=self._timeout if timeout is None else check_timeout(timeout),
                into=into,
                on_progress=on_progress,
            )
            while True:
                try:
                    async with self._http.stream(**request.attempt(), content=request.achunks()) as response:
                        reader = request.read(response)
                        async for chunk in response.aiter_bytes(CHUNK):
                            request.retries.check_deadline()
                            reader.feed(chunk)
                    return reader.finish()
                except (ServiceError, httpx.TransportError) as error:
                    await asyncio.sleep(request.retries.pause_after(error))

    async def variants(self) -> VariantList:
        """The variants of the server."""
        return VariantList.model_validate_json(await self._get("/v1/variants"))

    async def variant(self, name: str) -> VariantDescription:
        """One variant, by its name or an alias."""
        return VariantDescription.model_validate_json(await self._get(f"/v1/variants/{quote(name, safe='')}"))

    async def _get(self, path: str) -> bytes:
        request_id = new_request_id()
        retries = Retries(self._server, self._timeout, request_id)
        while True:
            try:
                retries.begin_attempt()
                response = await self._http.get(path, **_get_arguments(self._server, request_id))
                self._server.answered = True
                return check(response)
            except httpx.ReadTimeout as error:
                raise retries.unreachable(error) from error
            except (ServiceError, httpx.TransportError) as error:
                await asyncio.sleep(retries.pause_after(error))


class _GetArguments(TypedDict):
    headers: dict[str, str]
    timeout: httpx.Timeout


def _get_arguments(server: Server, request_id: str) -> _GetArguments:
    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=server.connect_timeout)
    return _GetArguments(headers={"X-Request-Id": request_id}, timeout=timeout)


def _headers(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}
