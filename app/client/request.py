"""A request for one image: its options, and its attempts."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, TypedDict
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from ..errors import InvalidOption
from ..schemas import UpscaleOptions, option_faults
from .response import OnProgress, ResponseReader
from .retries import Retries, Server

CHUNK = 1 << 16
"""Bytes that are sent or read at a time."""


class Options(TypedDict, total=False):
    """The options of ``POST /v1/upscale`` except the variant, as in ``app.schemas.UpscaleOptions``."""

    width: int
    height: int
    factor: float
    megapixels: float
    fit: Literal["inside", "cover", "exact"]
    enlarge: bool
    restore: Literal["auto", "always", "never"]
    strength: float
    ensemble: bool
    format: Literal["png", "jpeg", "webp", "tiff", "avif", "jxl", "same"]
    quality: int
    max_bytes: int
    metadata: Literal["keep", "strip"]
    tile: int | Literal["auto"]
    timeout_ms: int


class Attempt(TypedDict):
    """Arguments of httpx for one attempt."""

    method: str
    url: str
    params: dict[str, str]
    headers: dict[str, str]
    timeout: httpx.Timeout


def new_request_id() -> str:
    """An id that the server writes to its log."""
    return secrets.token_hex(16)


def build_query(variant: str | None, options: Options, request_id: str) -> dict[str, str]:
    """Check options, and turn them into query parameters.

    Raises:
        InvalidOption: if an option is unknown, or has an invalid value.
    """
    values = {**options, **({} if variant is None else {"variant": variant})}
    try:
        chosen = UpscaleOptions.model_validate(values).model_dump(mode="json", exclude_unset=True, exclude_none=True)
    except ValidationError as error:
        sentences = option_faults(error.errors())
        invalid = InvalidOption("; ".join(sentences), errors=sentences)
        invalid.request_id = request_id
        raise invalid from None
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in chosen.items()}


class UpscaleRequest:
    """One image to upscale.

    Args:
        file: seekable; sent from its current position.
        query: as ``build_query`` returns it. ``timeout_ms`` in it shortens ``timeout``.
        server: that is asked.
        request_id: sent as ``X-Request-Id``.
        timeout: seconds until the response is of no use, retries included.
        into: seekable file for the response, or None.
        on_progress: called with each step, or None for a response without progress.
    """

    def __init__(
        self,
        file: BinaryIO,
        query: dict[str, str],
        *,
        server: Server,
        request_id: str,
        timeout: float,
        into: BinaryIO | None,
        on_progress: OnProgress | None,
    ) -> None:
        self._file, self._start = file, file.tell()
        self._size = file.seek(0, os.SEEK_END) - self._start
        self._query = query
        self._server = server
        self._request_id = request_id
        self._into = into
        self._into_start = into.tell() if into else 0
        self._on_progress = on_progress
        if "timeout_ms" in query:
            timeout = min(timeout, int(query["timeout_ms"]) / 1000)
        self.retries = Retries(server, timeout, request_id)

    def attempt(self) -> Attempt:
        """The next attempt. Its deadline is the time that is left.

        Raises:
            DeadlineExceeded: if none is left.
        """
        left = self.retries.begin_attempt()
        name = Path(str(getattr(self._file, "name", ""))).name
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(self._size),
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
            "Accept": "multipart/mixed" if self._on_progress else "image/*",
            "X-Request-Id": self._request_id,
        }
        params = {**self._query, "timeout_ms": str(max(1, int(left * 1000)))}
        timeout = httpx.Timeout(left, connect=min(left, self._server.connect_timeout))
        return Attempt(method="POST", url="/v1/upscale", params=params, headers=headers, timeout=timeout)

    def chunks(self) -> Iterator[bytes]:
        """The image, from its start."""
        self._file.seek(self._start)
        while chunk := self._file.read(CHUNK):
            yield chunk

    async def achunks(self) -> AsyncIterator[bytes]:
        """The image, from its start; the file is read in a thread."""
        self._file.seek(self._start)
        while chunk := await asyncio.to_thread(self._file.read, CHUNK):
            yield chunk

    def read(self, response: httpx.Response) -> ResponseReader:
        """A reader for a response. Removes what an earlier attempt wrote into the caller's file."""
        self._server.answered = True
        if self._into:
            self._into.seek(self._into_start)
            self._into.truncate()
        return ResponseReader(response, self._into, self._on_progress)
