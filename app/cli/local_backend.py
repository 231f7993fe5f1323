"""Upscaling in this process with the service's pipeline, for ``swin2sr upscale`` without ``--url``."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from app import client
from app.batching import jobs
from app.http.uploads import Upload
from app.pipeline import Caller
from app.schemas import UpscaleOptions
from app.service import build_service
from app.settings import Settings

NO_DEADLINE_S = 10 * 365 * 24 * 3600.0
"""Deadline in seconds that is never reached; the user can stop the command."""


class LocalBackend:
    """Upscales in this process with one variant and one set of options. Use it in a ``with`` block.

    Args:
        options: of every image.
        settings: of the service to build.

    Raises:
        ValueError: if the device or the variant does not exist.
    """

    def __init__(self, options: UpscaleOptions, settings: Settings) -> None:
        self._options = options
        self._service = build_service(settings)

    def __enter__(self) -> Self:
        """Start the worker thread."""
        self._service.batcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop all threads."""
        self._service.pipeline.close()
        self._service.registry.close()
        self._service.batcher.close(timeout=0)

    async def variant(self) -> str:
        """The name of the variant that is used.

        Raises:
            UnknownVariant, NotReady: if it does not exist, or its weights are not on this machine.
        """
        registry = self._service.registry
        variant = registry.find(self._options.variant or registry.default)
        if variant.path is None and variant.origin == "official":
            raise variant.absent(serves=False)
        return registry.resolve(variant.name).name

    async def upscale(self, body: bytes, name: str, on_progress: client.response.OnProgress) -> client.UpscaledImage:
        """Upscale one image.

        Raises:
            ServiceError: as a server would send it.
        """

        def report(step: jobs.JobProgress) -> None:
            on_progress(client.Progress(step.state, step.position, step.done, step.total))

        caller = Caller(time.monotonic() + NO_DEADLINE_S, on_progress=report)
        upscaled = await self._service.pipeline.upscale(Upload(body, name), self._options, caller)
        encoded = upscaled.encoded
        return client.UpscaledImage(
            content=encoded.body,
            media_type=encoded.media_type,
            filename=f"{name}{encoded.extension}",
            variant=upscaled.variant,
            scale=upscaled.scale,
            tiles=upscaled.tiles,
            request_id="",
            notice=encoded.notice,
            timing={stage: seconds * 1000 for stage, seconds in upscaled.seconds.items()},
        )
