"""The errors that clients see, as one tree of classes. Each has an HTTP status and a stable code.

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

    def __init_subclass__(
        cls, status: int | None = None, code: str = "", title: str = "", retry_after: int | None = None
    ) -> None:
        """Set status, code, title and seconds for ``Retry-After``; those that are not given are inherited."""
        cls.status = status or cls.status
        cls.default_retry_after = cls.default_retry_after if retry_after is None else retry_after
        if code:
            cls.code, cls.title = code, title or code.replace("_", " ").capitalize()

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


class RequestError(ServiceError, status=400, code="invalid_request"):
    """The request is wrong, and fails again if it is repeated."""


class InvalidImage(RequestError, code="invalid_image"):
    """The image is broken or truncated."""


class InvalidUpload(RequestError, code="invalid_upload"):
    """The body is empty or malformed, or does not contain exactly one file."""


class BadRequest(RequestError, code="bad_request"):
    """The request is not well-formed HTTP."""


class Unauthorized(RequestError, status=401, code="unauthorized", title="Unauthorized: API key required"):
    """An API key is required, and none or a wrong one was sent."""


class Forbidden(RequestError, status=403, code="forbidden"):
    """The key does not permit this."""


class NotFound(RequestError, status=404, code="not_found"):
    """No endpoint has this path."""


class UnknownVariant(NotFound, code="unknown_variant"):
    """No variant or alias has this name."""


class MethodNotAllowed(RequestError, status=405, code="method_not_allowed"):
    """The endpoint exists, but not with this method."""


class UploadTooSlow(RequestError, status=408, code="upload_too_slow"):
    """The body did not arrive within UPLOAD_TIMEOUT_MS."""


class BodyTooLarge(RequestError, status=413, code="body_too_large"):
    """The body has more bytes than MAX_BODY_BYTES; with the field ``limit``."""


class ImageTooLarge(RequestError, status=413, code="image_too_large"):
    """The image or its result has too many pixels; with the fields ``limit`` and ``actual``."""


class OutputTooLarge(RequestError, status=413, code="output_too_large", title="Result too large for the output format"):
    """The output format cannot hold the result; with the fields ``limit`` and ``actual``, pixels a side."""


class UnsupportedFormat(RequestError, status=415, code="unsupported_format"):
    """The upload is not an image in a supported format."""


class MisdirectedRequest(RequestError, status=421, code="misdirected_request"):
    """The request's ``Host`` is not one of ALLOWED_HOSTS."""


class InvalidOption(RequestError, status=422, code="invalid_option"):
    """An option is unknown or has an invalid value; with the field ``errors``, one sentence per option."""


class QueueFull(RequestError, status=429, code="queue_full", retry_after=1):
    """The queue is full; try again after ``Retry-After``."""


class HeadersTooLarge(RequestError, status=431, code="headers_too_large"):
    """The request line and headers are too long; with the field ``limit``, bytes."""


class ServerError(ServiceError):
    """The server failed to serve a valid request."""


class InternalError(ServerError):
    """Unexpected server error. Details are in the server log under the request id."""


class NotReady(ServerError, status=503, code="not_ready", retry_after=5):
    """The variant is not loaded, or the service cannot work at the moment."""


class Draining(ServerError, status=503, code="draining", title="Shutting down", retry_after=1):
    """The server is shutting down and accepts no requests."""


class OutOfMemory(ServerError, status=503, code="out_of_memory", retry_after=10):
    """A single tile does not fit into memory at the moment."""


class DeadlineExceeded(ServerError, status=504, code="deadline_exceeded"):
    """The deadline passed before the result was ready."""


class ServerUnreachable(ServerError, ConnectionError, status=503, code="unreachable", title="Server unreachable"):
    """No server answers at the client's URL, or the connection was lost and could not be established again."""


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
