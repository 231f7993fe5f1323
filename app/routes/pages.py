"""What people see: a page of its own files and of nothing else."""

from __future__ import annotations

from importlib.resources import files
from types import MappingProxyType

from fastapi import APIRouter
from fastapi.responses import Response

from app.errors import NotFound
from app.sample import draw_sample

router = APIRouter(include_in_schema=False)

MEDIA_TYPES = MappingProxyType(
    {
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
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
def show_page() -> Response:
    """The web page."""
    return _answer("index.html")


@router.get("/docs")
def show_documents() -> Response:
    """What ``/openapi.json`` says, to read and to try."""
    return _answer("docs.html")


@router.get("/web/sample.png")
def show_sample() -> Response:
    """A picture to try the service with."""
    return Response(draw_sample(), media_type="image/png", headers=dict(HEADERS))


@router.get("/web/{name}")
def show_file(name: str) -> Response:
    """A part of the page.

    Raises:
        NotFound: if it has no such part.
    """
    return _answer(name)


def _answer(name: str) -> Response:
    parts = {entry.name: entry for entry in files("app").joinpath("web").iterdir()}
    suffix = name[name.rfind(".") :]
    if name not in parts or suffix not in MEDIA_TYPES:
        raise NotFound("The page has no such part. GET / shows the page.")
    return Response(parts[name].read_bytes(), media_type=MEDIA_TYPES[suffix], headers=dict(HEADERS))
