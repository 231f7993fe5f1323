"""Builds the FastAPI application: its routers, middleware and error handlers. Importing this module does nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware

from app.http.cors import CrossOrigin
from app.http.forwarded import Forwarded
from app.http.handlers import EXCEPTION_HANDLERS
from app.http.head import HeadAsGet
from app.http.hosts import AllowedHosts
from app.http.middleware import FailureResponses, RequestContext
from app.routes import health, open_inference, pages, upscale, variants
from app.schemas import Problem
from app.service import Service, build_service
from app.settings import Settings
from app.tracing import Tracer, make_tracer
from app.variants.loaded_model import Load
from app.version import service_version

ROUTERS = (
    upscale.router,
    open_inference.router,
    open_inference.models,
    variants.router,
    variants.admin_router,
    health.router,
    pages.router,
)

logger = logging.getLogger(__name__)


class Application(FastAPI):
    """FastAPI, with the problem document among the schemas that its OpenAPI document refers to."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        document = super().openapi()
        document["components"]["schemas"].setdefault("Problem", Problem.model_json_schema())
        return document


def create_app(
    settings: Settings | None = None,
    *,
    load: Load | None = None,
    on_ready: Callable[[], None] = lambda: None,
    on_fatal: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
    boot_first: bool = False,
) -> FastAPI:
    """Build a complete, independent service. Its threads run while the application's lifespan does.

    Args:
        settings: read from the environment by default.
        load: loads the weights of a variant; a stand-in for tests.
        on_ready: called when all variants in ``settings.variants`` are loaded and warm.
        on_fatal: called, in any thread, when the service cannot continue and its process should end.
        clock: of the queue; a stand-in for tests.
        boot_first: load and warm the variants before the lifespan startup completes.

    Raises:
        pydantic.ValidationError: if a setting is invalid.
        ValueError: if a variant in ``settings.variants`` or the device does not exist.
    """
    service = build_service(settings or Settings(), load, on_fatal=on_fatal, clock=clock)
    tracer = make_tracer()
    app = Application(
        title="Swin2SR",
        version=service_version(),
        summary="Super-resolution and restoration of compressed images.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,  # FastAPI's own pages load scripts from a CDN
        redoc_url=None,
        lifespan=_lifespan(service, tracer, on_ready=on_ready, on_fatal=on_fatal, boot_first=boot_first),
        middleware=middleware(service, tracer),
        exception_handlers=dict(EXCEPTION_HANDLERS),
    )
    app.state.service = service
    for router in ROUTERS:
        app.include_router(router)
    return app


def _lifespan(
    service: Service,
    tracer: Tracer | None,
    *,
    on_ready: Callable[[], None],
    on_fatal: Callable[[], None],
    boot_first: bool,
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Start the service when the application starts, and drain it when the application ends."""

    def end_if_failed(boot: asyncio.Task[None]) -> None:
        if not boot.cancelled() and (error := boot.exception()):
            logger.critical("startup failed", exc_info=error)
            on_fatal()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        boot = asyncio.create_task(service.boot(on_ready))
        boot.add_done_callback(end_if_failed)
        if boot_first:
            await boot
        yield
        boot.cancel()
        await service.close()
        if tracer:
            tracer.close()

    return lifespan


def middleware(service: Service, tracer: Tracer | None) -> list[Middleware]:
    """The middleware of every request, the outermost first."""
    settings = service.settings

    def is_draining() -> bool:
        return service.state.leaving

    cross_origin = [Middleware(CrossOrigin, origins=settings.cors_origins)] if settings.cors_origins else []
    return [
        Middleware(Forwarded, trusted=settings.trusted_proxies, root_path=settings.root_path or ""),
        Middleware(
            RequestContext,
            on_start=service.metrics.start_request,
            on_end=service.metrics.end_request,
            tracer=tracer,
            is_draining=is_draining,
        ),
        *cross_origin,  # outside FailureResponses, so that pages of other origins can read errors too
        Middleware(FailureResponses, is_draining=is_draining),
        Middleware(AllowedHosts, names=settings.accepted_hosts),
        Middleware(HeadAsGet),
    ]
