"""A request's body as one file: streamed, bounded, and timed, whatever its framing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from app import codec
from app.errors import BodyTooLarge, DeadlineExceeded, InvalidUpload, QueueFull, UnsupportedFormat, UploadTooSlow
from app.http.forms import PART, Form, file_name

PARSED_AT_ONCE = 16 * 1024
"""Bytes of a form that are parsed before others have their turn in the event loop."""

UNSPECIFIC = frozenset({b"application/octet-stream", b"binary/octet-stream", b"application/x-www-form-urlencoded"})
"""Content types that clients send where nobody chose one: curl, S3 and PHP. The bytes decide whether it is an image."""


@dataclass
class Upload:
    """One file as it was sent: its bytes, its name where one was given, and text fields beside it in a form."""

    body: bytes
    filename: str
    fields: Mapping[str, str] = field(default_factory=dict)

    def discard(self) -> None:
        """Free the bytes, when the image was decoded."""
        self.body = b""


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
            reservation.release()


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

    def release(self) -> None:
        """Hold nothing any more, when the image was decoded or the request has ended."""
        self.budget.held -= self.bytes
        self.bytes = 0


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
    _check_encoding(request.headers.get("content-encoding", ""))
    form = None
    if content_type == b"multipart/form-data":
        form = Form(parameters.get(b"boundary", b""))
    elif not content_type.startswith(b"image/") and content_type not in UNSPECIFIC:
        raise _unread(content_type)
    body = await _read(
        request, form, reservation, max_bytes=max_bytes, upload_timeout=upload_timeout, deadline=deadline
    )
    if form:
        form.finish()
        upload = Upload(bytes(form.body), form.filename, form.fields)
    else:
        upload = Upload(body, file_name(request.headers.get("content-disposition", "")))
    if not upload.body:
        raise InvalidUpload("The upload is empty. Send the bytes of one image.")
    if content_type == b"application/x-www-form-urlencoded" and not _is_image(upload.body):
        raise _unread(content_type)
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
    form: Form | None,
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


def _check_encoding(header: str) -> None:
    codings = [each.strip() for each in header.split(",") if each.strip().lower() not in ("", "identity")]
    if codings:
        raise UnsupportedFormat(
            f"Content-Encoding {', '.join(codings)[:100]!r} is not read here. Send the image as it is, without it."
        )


def _is_image(body: bytes) -> bool:
    try:
        codec.sniff(body)
    except codec.CodecError:
        return False
    return True


def _unread(content_type: bytes) -> UnsupportedFormat:
    return UnsupportedFormat(
        f"A body of type {content_type.decode('latin-1')[:100]!r} is not read here. Send multipart/form-data with "
        f"a part {PART!r}, or the image itself with its image/* content type."
    )


def _check_length(content_length: str, max_bytes: int, reservation: UploadReservation) -> None:
    if not content_length.isdecimal():
        return
    announced = int(content_length[:20])
    if announced > max_bytes:
        raise _too_large(max_bytes, announced)
    reservation.check_capacity(announced)


def _too_large(max_bytes: int, actual: int) -> BodyTooLarge:
    return BodyTooLarge(f"A body may have {max_bytes} bytes at most.", limit=max_bytes, actual=actual)


async def _receive(request: Request, form: Form | None, max_bytes: int, reservation: UploadReservation) -> bytes:
    body = bytearray()
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise _too_large(max_bytes, received)
        reservation.add(len(chunk))
        if form is None:
            body += chunk
            continue
        for start in range(0, len(chunk), PARSED_AT_ONCE):
            form.write(chunk[start : start + PARSED_AT_ONCE])
            await asyncio.sleep(0)
    return bytes(body)
