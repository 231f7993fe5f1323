"""Upscaling on a server, for ``swin2sr upscale --url``."""

from __future__ import annotations

import io
from types import TracebackType
from typing import Self

from app import client
from app.errors import NotReady
from app.schemas import UpscaleOptions, VariantDescription


class HttpBackend:
    """Upscales on a server with one variant and one set of options. Use it in an ``async with`` block.

    Args:
        options: of every request.
        url: of the server.
        api_key: sent as bearer token; None sends none.
        timeout: seconds for each image.
    """

    def __init__(self, options: UpscaleOptions, url: str, api_key: str | None, timeout: float) -> None:
        self._options = options.model_dump(exclude_unset=True, exclude={"timeout_ms"})
        self._client = client.AsyncClient(url, api_key=api_key, timeout=timeout)

    async def __aenter__(self) -> Self:
        """Return the backend."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def variant(self) -> str:
        """The name of the variant that the server uses for these options.

        Raises:
            UnknownVariant, NotReady: if the server cannot use it.
            ServerUnreachable: if no server answers.
        """
        found = await self._describe(self._options.get("variant"))
        if not found.available and found.state != "loading":
            raise NotReady(f"The server cannot use {found.name}. {found.reason or ''}".strip())
        return found.name

    async def upscale(self, body: bytes, name: str, on_progress: client.response.OnProgress) -> client.UpscaledImage:
        """Upscale one image.

        Raises:
            ServiceError: that the server sends.
            ServerUnreachable: if no server answers within the client's time limits.
        """
        file = io.BytesIO(body)
        file.name = name
        return await self._client.upscale(file, on_progress=on_progress, **self._options)

    async def _describe(self, name: str | None) -> VariantDescription:
        return await self._client.variant(name or (await self._client.variants()).default)
