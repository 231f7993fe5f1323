"""A request on its way: what is sent, until when, and whether it is sent again."""

from __future__ import annotations

import asyncio
import io
import os
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO, Literal, TypedDict
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from ..errors import DeadlineExceeded, InvalidOption, QueueFull, ServiceError
from ..schemas import UpscaleOptions
from .answer import Answer, OnProgress

CHUNK = 1 << 16
"""Bytes that are sent at once."""

CONNECT_SECONDS = 10.0
LONGEST_PAUSE = 4.0
"""Seconds between two attempts to reach a server that is away."""

Source = bytes | str | os.PathLike[str] | BinaryIO
"""An image to send: its bytes, where it lies, or an open binary file."""


class ServerUnreachable(ConnectionError):  # noqa: N818 - a sister of the service's own errors
    """No server answers there, or it broke off again and again for as long as the client's retry_window."""


class Options(TypedDict, total=False):
    """The options of ``POST /v1/upscale`` beside the variant, as ``app.schemas.UpscaleOptions`` has them."""

    width: int
    height: int
    factor: float
    ensemble: bool
    format: Literal["png", "jpeg", "webp", "tiff", "avif", "same"]
    quality: int
    metadata: Literal["keep", "strip"]
    tile: int | Literal["auto"]


def query(variant: str | None, options: Options) -> dict[str, str]:
    """Options as a query.

    Raises:
        InvalidOption: if one has a value that it cannot have, or there is no such option.
    """
    wishes = {**options, **({} if variant is None else {"variant": variant})}
    try:
        chosen = UpscaleOptions.model_validate(wishes).model_dump(mode="json", exclude_unset=True, exclude_none=True)
    except ValidationError as error:
        sentences = [f"{'.'.join(map(str, fault['loc'])) or 'options'}: {fault['msg']}" for fault in error.errors()]
        raise InvalidOption("; ".join(sentences), errors=sentences) from None
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in chosen.items()}


def opened(image: Source) -> AbstractContextManager[BinaryIO]:
    """An image as a seekable file; one that the caller opened stays open."""
    if isinstance(image, bytes | bytearray | memoryview):
        return io.BytesIO(image)
    if isinstance(image, str | os.PathLike):
        return Path(image).open("rb")
    return nullcontext(image) if image.seekable() else io.BytesIO(image.read())


def unreachable(url: httpx.URL, error: httpx.TransportError) -> ServerUnreachable:
    """The error that callers see."""
    return ServerUnreachable(f"No server answers at {url}: {error or type(error).__name__}")


class Attempt(TypedDict):
    """What httpx is asked for."""

    method: str
    url: str
    params: dict[str, str]
    headers: dict[str, str]
    timeout: httpx.Timeout


class Call:
    """One image on its way.

    Args:
        file: seekable; sent from where it stands.
        options: as ``query`` gives them.
        timeout: seconds until the answer is of no use.
        retry_window: seconds for which a server that is away is tried again.
        into: a seekable file for the answer, or None.
        on_progress: asks for the progress, and is told it.
    """

    def __init__(
        self,
        file: BinaryIO,
        options: dict[str, str],
        *,
        timeout: float,
        retry_window: float,
        into: BinaryIO | None,
        on_progress: OnProgress | None,
    ) -> None:
        self._file, self._start = file, file.tell()
        self._size = file.seek(0, os.SEEK_END) - self._start
        self._options = options
        self._retry_window = retry_window
        self._into = into
        self._into_start = into.tell() if into else 0
        self._on_progress = on_progress
        self._deadline = time.monotonic() + timeout
        self._away_since: float | None = None
        self._misses = 0

    def attempt(self) -> Attempt:
        """The request as it is sent now: its deadline is what is left."""
        self.check_deadline()
        left = self._deadline - time.monotonic()
        name = Path(str(getattr(self._file, "name", ""))).name
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(self._size),
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
            "Accept": "multipart/mixed" if self._on_progress else "image/*",
        }
        params = {**self._options, "timeout_ms": str(max(1, int(left * 1000)))}
        timeout = httpx.Timeout(left, connect=min(left, CONNECT_SECONDS))
        return Attempt(method="POST", url="/v1/upscale", params=params, headers=headers, timeout=timeout)

    def chunks(self) -> Iterator[bytes]:
        """The image from its beginning."""
        self._file.seek(self._start)
        while chunk := self._file.read(CHUNK):
            yield chunk

    async def achunks(self) -> AsyncIterator[bytes]:
        """The image from its beginning, read in a thread."""
        self._file.seek(self._start)
        while chunk := await asyncio.to_thread(self._file.read, CHUNK):
            yield chunk

    def receive(self, response: httpx.Response) -> Answer:
        """A place for the response, with nothing left of an earlier one."""
        if self._into:
            self._into.seek(self._into_start)
            self._into.truncate()
        return Answer(response, self._into, self._on_progress)

    def check_deadline(self) -> None:
        """Raise DeadlineExceeded if the time is over."""
        if time.monotonic() >= self._deadline:
            raise DeadlineExceeded("The deadline passed before the answer was there. Give more time.")

    def pause_after(self, error: ServiceError | httpx.TransportError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            ServiceError, ServerUnreachable: if another attempt makes no sense.
        """
        now = time.monotonic()
        if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError | httpx.ConnectTimeout):
            final: Exception = ServerUnreachable(f"The connection is lost: {error or type(error).__name__}")
            final.__cause__ = error
            pause = min(LONGEST_PAUSE, 0.25 * 2**self._misses)
        elif isinstance(error, httpx.TimeoutException):
            raise DeadlineExceeded("The deadline passed before the answer was there. Give more time.") from error
        elif isinstance(error, ServiceError) and error.retry_after is not None and error.status in (429, 503):
            final, pause = error, float(error.retry_after)
        elif isinstance(error, ServiceError):
            raise error
        else:
            raise ServerUnreachable(str(error)) from error
        if isinstance(error, QueueFull):
            self._away_since, self._misses = None, 0
        else:
            self._misses += 1
            self._away_since = self._away_since or now
            if now + pause >= self._away_since + self._retry_window:
                raise final
        if now + pause > self._deadline:
            raise final
        return pause * random.uniform(1, 1.1)  # noqa: S311 - so that those who were refused together do not return so
