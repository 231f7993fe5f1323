"""Errors that no route expects become documents too."""

from __future__ import annotations

import asyncio

import pytest
from starlette.exceptions import HTTPException

from app.http.middleware import PROBLEM
from tests.scripted import ScriptedUpscaler
from tests.service import running, scripted_app


@pytest.fixture
def ask(tmp_path):
    """The response to a request whose route raises this error."""

    def ask(path, error):
        app = scripted_app(tmp_path, lightweight_x2=ScriptedUpscaler())

        @app.get(path)
        def fail() -> None:
            raise error

        async def exchange():
            async with running(app) as client:
                return await client.get(path)

        return asyncio.run(exchange())

    return ask


def test_a_status_of_the_framework_is_kept(ask):
    """Its sentence is in the document, and its headers are sent."""
    answer = ask("/v1/made-up", HTTPException(418, "It is short and stout.", {"x-tea": "yes"}))
    assert (answer.status_code, answer.headers["content-type"], answer.headers["x-tea"]) == (418, PROBLEM, "yes")
    document = {name: answer.json()[name] for name in ("status", "code", "detail")}
    assert document == {"status": 418, "code": "invalid_request", "detail": "It is short and stout."}


def test_a_lack_of_memory_is_worth_a_retry(ask):
    """Wherever it occurs."""
    answer = ask("/v1/made-up", MemoryError())
    assert (answer.status_code, answer.json()["code"]) == (503, "out_of_memory")
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize(("error", "status"), [(HTTPException(418, "It is short."), 418), (MemoryError(), 503)])
def test_the_open_inference_protocol_has_its_own_form(ask, error, status):
    """One member, ``error``, with the sentence."""
    answer = ask("/v2/made-up", error)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
