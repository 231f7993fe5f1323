"""A client of a server that gives prepared answers."""

from __future__ import annotations

import json

import httpx

from app.client import Client

IMAGE = {"Content-Type": "image/png", "X-Swin2SR-Variant": "small-x2", "X-Swin2SR-Scale": "2"}


def scripted(*answers, **options):
    """A client whose server gives these answers in turn, the last one for ever, and the requests that it got."""
    requests = []

    def answer(request):
        requests.append((request, request.read()))
        reply = answers[min(len(requests), len(answers)) - 1]
        if isinstance(reply, Exception):
            raise reply
        return reply() if callable(reply) else reply

    return Client("http://test", transport=httpx.MockTransport(answer), **options), requests


def problem(error, **headers):
    """An error as the server sends it."""
    after = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    content = json.dumps(error.problem("id")).encode()
    return httpx.Response(
        error.status, headers={"Content-Type": "application/problem+json", **after, **headers}, content=content
    )
