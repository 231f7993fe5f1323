"""What people see: a page of its own files and of nothing else."""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from types import MappingProxyType

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.errors import NotFound
from app.imaging.sample import draw_sample

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
"""Of every answer: nothing is loaded from elsewhere, and no other page may put this one into a frame."""


@router.get("/")
def show_page(request: Request) -> Response:
    """The web page."""
    return _answer(request, "index.html")


@router.get("/docs")
def show_documents(request: Request) -> Response:
    """What ``/openapi.json`` says, to read and to try."""
    return _answer(request, "docs.html")


@router.get("/status")
def show_status(request: Request) -> Response:
    """Whether the service is ready and which variants it has, for people."""
    return _answer(request, "status.html")


@router.get("/web/sample.png")
def show_sample(request: Request) -> Response:
    """A picture to try the service with."""
    return _respond(request, draw_sample(), "image/png")


@router.get("/web/{name}")
def show_file(request: Request, name: str) -> Response:
    """A part of the page.

    Raises:
        NotFound: if it has no such part.
    """
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    parts = {entry.name: entry for entry in files("app").joinpath("web").iterdir()}
    suffix = name[name.rfind(".") :]
    if name not in parts or suffix not in MEDIA_TYPES:
        raise NotFound("The page has no such part. GET / shows the page.")
    return _respond(request, parts[name].read_bytes(), MEDIA_TYPES[suffix])


def _respond(request: Request, body: bytes, media_type: str) -> Response:
    """The body, or that the browser has it already."""
    tag = f'"{sha256(body).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)
