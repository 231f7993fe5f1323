"""The Open Inference Protocol (version 2): every variant is a model with an encoded image as input and as output.

The request's body is JSON, with the image in base64, or JSON followed by binary data (the extension
``binary_tensor_data``). Errors are ``{"error": ...}``; see ``app.http.handlers``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import JSONResponse

from app.errors import NotFound
from app.http.middleware import add_log_fields, arrived_at
from app.http.open_inference import Answer, Call, encode_answer, parse_call
from app.http.uploads import Upload, read_body
from app.pipeline import Caller
from app.routes import ServiceDependency
from app.routes.access import ClientDependency, current_client
from app.routes.connection import while_connected
from app.routes.upscale import ResourcesDependency, log_result
from app.service import Service
from app.version import DISTRIBUTION, service_version

VERSION = "1"
"""The only version of each model."""

LENGTH = "Inference-Header-Content-Length"
"""Bytes of JSON at the start of a body; the rest is binary data."""

router = APIRouter(prefix="/v2", include_in_schema=False)
models = APIRouter(prefix="/v2/models/{name}", include_in_schema=False, dependencies=[Depends(current_client)])


@router.get("")
async def server_metadata() -> dict[str, object]:
    """Name, version and extensions of the server."""
    return {"name": DISTRIBUTION, "version": service_version(), "extensions": ["binary_tensor_data"]}


@router.get("/health/live")
async def server_live(service: ServiceDependency) -> dict[str, bool]:
    """Whether the process works; 503 only if a restart helps."""
    service.check_liveness()
    return {"live": True}


@router.get("/health/ready")
async def server_ready(service: ServiceDependency) -> Response:
    """Whether requests should be sent here now; 503 with the reasons if not."""
    return _readiness({}, "; ".join(service.reasons_not_ready()))


def check_version(version: str = VERSION) -> None:
    """Check the version of a model.

    Raises:
        NotFound: if it is not ``VERSION``.
    """
    if version != VERSION:
        raise NotFound(f"Unknown version {version[:100]!r} of this model. Use {VERSION!r}.")


VersionDependency = Depends(check_version)


@models.get("")
@models.get("/versions/{version}", dependencies=[VersionDependency])
async def model_metadata(name: str, service: ServiceDependency) -> dict[str, object]:
    """Inputs and outputs of a model."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
    variant = service.registry.find(name)
    return {"name": variant.name, "versions": [VERSION], "platform": "pytorch", "inputs": [tensor], "outputs": [tensor]}


@models.get("/ready")
@models.get("/versions/{version}/ready", dependencies=[VersionDependency])
async def model_ready(name: str, service: ServiceDependency) -> Response:
    """Whether a variant is loaded and warm; 503 with the reason if not."""
    described = service.registry.describe(name)
    return _readiness(
        {"name": described.name}, "" if described.state == "ready" else described.reason or described.state
    )


@models.post("/infer")
@models.post("/versions/{version}/infer", dependencies=[VersionDependency])
async def infer(
    name: str,
    request: Request,
    *,
    service: ServiceDependency,
    client: ClientDependency,
    resources: ResourcesDependency,
    header_length: Annotated[int | None, Header(alias=LENGTH, ge=0)] = None,
) -> Response:
    """Upscale one image; options are the request's ``parameters``."""
    settings = service.settings
    add_log_fields(request.scope, variant=service.registry.resolve(name).name)
    longest = arrived_at(request.scope) + settings.request_timeout_ms / 1000
    body = await read_body(
        request,
        resources.upload,
        max_bytes=settings.max_body_bytes,
        upload_timeout=settings.upload_timeout_ms / 1000,
        deadline=longest,
    )
    # In a thread, because parsing JSON and base64 of the largest body takes a second.
    call = await asyncio.to_thread(parse_call, body, header_length, name)
    del body
    timeout = min(call.options.timeout_ms or settings.request_timeout_ms, settings.request_timeout_ms) / 1000
    caller = resources.caller(arrived_at(request.scope) + timeout, client)
    return await while_connected(request.receive, _answer(request, service, call, caller))


async def _answer(request: Request, service: Service, call: Call, caller: Caller) -> Response:
    upscaled = await service.pipeline.upscale(Upload(call.image, ""), call.options, caller)
    log_result(request.scope, upscaled)
    answer = Answer(upscaled.variant, VERSION, upscaled.encoded.body, upscaled.encoded.media_type)
    content, length = await asyncio.to_thread(encode_answer, call, answer)
    if length is None:
        return Response(content, media_type="application/json")
    return Response(content, media_type="application/octet-stream", headers={LENGTH: str(length)})


def _readiness(about: Mapping[str, object], reason: str) -> Response:
    """The response of a readiness endpoint: 503 if there is a reason."""
    if not reason:
        return JSONResponse({**about, "ready": True})
    return JSONResponse({**about, "ready": False, "error": reason}, 503, {"Retry-After": "1"})
