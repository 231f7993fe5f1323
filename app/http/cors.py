"""CORS: the origins whose pages may call the API from a browser."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from app.errors import BadRequest

EXPOSED = (
    "Content-Disposition",
    "Retry-After",
    "Server-Timing",
    "WWW-Authenticate",
    "X-Request-Id",
    "X-Swin2SR-Notice",
    "X-Swin2SR-Precision",
    "X-Swin2SR-Quality",
    "X-Swin2SR-Restored",
    "X-Swin2SR-Scale",
    "X-Swin2SR-Steps",
    "X-Swin2SR-Tiles",
    "X-Swin2SR-Variant",
)
"""Response headers that a page may read."""


class CrossOrigin(CORSMiddleware):
    """Starlette's CORS middleware with the headers of this API. A refused preflight gets a problem document.

    Args:
        app: the next application.
        origins: allowed origins; ``*`` allows all.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            expose_headers=EXPOSED,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """The response to a preflight request."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        error = BadRequest(f"{bytes(response.body).decode()}. SWIN2SR_CORS_ORIGINS lists the allowed origins.")
        kept = {
            name: value for name, value in response.headers.items() if name not in ("content-length", "content-type")
        }
        return JSONResponse(error.problem(), response.status_code, kept, "application/problem+json")

    def headers_for(self, origin: str) -> list[tuple[bytes, bytes]]:
        """Headers of a response outside of the application.

        Args:
            origin: the request's; empty if it has none.
        """
        headers = MutableHeaders(self.simple_headers if origin else {})
        if origin and not self.allow_all_origins and self.is_allowed_origin(origin):
            self.allow_explicit_origin(headers, origin)
        else:
            headers["Vary"] = "Origin"
        return headers.raw
