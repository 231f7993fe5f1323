"""A response as it comes: an image or a problem document, alone or behind parts that tell the progress."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from email.utils import collapse_rfc2231_value
from pathlib import Path
from typing import BinaryIO, Literal

import httpx

from ..errors import NotReady, ServiceError, error_from_problem
from .multipart import MultipartSplitter

AWAY = frozenset({502, 503, 504})
"""What a proxy says for a server that is not there."""


@dataclass(frozen=True)
class Progress:
    """How far a request is: ``queued`` at a position (1 is next), or ``running``, so many tiles done of all."""

    state: Literal["queued", "running"]
    position: int = 0
    tile: int = 0
    tiles: int = 0


OnProgress = Callable[[Progress], object]


@dataclass(frozen=True)
class UpscaledImage:
    """An answer: the image's bytes (none where they went ``into`` a file), and what the server says about it."""

    content: bytes = field(repr=False)
    media_type: str
    filename: str
    variant: str
    scale: int
    tiles: int
    request_id: str
    notice: str = ""
    """What the format could not hold."""
    timing: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds by stage, from ``Server-Timing``."""

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the image to a file."""
        Path(file).write_bytes(self.content)


class Answer:
    """One response.

    Args:
        response: its status and headers; the body is fed.
        into: where an image goes, else it is kept.
        on_progress: told each step.
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
        """Take what has come."""
        for event in self._splitter.feed(chunk) if self._splitter else (chunk,):
            if isinstance(event, httpx.Headers):
                self._headers = event
            elif isinstance(event, bytes):
                self._take(event)
            else:
                self._end_part()

    def finish(self) -> UpscaledImage:
        """The image.

        Raises:
            ServiceError: that came in its place.
            httpx.RemoteProtocolError: if the answer broke off.
        """
        if self._splitter is None:
            self._end_part()
        if self._error:
            raise self._error
        if not self._complete:
            raise httpx.RemoteProtocolError("the answer ended before the image")
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
        )

    def _take(self, chunk: bytes) -> None:
        if self._into and self._response.is_success and _media_type(self._headers).startswith("image/"):
            self._into.write(chunk)
        else:
            self._body += chunk

    def _end_part(self) -> None:
        media_type = _media_type(self._headers)
        if self._response.is_success and media_type.startswith("image/"):
            self._complete = True
        elif self._response.is_success and media_type == "application/json":
            self._tell(json.loads(self._body))
            self._body.clear()
        else:
            self._error = _error(self._response.status_code, self._headers, bytes(self._body))

    def _tell(self, step: Mapping[str, int]) -> None:
        if self._on_progress:
            known = {name: value for name, value in step.items() if name in Progress.__dataclass_fields__}
            self._on_progress(Progress(**known))  # type: ignore[arg-type]


def check(response: httpx.Response) -> bytes:
    """A complete response's body.

    Raises:
        ServiceError: that the response describes.
    """
    if response.is_success:
        return response.content
    raise _error(response.status_code, response.headers, response.content)


def _error(status: int, headers: httpx.Headers, body: bytes) -> ServiceError:
    after = headers.get("retry-after", "")
    retry_after = int(after) if after.isdecimal() else None
    if _media_type(headers) == "application/problem+json":
        return error_from_problem(json.loads(body), retry_after=retry_after)
    if status in AWAY:
        return NotReady(f"Something between here and the server answers {status}.", retry_after=retry_after)
    detail = f"The server answers {status} without saying why. Is this the address of a Swin2SR server?"
    return error_from_problem({"status": status, "detail": detail})


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
