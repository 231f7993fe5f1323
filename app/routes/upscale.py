"""``POST /v1/upscale``."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.types import Scope

from app import errors
from app.batching.jobs import JobProgress
from app.http.byte_budget import ByteReservation
from app.http.forms import PART
from app.http.middleware import add_log_fields, arrived_at
from app.http.uploads import read_upload
from app.pipeline import Caller, Upscaled
from app.routes import ServiceDependency
from app.routes.access import ClientDependency
from app.routes.connection import while_connected
from app.routes.examples import PROGRESS, problems
from app.routes.fields import with_fields
from app.routes.progress import MIXED, ProgressResponse, wants_progress
from app.schemas import UpscaleOptions
from app.settings import Settings

router = APIRouter(tags=["upscale"])

PLAIN = "application/octet-stream"
"""The media type of the image for callers that accept nothing else; generators of clients know it as binary."""

_BINARY = {"type": "string", "format": "binary"}
_FIELDS = {PART: _BINARY, **UpscaleOptions.model_json_schema()["properties"]}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "required": [PART], "properties": _FIELDS}},
            "image/*": {"schema": _BINARY},
            PLAIN: {"schema": _BINARY},
        },
    }
}
_ERRORS = problems(
    errors.InvalidImage,
    errors.InvalidUpload,
    errors.Unauthorized,
    errors.UnknownVariant,
    errors.UploadTooSlow,
    errors.BodyTooLarge,
    errors.ImageTooLarge,
    errors.OutputTooLarge,
    errors.UnsupportedFormat,
    errors.InvalidOption,
    errors.QueueFull,
    errors.NotReady,
    errors.Draining,
    errors.OutOfMemory,
    errors.DeadlineExceeded,
)
_HEADERS = {
    "Content-Disposition": "A file name from the upload's name and the variant.",
    "X-Request-Id": "Id of this request; yours is echoed if you send one.",
    "X-Swin2SR-Variant": "The variant that was used.",
    "X-Swin2SR-Scale": "Scale of the variant.",
    "X-Swin2SR-Precision": "Precision of the computation: exact, high or fast.",
    "X-Swin2SR-Tiles": "Number of tiles.",
    "X-Swin2SR-Steps": "The passes and the resizing, for example `small-jpeg; small-x4; resize 2000x1500`.",
    "X-Swin2SR-Restored": "The variant that removed compression artefacts first, and the upload's estimated quality.",
    "X-Swin2SR-Quality": "The quality that was chosen for `max_bytes`.",
    "X-Swin2SR-Notice": "Metadata or precision lost in the output format, if any.",
    "Server-Timing": "Milliseconds: decode, queue, forward, encode.",
}
_IMAGE: dict[int | str, dict[str, object]] = {
    200: {
        "description": "The upscaled image; with `Accept: multipart/mixed`, preceded by JSON progress parts.",
        "content": {
            "image/*": {"schema": _BINARY},
            PLAIN: {"schema": _BINARY},
            MIXED: {"schema": _BINARY, "example": PROGRESS},
        },
        "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()},
    }
}


@dataclass(frozen=True)
class RequestResources:
    """The reservations of a request in the budgets for uploads, memory and responses, until its response was sent."""

    upload: ByteReservation
    memory: ByteReservation
    response: ByteReservation

    def caller(self, deadline: float, client: str, on_progress: Callable[[JobProgress], None] | None = None) -> Caller:
        """A caller with these reservations."""
        return Caller(
            deadline, client, on_progress, partial(self.upload.set, 0), response=self.response, memory=self.memory
        )


async def request_resources(service: ServiceDependency) -> AsyncIterator[RequestResources]:
    """The reservations of this request."""
    with (
        service.uploads.open() as upload,
        service.memory.open() as memory,
        service.responses.open() as response,
    ):
        yield RequestResources(upload, memory, response)


ResourcesDependency = Annotated[RequestResources, Depends(request_resources)]


@router.post(
    "/v1/upscale",
    summary="Upscale or restore one image",
    response_class=Response,
    openapi_extra=_BODY,
    responses={**_IMAGE, **_ERRORS},
)
async def upscale(
    request: Request,
    service: ServiceDependency,
    client: ClientDependency,
    resources: ResourcesDependency,
    options: Annotated[UpscaleOptions, Query()],
) -> Response:
    """Send the image as the part ``file`` of a form, or as the body itself.

    Options are query parameters, or text fields of the form.

    With ``Accept: multipart/mixed`` the response contains progress in JSON parts before the image.
    """
    settings = service.settings
    deadline = _deadline(request, options, settings)
    upload_timeout = settings.upload_timeout_ms / 1000
    upload = await read_upload(
        request, resources.upload, max_bytes=settings.max_body_bytes, upload_timeout=upload_timeout, deadline=deadline
    )
    options, notice = with_fields(options, upload.fields, request.query_params)
    deadline = _deadline(request, options, settings)
    plain = re.fullmatch(rf"\s*{PLAIN}\s*(;[^,]*)?", request.headers.get("accept", ""), re.I) is not None
    add_log_fields(request.scope, variant=service.registry.resolve(options.variant).name)

    async def answer(on_progress: Callable[[JobProgress], None] | None = None) -> Response:
        caller = resources.caller(deadline, client, on_progress)
        upscaled = await service.pipeline.upscale(upload, options, caller)
        log_result(request.scope, upscaled)
        return Response(
            upscaled.encoded.body,
            media_type=PLAIN if plain else upscaled.encoded.media_type,
            headers=_headers(upscaled, upload.filename, notice),
        )

    if wants_progress(request):
        return ProgressResponse(answer)
    return await while_connected(request.receive, answer())


def _deadline(request: Request, options: UpscaleOptions, settings: Settings) -> float:
    """Time of ``time.monotonic()`` after which the request fails."""
    timeout_ms = min(options.timeout_ms or settings.request_timeout_ms, settings.request_timeout_ms)
    return arrived_at(request.scope) + timeout_ms / 1000


def log_result(scope: Scope, upscaled: Upscaled) -> None:
    """Add the result of a request to its log line and to the metrics."""
    add_log_fields(
        scope,
        outcome="ok",
        variant=upscaled.variant,
        pixels=upscaled.pixels,
        tiles=upscaled.tiles,
        **{f"{stage}_ms": round(seconds * 1000, 1) for stage, seconds in upscaled.seconds.items()},
    )


def _headers(upscaled: Upscaled, filename: str, notice: str) -> dict[str, str]:
    stem = PurePosixPath(filename.replace("\\", "/")).stem or "image"
    name = f"{stem}-{upscaled.variant}{upscaled.encoded.extension}"
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._- ") else "_" for letter in name)
    headers = {
        "Content-Disposition": f"inline; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}",
        "X-Swin2SR-Variant": upscaled.variant,
        "X-Swin2SR-Scale": str(upscaled.scale),
        "X-Swin2SR-Precision": upscaled.precision,
        "X-Swin2SR-Tiles": str(upscaled.tiles),
        "X-Swin2SR-Steps": upscaled.steps,
        "Server-Timing": ", ".join(
            f"{stage};dur={upscaled.seconds[stage] * 1000:.1f}" for stage in ("decode", "queue", "forward", "encode")
        ),
    }
    if upscaled.restored:
        headers["X-Swin2SR-Restored"] = upscaled.restored
    if upscaled.quality is not None:
        headers["X-Swin2SR-Quality"] = str(upscaled.quality)
    if notices := [each for each in (upscaled.encoded.notice, notice) if each]:
        headers["X-Swin2SR-Notice"] = "; ".join(notices)
    return headers
