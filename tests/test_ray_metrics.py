"""The metrics of several replicas as one text."""

from __future__ import annotations

import asyncio
import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.http.handlers import PROBLEM
from app.metrics import Metrics
from app.ray.metrics import LABEL, ClusterMetrics, merge
from tests.connections import Connection


def exposition(requests):
    """What a replica tells that has served so many images."""
    metrics = Metrics()
    for _ in range(requests):
        metrics.start_request("/v1/upscale")
        metrics.end_request("/v1/upscale", {"variant": "small-x2", "outcome": "ok", "forward_ms": 12.5}, 0.02)
    return metrics.exposition().decode()


def samples(text):
    """Every sample of an exposition: its family's name and type, its own name, its labels, its value."""
    return {
        (family.name, family.type, sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_nothing_is_lost_and_nothing_is_mixed():
    """Each replica's samples are there as they were, under its name, and no others."""
    told = {"one": exposition(3), "two": exposition(5)}
    expected = {
        (family, kind, name, tuple(sorted((*labels, (LABEL, replica))))): value
        for replica, text in told.items()
        for (family, kind, name, labels), value in samples(text).items()
    }
    merged = merge(told).decode()
    assert samples(merged) == expected
    assert merged.count("# TYPE swin2sr_requests_total counter") == 1


def ask(path, told, method="GET"):
    """One request to an application that says 418; what is told in place of other replicas, or nothing in time."""
    connection = Connection(b"", {"x-request-id": "mine"})
    connection.scope.update(path=path, method=method)

    async def teapot(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def tell():
        if told is None:
            raise TimeoutError
        return told

    asyncio.run(ClusterMetrics(teapot, tell)(connection.scope, connection.receive, connection.send))
    return connection


def test_metrics_are_answered_for_all():
    """``GET /metrics`` is everybody's."""
    told = {"one": exposition(1), "two": exposition(2)}
    connection = ask("/metrics", told)
    assert connection.status == 200
    assert dict(connection.headers)[b"content-type"].startswith(b"text/plain; version=0.0.4")
    assert bytes(connection.body) == merge(told)


@pytest.mark.parametrize(("path", "method"), [("/metrics/", "GET"), ("/", "GET"), ("/metrics", "POST")])
def test_the_rest_is_the_applications(path, method):
    """No other address and no other method is taken from it."""
    assert ask(path, {}, method).status == 418


def test_a_replica_that_does_not_answer_is_a_503():
    """No metrics are better than those of some, which would look as if the others had vanished."""
    connection = ask("/metrics", None)
    assert connection.status == 503
    assert dict(connection.headers)[b"content-type"].decode() == PROBLEM
    assert json.loads(connection.body)["request_id"] == "mine"
