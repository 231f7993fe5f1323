"""A server in the place of this process: what ``swin2sr upscale --url`` does."""

from __future__ import annotations

import io
from types import TracebackType
from typing import Self

from app import client
from app.errors import NotReady
from app.schemas import UpscaleOptions, VariantDescription


class Remote:
    """Upscales with one variant and one set of options on a server, as long as an ``async with`` block lasts.

    Args:
        options: for every image.
        url: of the server.
        api_key: where it wants one.
        timeout: seconds for each image.
    """

    def __init__(self, options: UpscaleOptions, url: str, api_key: str | None, timeout: float) -> None:
        self._options = options.model_dump(exclude_unset=True, exclude={"timeout_ms"})
        self._client = client.AsyncClient(url, api_key=api_key, timeout=timeout)

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def variant(self) -> str:
        """The name of the variant that computes, or will when its weights have come.

        Raises:
            UnknownVariant, NotReady: if the server has none.
            ServerUnreachable: if there is no server.
        """
        found = await self._describe(self._options.get("variant"))
        if not found.available and found.state != "loading":
            raise NotReady(f"{found.name} cannot be used there. {found.reason or ''}".strip())
        return found.name

    async def upscale(self, body: bytes, name: str, on_progress: client.answer.OnProgress) -> client.UpscaledImage:
        """Upscale one image.

        Raises:
            ServiceError: that the server answers.
            ServerUnreachable: if there is no server, for longer than the client's patience.
        """
        file = io.BytesIO(body)
        file.name = name
        return await self._client.upscale(file, on_progress=on_progress, **self._options)

    async def _describe(self, name: str | None) -> VariantDescription:
        return await self._client.variant(name or (await self._client.variants()).default)
