"""The web page and its files."""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from types import MappingProxyType

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.errors import NotFound

router = APIRouter(include_in_schema=False)

MEDIA_TYPES = MappingProxyType(
    {
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".svg": "image/svg+xml",
        ".png": "image/png",
        ".webp": "image/webp",
    }
)
"""Of the files in ``app/web``."""

HEADERS = MappingProxyType(
    {
        "Content-Security-Policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
)
"""Headers of every response: nothing is loaded from other hosts, and other pages cannot embed this one."""


@router.get("/")
def show_page(request: Request) -> Response:
    """The web page."""
    return _answer(request, "index.html")


@router.get("/docs")
def show_documents(request: Request) -> Response:
    """The documentation of the API."""
    return _answer(request, "docs.html")


@router.get("/status")
def show_status(request: Request) -> Response:
    """The status page: whether the service is ready, and its variants."""
    return _answer(request, "status.html")


@router.get("/web/{name}")
def show_file(request: Request, name: str) -> Response:
    """A file of the page.

    Raises:
        NotFound: if it does not exist.
    """
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    parts = {entry.name: entry for entry in files("app").joinpath("web").iterdir()}
    suffix = name[name.rfind(".") :]
    if name not in parts or suffix not in MEDIA_TYPES:
        raise NotFound(f"No such file of the page: {name[:100]}. See GET /.")
    return _respond(request, parts[name].read_bytes(), MEDIA_TYPES[suffix])


def _respond(request: Request, body: bytes, media_type: str) -> Response:
    """The body, or 304 if the browser has it already."""
    tag = f'"{sha256(body).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)
