"""The one place where an error becomes a response."""

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
from app.schemas import UpscaleOptions

LONGEST_SENTENCE = 300
MOST_SENTENCES = 20
"""Faults of one request that are described; more would make the answer larger than the request."""

CLIENT_CLOSED_REQUEST = 499
"""What a request that nobody waits for any more is logged as; it is never sent."""


async def answer_service_error(request: Request, error: Exception) -> Response:
    """A problem document, with ``Retry-After`` where trying again makes sense."""
    assert isinstance(error, ServiceError)
    return problem_response(request, error)


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """What the framework refuses: unknown addresses, wrong methods."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    if error.status_code == 404:
        return problem_response(request, NotFound(f"Nothing is at {path[:200]}. GET /docs shows what there is."))
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "").replace("GET", "GET, HEAD")
        sentence = f"{path[:200]} allows {allowed or 'another method'}, not {method}."
        return problem_response(request, MethodNotAllowed(sentence, allowed=allowed), {"Allow": allowed})
    refusal = RequestError(error.detail)
    document = {**problem_document(request.scope, refusal), "status": error.status_code}
    add_log_fields(request.scope, outcome=refusal.code)
    if is_open_inference(route_path(request.scope)):
        return JSONResponse({"error": refusal.detail}, error.status_code, error.headers)
    return JSONResponse(document, error.status_code, error.headers, PROBLEM)


async def answer_validation_error(request: Request, error: Exception) -> Response:
    """Options that are not what they should be, each with a sentence."""
    assert isinstance(error, RequestValidationError)
    return problem_response(request, invalid_option(error.errors()))


async def answer_memory_error(request: Request, error: Exception) -> Response:
    """No memory, wherever it was: the same request may succeed later."""
    assert isinstance(error, MemoryError)
    return problem_response(request, OutOfMemory("There is not enough memory now. Send the request later."))


async def answer_disconnect(request: Request, error: Exception) -> Response:
    """Nobody is there to read this."""
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


def invalid_option(faults: Sequence[Mapping[str, object]]) -> InvalidOption:
    """The error for what pydantic found wrong with options; bounded, however much is wrong."""
    sentences = [_sentence(fault) for fault in faults[:MOST_SENTENCES]]
    if len(faults) > MOST_SENTENCES:
        sentences.append(f"and {len(faults) - MOST_SENTENCES} more")
    return InvalidOption("; ".join(sentences), errors=sentences)


def is_open_inference(path: str) -> bool:
    """Whether a path belongs to the Open Inference Protocol, which has errors of its own form."""
    return path == "/v2" or path.startswith("/v2/")


def _sentence(fault: Mapping[str, object]) -> str:
    location = fault.get("loc")
    parts = [str(part) for part in location if part != "query"] if isinstance(location, tuple | list) else []
    name = ".".join(parts)[:100] or "options"
    if fault.get("type") == "extra_forbidden":
        return f"{name}: there is no such option; there are {', '.join(UpscaleOptions.model_fields)}"
    return f"{name}: {str(fault.get('msg')).removeprefix('Value error, ')[:LONGEST_SENTENCE]}"


Handler = Callable[[Request, Any], Coroutine[Any, Any, Response]]

EXCEPTION_HANDLERS: Mapping[int | type[Exception], Handler] = {
    ServiceError: answer_service_error,
    HTTPException: answer_http_exception,
    RequestValidationError: answer_validation_error,
    ClientDisconnect: answer_disconnect,
    MemoryError: answer_memory_error,
}
