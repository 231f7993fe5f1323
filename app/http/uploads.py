"""Reads the uploaded file of a request, within limits of bytes and time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from app import codec
from app.errors import BodyTooLarge, DeadlineExceeded, InvalidUpload, QueueFull, UnsupportedFormat, UploadTooSlow
from app.http.byte_budget import ByteReservation
from app.http.forms import PART, Form, file_name

DAMAGED = " curl -d removes line breaks and zero bytes from a file, which damages it. Use curl --data-binary."

PARSED_AT_ONCE = 16 * 1024
"""Bytes of a form that are parsed before other tasks of the event loop run."""

URL_ENCODED = b"application/x-www-form-urlencoded"
UNSPECIFIC = frozenset({b"application/octet-stream", b"binary/octet-stream", URL_ENCODED})
"""Default content types of curl, S3 and PHP. The bytes decide whether the body is an image."""


@dataclass
class Upload:
    """One uploaded file: its bytes, its name (may be empty), and names and values of the form's text fields.

    ``hint`` is for the error of an image that cannot be read.
    """

    body: bytes
    filename: str
    fields: Sequence[tuple[str, str]] = ()
    hint: str = ""

    def discard(self) -> None:
        """Free the bytes after the image was decoded."""
        self.body = b""


async def read_upload(
    request: Request, reservation: ByteReservation, *, max_bytes: int, upload_timeout: float, deadline: float
) -> Upload:
    """Read the file of a request.

    Args:
        request: ``multipart/form-data`` with a part ``file``, or the file itself with an image's content type.
        reservation: counts the bytes of the body.
        max_bytes: largest body, including multipart framing; checked against ``Content-Length``, and while reading.
        upload_timeout: maximum seconds for the body to arrive.
        deadline: time of ``time.monotonic()`` after which the request fails.

    Raises:
        InvalidUpload: if there is not exactly one file, or it is empty.
        BodyTooLarge: if the body exceeds ``max_bytes``.
        UploadTooSlow, DeadlineExceeded: if it does not arrive in time.
        UnsupportedFormat: if its content type or encoding is not supported.
        QueueFull: if the uploads of all requests exceed their budget.
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
        hint = DAMAGED if content_type == URL_ENCODED else ""
        upload = Upload(body, file_name(request.headers.get("content-disposition", "")), hint=hint)
    if not upload.body:
        raise InvalidUpload("The upload is empty. Send the bytes of one image.")
    if content_type == URL_ENCODED and not _is_image(upload.body):
        raise _unread(content_type, DAMAGED)
    return upload


async def read_body(
    request: Request, reservation: ByteReservation, *, max_bytes: int, upload_timeout: float, deadline: float
) -> bytes:
    """Read the body of a request of any content type, with the limits of ``read_upload``.

    Raises:
        BodyTooLarge, UploadTooSlow, DeadlineExceeded, QueueFull: as for ``read_upload``.
    """
    return await _read(
        request, None, reservation, max_bytes=max_bytes, upload_timeout=upload_timeout, deadline=deadline
    )


async def _read(
    request: Request,
    form: Form | None,
    reservation: ByteReservation,
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
                "The deadline passed while the body arrived. Allow more time with timeout_ms."
            ) from None
        raise UploadTooSlow(
            f"The body was not complete after {upload_timeout:g} s (UPLOAD_TIMEOUT_MS). Send a smaller "
            "file, or use a faster connection.",
            limit=upload_timeout,
        ) from None


def _check_encoding(header: str) -> None:
    codings = [each.strip() for each in header.split(",") if each.strip().lower() not in ("", "identity")]
    if codings:
        raise UnsupportedFormat(
            f"Unsupported Content-Encoding {', '.join(codings)[:100]!r}. Send the image without Content-Encoding."
        )


def _is_image(body: bytes) -> bool:
    try:
        codec.sniff(body)
    except codec.CodecError:
        return False
    return True


def _unread(content_type: bytes, hint: str = "") -> UnsupportedFormat:
    return UnsupportedFormat(
        f"Unsupported Content-Type {content_type.decode('latin-1')[:100]!r}. Send multipart/form-data with a part "
        f"{PART!r}, or the image itself with its image/* content type.{hint}"
    )


def _check_length(content_length: str, max_bytes: int, reservation: ByteReservation) -> None:
    if not content_length.isdecimal():
        return
    announced = int(content_length[:20])
    if announced > max_bytes:
        raise _too_large(max_bytes, announced)
    _check_capacity(reservation, announced)


def _check_capacity(reservation: ByteReservation, expected: int) -> None:
    """Check that further bytes fit into the budget of all uploads.

    Raises:
        QueueFull: if they do not fit now.
    """
    budget = reservation.budget
    if budget.held + expected > budget.limit:
        raise QueueFull(
            f"The uploads of all requests would exceed {budget.limit} bytes (MAX_INFLIGHT_BYTES). Try again after the "
            "time in Retry-After.",
            reason="bytes",
            limit=budget.limit,
            actual=budget.held + expected,
        )


def _too_large(max_bytes: int, actual: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body is larger than {max_bytes} bytes (MAX_BODY_BYTES). Send a smaller file.",
        limit=max_bytes,
        actual=actual,
    )


async def _receive(request: Request, form: Form | None, max_bytes: int, reservation: ByteReservation) -> bytes:
    body = bytearray()
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise _too_large(max_bytes, received)
        _check_capacity(reservation, len(chunk))
        reservation.set(reservation.held + len(chunk))
        if form is None:
            body += chunk
            continue
        for start in range(0, len(chunk), PARSED_AT_ONCE):
            form.write(chunk[start : start + PARSED_AT_ONCE])
            await asyncio.sleep(0)
    return bytes(body)
