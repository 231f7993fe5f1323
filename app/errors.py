"""Everything that can go wrong for a caller, as one tree.

ServiceError
├── RequestError                  the request has to change
│   ├── InvalidImage          400 invalid_image
│   ├── InvalidUpload         400 invalid_upload
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
│   ├── InvalidOption         422 invalid_option
│   └── QueueFull             429 queue_full
└── ServerError                   the same request may succeed later or elsewhere
    ├── InternalError         500 internal_error
    ├── NotReady              503 not_ready
    ├── Draining              503 draining
    ├── OutOfMemory           503 out_of_memory
    └── DeadlineExceeded      504 deadline_exceeded

A server raises these and ``app.http.handlers`` turns them into problem documents (RFC 9457). A client turns the
documents back into the same classes with :func:`error_from_problem`. This module imports no framework.
"""
# ruff: noqa: N818 - the names are the stable codes of the contract, spelled as classes

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

RESERVED = frozenset({"type", "title", "status", "detail", "code", "request_id"})
"""Members of a problem document that a fact may not be called."""


class ServiceError(Exception):
    """A failure with an HTTP status and a stable code.

    Args:
        detail: what is wrong and what to do about it, one or two sentences for a person.
        retry_after: whole seconds after which trying again makes sense, sent as ``Retry-After``.
        facts: further members of the problem document, such as ``limit`` and ``actual``; JSON values.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    default_retry_after: ClassVar[int | None] = None
    """Seconds for ``Retry-After`` where whoever raises knows nothing better."""

    def __init__(self, detail: str = "", *, retry_after: int | None = None, **facts: object) -> None:
        assert not RESERVED & facts.keys(), "a fact must not replace a member of the problem document"
        super().__init__(detail or self.title)
        self.detail = detail or self.title
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
    """The request cannot be served as it is."""

    status = 400
    code = "invalid_request"
    title = "The request cannot be served"


class InvalidImage(RequestError):
    """The upload claims to be an image of a known format but is broken or truncated."""

    code = "invalid_image"
    title = "The image is broken"


class InvalidUpload(RequestError):
    """The body does not hold exactly one file: no part, two parts, nothing in it, or malformed multipart."""

    code = "invalid_upload"
    title = "The upload is not one file"


class Unauthorized(RequestError):
    """A key is needed and none, or a wrong one, was sent."""

    status = 401
    code = "unauthorized"
    title = "A key is needed"


class Forbidden(RequestError):
    """The key that was sent does not allow this."""

    status = 403
    code = "forbidden"
    title = "Not allowed"


class NotFound(RequestError):
    """There is nothing at this address."""

    status = 404
    code = "not_found"
    title = "Nothing is here"


class UnknownVariant(NotFound):
    """No variant and no alias has this name."""

    code = "unknown_variant"
    title = "There is no such variant"


class MethodNotAllowed(RequestError):
    """The address exists, with another method."""

    status = 405
    code = "method_not_allowed"
    title = "Method not allowed"


class UploadTooSlow(RequestError):
    """The body did not arrive in time."""

    status = 408
    code = "upload_too_slow"
    title = "The upload took too long"


class BodyTooLarge(RequestError):
    """The body has more bytes than are accepted; carries ``limit``."""

    status = 413
    code = "body_too_large"
    title = "The upload is too large"


class ImageTooLarge(RequestError):
    """The image, or what it would become, has too many pixels; carries ``limit`` and ``actual``."""

    status = 413
    code = "image_too_large"
    title = "The image is too large"


class OutputTooLarge(RequestError):
    """The wished format cannot hold the result; carries ``limit`` and ``actual``, pixels a side."""

    status = 413
    code = "output_too_large"
    title = "The format cannot hold the result"


class UnsupportedFormat(RequestError):
    """The upload is not an image of a format that is read here."""

    status = 415
    code = "unsupported_format"
    title = "The format is not supported"


class InvalidOption(RequestError):
    """An option has a value that it cannot have; carries ``errors``, one sentence for each option."""

    status = 422
    code = "invalid_option"
    title = "An option is invalid"


class QueueFull(RequestError):
    """The queue holds as much work as it may; try again after ``Retry-After``."""

    status = 429
    code = "queue_full"
    title = "The queue is full"
    default_retry_after = 1


class ServerError(ServiceError):
    """The request is in order, but it was not served."""


class InternalError(ServerError):
    """A bug of ours; the text gives nothing away, the log has it all under the request id."""


class NotReady(ServerError):
    """What is asked for is not loaded, or the service cannot work now."""

    status = 503
    code = "not_ready"
    title = "Not ready"
    default_retry_after = 5


class Draining(ServerError):
    """This server is shutting down and takes nothing more."""

    status = 503
    code = "draining"
    title = "Shutting down"
    default_retry_after = 1


class OutOfMemory(ServerError):
    """A single tile does not fit into memory now."""

    status = 503
    code = "out_of_memory"
    title = "Out of memory"
    default_retry_after = 10


class DeadlineExceeded(ServerError):
    """The caller's deadline passed before the result was there."""

    status = 504
    code = "deadline_exceeded"
    title = "Too late"


def _tree(root: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def error_from_problem(problem: Mapping[str, Any], *, retry_after: int | None = None) -> ServiceError:
    """The error that a problem document describes, as an instance of the class that the server raised.

    Args:
        problem: a decoded ``application/problem+json`` document; unknown codes become their family's base class.
        retry_after: the value of the ``Retry-After`` header, seconds.
    """
    status = problem.get("status")
    family = RequestError if isinstance(status, int) and 400 <= status < 500 else ServerError
    leaves = {cls.code: cls for cls in _tree(ServiceError)}
    cls = leaves.get(str(problem.get("code")), family)
    facts = {name: value for name, value in problem.items() if name not in RESERVED}
    return cls(str(problem.get("detail", "")), retry_after=retry_after, **facts)
