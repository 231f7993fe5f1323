"""A request's body as one file: streamed, bounded, and timed, whatever its framing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from app.errors import BodyTooLarge, DeadlineExceeded, InvalidUpload, QueueFull, UnsupportedFormat, UploadTooSlow

PART = "file"
LONGEST_NAME = 255


@dataclass(frozen=True)
class Upload:
    """One file as it was sent: its bytes, and its name where one was given."""

    body: bytes
    filename: str


class UploadBudget:
    """How many bytes of bodies are held at once, over all requests; used in the event loop alone.

    Args:
        limit: bytes.

    Attributes:
        held: bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    @contextmanager
    def reserve(self) -> Iterator[UploadReservation]:
        """One request's reservation, free again at the end of the block."""
        reservation = UploadReservation(self)
        try:
            yield reservation
        finally:
            self.held -= reservation.bytes


@dataclass
class UploadReservation:
    """What one request holds of a room."""

    budget: UploadBudget
    bytes: int = 0

    def check_capacity(self, expected: int) -> None:
        """Look for room for bytes that were announced; they are counted when they come.

        Raises:
            QueueFull: if there is none now.
        """
        if self.budget.held + expected > self.budget.limit:
            raise QueueFull(
                f"The uploads of all requests may have {self.budget.limit} bytes together. Try again after the time in "
                "Retry-After.",
                reason="bytes",
                limit=self.budget.limit,
                actual=self.budget.held + expected,
            )

    def add(self, received: int) -> None:
        """Count bytes that came.

        Raises:
            QueueFull: if there is no room for them.
        """
        self.check_capacity(received)
        self.bytes += received
        self.budget.held += received


async def read_upload(
    request: Request, reservation: UploadReservation, *, max_bytes: int, upload_timeout: float, deadline: float
) -> Upload:
    """Read the one file of a request.

    Args:
        request: ``multipart/form-data`` with a part ``file``, or the file itself with an image's content type.
        reservation: of the room for bodies, which this one is counted in.
        max_bytes: largest body, framing included; checked against ``Content-Length`` first, and while reading.
        upload_timeout: seconds that the body may take to arrive.
        deadline: time of ``time.monotonic()`` after which nobody waits for an answer.

    Raises:
        InvalidUpload: if there is not exactly one file with something in it.
        BodyTooLarge, UploadTooSlow, UnsupportedFormat, DeadlineExceeded: as their names say.
        QueueFull: if too many bytes of others' bodies are held now.
    """
    content_type, parameters = parse_options_header(request.headers.get("content-type", "application/octet-stream"))
    form = None
    if content_type == b"multipart/form-data":
        form = _Form(parameters.get(b"boundary", b""))
    elif not content_type.startswith(b"image/") and content_type != b"application/octet-stream":
        raise UnsupportedFormat(
            f"A body of type {content_type.decode('latin-1')[:100]!r} is not read here. Send multipart/form-data with "
            f"a part {PART!r}, or the image itself with its image/* content type."
        )
    body = await _read(
        request, form, reservation, max_bytes=max_bytes, upload_timeout=upload_timeout, deadline=deadline
    )
    upload = form.finish() if form else Upload(body, _disposition_name(request.headers.get("content-disposition", "")))
    if not upload.body:
        raise InvalidUpload("The upload is empty. Send the bytes of one image.")
    return upload


async def read_body(
    request: Request, reservation: UploadReservation, *, max_bytes: int, upload_timeout: float, deadline: float
) -> bytes:
    """Read the body of a request whatever it holds, with the limits of ``read_upload``.

    Raises:
        BodyTooLarge, UploadTooSlow, DeadlineExceeded, QueueFull: as for ``read_upload``.
    """
    return await _read(
        request, None, reservation, max_bytes=max_bytes, upload_timeout=upload_timeout, deadline=deadline
    )


async def _read(
    request: Request,
    form: _Form | None,
    reservation: UploadReservation,
    *,
    max_bytes: int,
    upload_timeout: float,
    deadline: float,
) -> bytes:
    _check_length(request.headers.get("content-length", ""), max_bytes, reservation)
    left = deadline - time.monotonic()
    try:
        async with asyncio.timeout(min(upload_timeout, left)):
            return await _receive(request, form, max_bytes, reservation)
    except TimeoutError:
        if left < upload_timeout:
            raise DeadlineExceeded(
                "The deadline passed while the body arrived. Ask for more time with timeout_ms."
            ) from None
        raise UploadTooSlow(
            f"The body was not complete after {upload_timeout:g} s. Send it faster, or send less.", limit=upload_timeout
        ) from None


def _check_length(content_length: str, max_bytes: int, reservation: UploadReservation) -> None:
    if not content_length.isdecimal():
        return
    announced = int(content_length[:20])
    if announced > max_bytes:
        raise _too_large(max_bytes, announced)
    reservation.check_capacity(announced)


def _too_large(max_bytes: int, actual: int) -> BodyTooLarge:
    return BodyTooLarge(f"A body may have {max_bytes} bytes at most.", limit=max_bytes, actual=actual)


async def _receive(request: Request, form: _Form | None, max_bytes: int, reservation: UploadReservation) -> bytes:
    body = bytearray()
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise _too_large(max_bytes, received)
        reservation.add(len(chunk))
        if form is None:
            body += chunk
        else:
            form.write(chunk)
    return bytes(body)


@dataclass
class _Form:
    """A multipart body, parsed as it comes; holds nothing but the one file."""

    boundary: bytes
    body: bytearray = field(default_factory=bytearray)
    filename: str = ""
    files: int = 0
    ended: bool = False
    _name: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _disposition: bytes = b""

    def __post_init__(self) -> None:
        if not self.boundary:
            raise InvalidUpload("The multipart body has no boundary in its Content-Type.")
        try:
            self._parser = MultipartParser(
                self.boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._take_name,
                    "on_header_value": self._take_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._take_data,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise InvalidUpload("The multipart boundary is malformed.") from error

    def write(self, chunk: bytes) -> None:
        """Parse what has come."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise InvalidUpload("The multipart body is malformed.") from error

    def finish(self) -> Upload:
        """The one file.

        Raises:
            InvalidUpload: if there is none, or the body ended early.
        """
        if not self.ended:
            raise InvalidUpload("The multipart body ends before its closing boundary.")
        if not self.files:
            raise InvalidUpload(f"The multipart body has no part named {PART!r}.")
        return Upload(bytes(self.body), self.filename)

    def _begin_part(self) -> None:
        self._disposition = b""

    def _take_name(self, chunk: bytes, start: int, end: int) -> None:
        self._name += chunk[start:end]

    def _take_value(self, chunk: bytes, start: int, end: int) -> None:
        self._value += chunk[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name != PART:
            raise InvalidUpload(
                f"The multipart body has a part {name[:50]!r}. Only {PART!r} is read; options are query parameters."
            )
        self.files += 1
        if self.files > 1:
            raise InvalidUpload(f"The multipart body has more than one part {PART!r}. Send one image per request.")
        self.filename = options.get(b"filename", b"").decode("utf-8", "replace")[:LONGEST_NAME]

    def _take_data(self, chunk: bytes, start: int, end: int) -> None:
        self.body += chunk[start:end]

    def _end(self) -> None:
        self.ended = True


def _disposition_name(header: str) -> str:
    message = Message()
    message["Content-Disposition"] = header.encode("latin-1", "replace").decode("utf-8", "replace")
    return (message.get_filename() or "")[:LONGEST_NAME]
