"""Reads a response: an image or a problem document, alone or preceded by JSON progress parts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from email.utils import collapse_rfc2231_value
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import httpx

from ..errors import NotReady, ServiceError, error_from_problem
from .images import decode
from .multipart import MultipartSplitter

if TYPE_CHECKING:
    from PIL import Image

PROXY_STATUSES = frozenset({502, 503, 504})
"""Statuses of a proxy whose server cannot be reached."""


@dataclass(frozen=True)
class Progress:
    """The progress of a request.

    Attributes:
        state: ``queued``, or ``running`` once the first tile is computed.
        position: in the queue; 1 is next.
        tile, tiles: finished tiles, and all tiles.
    """

    state: Literal["queued", "running"]
    position: int = 0
    tile: int = 0
    tiles: int = 0


OnProgress = Callable[[Progress], object]


@dataclass(frozen=True)
class UpscaledImage:
    """An upscaled image, and what the server reports about it.

    Attributes:
        content: the encoded image; empty if it was written ``into`` a file.
        notice: what the output format lost, if anything.
        timing: milliseconds by stage.
        steps: the steps that were run, for example ``small-x4; resize 2000x1500``, if the server reports them.
        restored: the variant that removed compression artefacts first, if any.
        precision: of the computation, if the server reports it.
        quality: that was chosen to keep ``max_bytes``, or None.
    """

    content: bytes = field(repr=False)
    media_type: str
    filename: str
    variant: str
    scale: int
    tiles: int
    request_id: str
    notice: str = ""
    timing: Mapping[str, float] = field(default_factory=dict)
    steps: str = ""
    restored: str = ""
    precision: str = ""
    quality: int | None = None

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the image to a file."""
        Path(file).write_bytes(self.content)

    def image(self) -> Image.Image:
        """Decode the image with Pillow, which reads 16-bit colour as 8 bits.

        Raises:
            ValueError: if the image was written ``into`` a file.
            ImportError: if Pillow is not installed.
        """
        if not self.content:
            raise ValueError("The image was written into a file. Open that file, or call upscale() without `into`.")
        return decode(self.content)


class ResponseReader:
    """Reads one response from its chunks.

    Args:
        response: its status and headers. The body is passed to ``feed``.
        into: file for the image; None keeps it in memory.
        on_progress: called with each step.
    """

    def __init__(self, response: httpx.Response, into: BinaryIO | None, on_progress: OnProgress | None) -> None:
        self._response = response
        self._into = into
        self._on_progress = on_progress
        self._headers = response.headers
        self._body = bytearray()
        self._error: ServiceError | None = None
        self._complete = False
        media_type = _media_type(response.headers)
        boundary = _parameter(response.headers.get("content-type", ""), "boundary")
        self._splitter = MultipartSplitter(boundary) if media_type == "multipart/mixed" else None

    def feed(self, chunk: bytes) -> None:
        """Read a chunk of the body."""
        for event in self._splitter.feed(chunk) if self._splitter else (chunk,):
            if isinstance(event, httpx.Headers):
                self._headers = event
            elif isinstance(event, bytes):
                self._keep(event)
            else:
                self._end_part()

    def finish(self) -> UpscaledImage:
        """The image, after the last chunk.

        Raises:
            ServiceError: if the server sent an error.
            httpx.RemoteProtocolError: if the response is incomplete.
        """
        if self._splitter is None:
            self._end_part()
        if self._error:
            raise self._error
        if not self._complete:
            raise httpx.RemoteProtocolError("the response ended before the image was complete")
        headers = httpx.Headers({**self._response.headers, **self._headers})
        return UpscaledImage(
            content=bytes(self._body),
            media_type=_media_type(headers),
            filename=_parameter(headers.get("content-disposition", ""), "filename"),
            variant=headers.get("x-swin2sr-variant", ""),
            scale=int(headers.get("x-swin2sr-scale", "1")),
            tiles=int(headers.get("x-swin2sr-tiles", "1")),
            request_id=headers.get("x-request-id", ""),
            notice=headers.get("x-swin2sr-notice", ""),
            timing=_timing(headers.get("server-timing", "")),
            steps=headers.get("x-swin2sr-steps", ""),
            restored=headers.get("x-swin2sr-restored", ""),
            precision=headers.get("x-swin2sr-precision", ""),
            quality=int(quality) if (quality := headers.get("x-swin2sr-quality", "")).isdecimal() else None,
        )

    def _keep(self, chunk: bytes) -> None:
        if self._into and self._response.is_success and _media_type(self._headers).startswith("image/"):
            self._into.write(chunk)
        else:
            self._body += chunk

    def _end_part(self) -> None:
        media_type = _media_type(self._headers)
        if self._response.is_success and media_type.startswith("image/"):
            self._complete = True
        elif self._response.is_success and media_type == "application/json":
            self._report(json.loads(self._body))
            self._body.clear()
        else:
            self._error = _error(self._response, self._headers, bytes(self._body))

    def _report(self, step: Mapping[str, int]) -> None:
        if self._on_progress:
            known = {name: value for name, value in step.items() if name in Progress.__dataclass_fields__}
            self._on_progress(Progress(**known))  # type: ignore[arg-type]


def check(response: httpx.Response) -> bytes:
    """The body of a complete response, which is JSON.

    Raises:
        ServiceError: if the response is an error, or not JSON.
    """
    if response.is_success and _media_type(response.headers) == "application/json":
        return response.content
    raise _error(response, response.headers, response.content)


def _error(response: httpx.Response, headers: httpx.Headers, body: bytes) -> ServiceError:
    """The error of a response, or of a part of it."""
    after = headers.get("retry-after", "")
    retry_after = int(after) if after.isdecimal() else None
    status, url = response.status_code, response.url.copy_with(query=None)
    error: ServiceError
    if _media_type(headers) == "application/problem+json":
        error = error_from_problem(json.loads(body), retry_after=retry_after)
    elif status in PROXY_STATUSES:
        error = NotReady(f"A proxy answered {status} for {url}: it cannot reach the server.", retry_after=retry_after)
    else:
        detail = f"{url} answered {status} without a problem document. Is this the URL of a Swin2SR server?"
        error = error_from_problem({"status": status, "detail": detail})
    error.request_id = error.request_id or response.headers.get("x-request-id", "")
    return error


def _media_type(headers: httpx.Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _parameter(value: str, name: str) -> str:
    """A parameter of a header such as Content-Type or Content-Disposition."""
    message = Message()
    message["Content-Disposition"] = value
    found = dict(message.get_params(header="content-disposition") or [])  # of filename and filename*, the latter stays
    return collapse_rfc2231_value(found.get(name, ""))


def _timing(header: str) -> dict[str, float]:
    stages = (stage.strip().partition(";dur=") for stage in header.split(","))
    return {name: float(milliseconds) for name, _, milliseconds in stages if milliseconds}
