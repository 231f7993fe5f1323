"""Every error has a status and a stable code, and survives the way to a client."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest

from app import errors
from app.errors import (
    ImageTooLarge,
    InternalError,
    NotReady,
    QueueFull,
    RequestError,
    ServerError,
    ServiceError,
    error_from_problem,
)

CONTRACT = {
    "invalid_image": 400,
    "invalid_upload": 400,
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "unknown_variant": 404,
    "method_not_allowed": 405,
    "upload_too_slow": 408,
    "body_too_large": 413,
    "image_too_large": 413,
    "output_too_large": 413,
    "unsupported_format": 415,
    "misdirected_request": 421,
    "invalid_option": 422,
    "queue_full": 429,
    "headers_too_large": 431,
    "internal_error": 500,
    "not_ready": 503,
    "draining": 503,
    "out_of_memory": 503,
    "deadline_exceeded": 504,
}


def leaves():
    """The errors of the server; the client adds ServerUnreachable."""
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, ServiceError)]
    return [cls for cls in classes if cls not in (ServiceError, RequestError, ServerError, errors.ServerUnreachable)]


def test_the_codes_and_statuses_are_the_contract():
    """Clients depend on them, so a change here is a change of the contract."""
    assert {cls.code: cls.status for cls in leaves()} == CONTRACT
    assert len(leaves()) == len(CONTRACT)


def test_statuses_agree_with_the_two_families():
    """4xx asks the caller to change something, 5xx does not."""
    for cls in leaves():
        assert issubclass(cls, RequestError) == (400 <= cls.status < 500)


@pytest.mark.parametrize("cls", leaves())
def test_an_error_survives_the_way_to_a_client(cls):
    """A problem document becomes the same class again, with its facts."""
    error = cls("do this", retry_after=7, limit=3, actual=4)
    document = json.loads(json.dumps(error.problem("id-1")))
    assert document["request_id"] == "id-1"
    again = error_from_problem(document, retry_after=7)
    assert type(again) is cls
    assert (again.detail, again.facts, again.retry_after) == ("do this", {"limit": 3, "actual": 4}, 7)


def test_a_code_from_a_newer_server_becomes_its_family():
    """A client that does not know a code still knows whose fault it is."""
    assert type(error_from_problem({"code": "new", "status": 418})) is RequestError
    assert type(error_from_problem({"code": "new", "status": 507})) is ServerError
    assert type(error_from_problem({})) is ServerError


def test_retry_after_has_a_default_where_trying_again_makes_sense():
    """Every 429 and 503 has it, and no other response does."""
    for cls in leaves():
        assert (cls().retry_after is not None) == (cls.status in (429, 503))
    assert QueueFull(retry_after=9).retry_after == 9


def test_a_fact_cannot_replace_a_member_of_the_document():
    """``status=`` as a fact is our mistake and is found at once."""
    with pytest.raises(AssertionError):
        NotReady("x", status=200)


def test_an_error_without_text_says_its_title():
    """No answer is empty."""
    assert InternalError().detail == str(InternalError()) == InternalError.title


def test_errors_cross_process_borders():
    """They are pickled with their facts."""
    again = pickle.loads(pickle.dumps(ImageTooLarge("x", limit=1)))
    assert (again.detail, again.facts) == ("x", {"limit": 1})


def test_importing_errors_loads_no_framework():
    """A client needs them without FastAPI or torch."""
    code = "import sys, app.errors; print(sorted({'fastapi', 'starlette', 'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"[]\n"
