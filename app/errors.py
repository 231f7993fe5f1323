"""The errors that callers see, as one tree.

ServiceError
├── RequestError                  the request must change
│   ├── InvalidImage          400 invalid_image
│   ├── InvalidUpload         400 invalid_upload
│   ├── BadRequest            400 bad_request
│   ├── Unauthorized          401 unauthorized
│   ├── Forbidden             403 forbidden
│   ├── NotFound              404 not_found
│   │   └── UnknownVariant    404 unknown_variant
│   ├── MethodNotAllowed      405 method_not_allowed
│   ├── UploadTooSlow         408 upload_too_slow
│   ├── BodyTooLarge          413 body_too_large
│   ├── ImageTooLarge         413 image_too_large
│   ├── OutputTooLarge        413 output_too_large
│   ├── UnsupportedFormat     415 unsupported_format
│   ├── MisdirectedRequest    421 misdirected_request
│   ├── InvalidOption         422 invalid_option
│   ├── QueueFull             429 queue_full
│   └── HeadersTooLarge       431 headers_too_large
└── ServerError                   the same request may succeed later or elsewhere
    ├── InternalError         500 internal_error
    ├── NotReady              503 not_ready
    ├── Draining              503 draining
    ├── OutOfMemory           503 out_of_memory
    ├── DeadlineExceeded      504 deadline_exceeded
    └── ServerUnreachable     raised by the client only, also a ConnectionError

The server raises these, and ``app.http.handlers`` turns them into problem documents (RFC 9457). The client turns the
documents back into the same classes with :func:`error_from_problem`. This module imports no framework.
"""
# ruff: noqa: N818 - the names are the stable codes of the contract, spelled as classes

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

RESERVED = frozenset({"type", "title", "status", "detail", "code", "request_id"})
"""Members of a problem document that cannot be names of facts."""


class ServiceError(Exception):
    """A failure with an HTTP status and a stable code.

    Args:
        detail: what is wrong, the value, the limit, and what to do, in one or two sentences.
        retry_after: whole seconds to wait before another attempt, sent as ``Retry-After``. None takes the class's.
        facts: further members of the problem document, such as ``limit`` and ``actual``; JSON values.

    Attributes:
        request_id: of the failed request, set by the client; the server's log has it.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    default_retry_after: ClassVar[int | None] = None
    """Seconds for ``Retry-After`` if the constructor gets none."""

    def __init__(self, detail: str = "", *, retry_after: int | None = None, **facts: object) -> None:
        assert not RESERVED & facts.keys(), "a fact cannot replace a member of the problem document"
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.request_id = ""
        self.retry_after = self.default_retry_after if retry_after is None else retry_after
        self.facts = facts

    def problem(self, request_id: str = "") -> dict[str, Any]:
        """The problem document of this error."""
        return {
            "type": f"urn:swin2sr:error:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
            **self.facts,
        }


class RequestError(ServiceError):
    """The request is wrong, and fails again if it is repeated."""

    status = 400
    code = "invalid_request"
    title = "Invalid request"


class InvalidImage(RequestError):
    """The image is broken or truncated."""

    code = "invalid_image"
    title = "Invalid image"


class InvalidUpload(RequestError):
    """The body is empty or malformed, or does not contain exactly one file."""

    code = "invalid_upload"
    title = "Invalid upload"


class BadRequest(RequestError):
    """The request is not well-formed HTTP."""

    code = "bad_request"
    title = "Bad request"


class Unauthorized(RequestError):
    """An API key is required, and none or a wrong one was sent."""

    status = 401
    code = "unauthorized"
    title = "Unauthorized: API key required"


class Forbidden(RequestError):
    """The key does not permit this."""

    status = 403
    code = "forbidden"
    title = "Forbidden"


class NotFound(RequestError):
    """No endpoint has this path."""

    status = 404
    code = "not_found"
    title = "Not found"


class UnknownVariant(NotFound):
    """No variant or alias has this name."""

    code = "unknown_variant"
    title = "Unknown variant"


class MethodNotAllowed(RequestError):
    """The endpoint exists, but not with this method."""

    status = 405
    code = "method_not_allowed"
    title = "Method not allowed"


class UploadTooSlow(RequestError):
    """The body did not arrive within UPLOAD_TIMEOUT_MS."""

    status = 408
    code = "upload_too_slow"
    title = "Upload too slow"


class BodyTooLarge(RequestError):
    """The body has more bytes than MAX_BODY_BYTES; carries ``limit``."""

    status = 413
    code = "body_too_large"
    title = "Body too large"


class ImageTooLarge(RequestError):
    """The image or its result has too many pixels; carries ``limit`` and ``actual``."""

    status = 413
    code = "image_too_large"
    title = "Image too large"


class OutputTooLarge(RequestError):
    """The output format cannot hold the result; carries ``limit`` and ``actual``, pixels a side."""

    status = 413
    code = "output_too_large"
    title = "Result too large for the output format"


class UnsupportedFormat(RequestError):
    """The upload is not an image in a supported format."""

    status = 415
    code = "unsupported_format"
    title = "Unsupported format"


class MisdirectedRequest(RequestError):
    """The request's ``Host`` is not one of ALLOWED_HOSTS."""

    status = 421
    code = "misdirected_request"
    title = "Misdirected request"


class InvalidOption(RequestError):
    """An option is unknown or has an invalid value; carries ``errors``, one sentence per option."""

    status = 422
    code = "invalid_option"
    title = "Invalid option"


class QueueFull(RequestError):
    """The queue is full; try again after ``Retry-After``."""

    status = 429
    code = "queue_full"
    title = "Queue full"
    default_retry_after = 1


class HeadersTooLarge(RequestError):
    """The request line and headers are too long; carries ``limit``, bytes."""

    status = 431
    code = "headers_too_large"
    title = "Headers too large"


class ServerError(ServiceError):
    """The server failed to serve a valid request."""


class InternalError(ServerError):
    """Unexpected server error. Details are in the server log under the request id."""


class NotReady(ServerError):
    """The variant is not loaded, or the service cannot work at the moment."""

    status = 503
    code = "not_ready"
    title = "Not ready"
    default_retry_after = 5


class Draining(ServerError):
    """The server is shutting down and accepts no requests."""

    status = 503
    code = "draining"
    title = "Shutting down"
    default_retry_after = 1


class OutOfMemory(ServerError):
    """A single tile does not fit into memory at the moment."""

    status = 503
    code = "out_of_memory"
    title = "Out of memory"
    default_retry_after = 10


class DeadlineExceeded(ServerError):
    """The deadline passed before the result was ready."""

    status = 504
    code = "deadline_exceeded"
    title = "Deadline exceeded"


class ServerUnreachable(ServerError, ConnectionError):
    """No server answers at the client's URL, or the connection was lost and could not be established again."""

    status = 503
    code = "unreachable"
    title = "Server unreachable"


def _tree(root: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def error_from_problem(problem: Mapping[str, Any], *, retry_after: int | None = None) -> ServiceError:
    """Turn a problem document into the error that the server raised.

    Args:
        problem: a decoded ``application/problem+json`` document. An unknown code gives RequestError or ServerError.
        retry_after: the value of the ``Retry-After`` header, seconds.
    """
    status = problem.get("status")
    family = RequestError if isinstance(status, int) and 400 <= status < 500 else ServerError
    leaves = {cls.code: cls for cls in _tree(ServiceError)}
    cls = leaves.get(str(problem.get("code")), family)
    facts = {name: value for name, value in problem.items() if name not in RESERVED}
    error = cls(str(problem.get("detail", "")), retry_after=retry_after, **facts)
    error.request_id = str(problem.get("request_id") or "")
    return error
