"""Turns errors into responses: problem documents, or the error bodies of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.errors import InvalidOption, MethodNotAllowed, NotFound, OutOfMemory, RequestError, ServiceError
from app.http.middleware import PROBLEM, add_log_fields, extra_headers, problem_document, route_path
from app.schemas import option_faults

CLIENT_CLOSED_REQUEST = 499
"""Status in the log of a request whose client has disconnected. It is never sent."""


async def answer_service_error(request: Request, error: Exception) -> Response:
    """Respond to an error of the service with a problem document."""
    assert isinstance(error, ServiceError)
    return problem_response(request, error)


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """Respond to an error of Starlette: an unknown path or a wrong method."""
    assert isinstance(error, HTTPException)
    method, path = request.method[:50], request.url.path
    if error.status_code == 404:
        return problem_response(request, NotFound(f"No such endpoint: {path[:200]}. See GET /docs."))
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "").replace("GET", "GET, HEAD")
        sentence = f"{method} is not allowed on {path[:200]}; allowed: {allowed or 'other methods'}."
        return problem_response(request, MethodNotAllowed(sentence, allowed=allowed), {"Allow": allowed})
    refusal = RequestError(error.detail)
    document = {**problem_document(request.scope, refusal), "status": error.status_code}
    add_log_fields(request.scope, outcome=refusal.code)
    if is_open_inference(route_path(request.scope)):
        return JSONResponse({"error": refusal.detail}, error.status_code, error.headers)
    return JSONResponse(document, error.status_code, error.headers, PROBLEM)


async def answer_validation_error(request: Request, error: Exception) -> Response:
    """Respond to invalid options, with a sentence for each."""
    assert isinstance(error, RequestValidationError)
    return problem_response(request, invalid_option(error.errors()))


async def answer_memory_error(request: Request, error: Exception) -> Response:
    """Respond to a MemoryError anywhere with 503, because the same request may succeed later."""
    assert isinstance(error, MemoryError)
    return problem_response(request, OutOfMemory("There is not enough memory now. Send the request later."))


async def answer_disconnect(request: Request, error: Exception) -> Response:
    """Log a disconnect. The response is not sent."""
    assert isinstance(error, ClientDisconnect)
    add_log_fields(request.scope, outcome="cancelled")
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def problem_response(request: Request, error: ServiceError, headers: Mapping[str, str] | None = None) -> Response:
    """An error as a problem document."""
    add_log_fields(request.scope, outcome=error.code)
    if "reason" in error.facts:
        add_log_fields(request.scope, reason=error.facts["reason"])
    more = {**(headers or {}), **extra_headers(error)}
    if is_open_inference(route_path(request.scope)):
        return JSONResponse({"error": error.detail}, error.status, more)
    return JSONResponse(problem_document(request.scope, error), error.status, more, PROBLEM)


def invalid_option(faults: Sequence[Mapping[str, Any]]) -> InvalidOption:
    """The error for invalid options, from pydantic's faults. Its length is limited."""
    sentences = option_faults(faults)
    return InvalidOption("; ".join(sentences), errors=sentences)


def is_open_inference(path: str) -> bool:
    """Whether a path belongs to the Open Inference Protocol, which has its own form of errors."""
    return path == "/v2" or path.startswith("/v2/")


Handler = Callable[[Request, Any], Coroutine[Any, Any, Response]]

EXCEPTION_HANDLERS: Mapping[int | type[Exception], Handler] = {
    ServiceError: answer_service_error,
    HTTPException: answer_http_exception,
    RequestValidationError: answer_validation_error,
    ClientDisconnect: answer_disconnect,
    MemoryError: answer_memory_error,
}
