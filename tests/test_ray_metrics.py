"""The metrics of several replicas as one text."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from app.http.middleware import PROBLEM
from app.metrics import Metrics
from app.ray.metrics import LABEL, ClusterMetrics, merge
from tests.scripted import ScriptedUpscaler
from tests.service import running, scripted_app


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


def metrics_of(told, tmp_path, **settings):
    """The response of ``GET /metrics``, with scripted answers of the replicas, or none in time."""
    app = scripted_app(tmp_path, settings, lightweight_x2=ScriptedUpscaler())

    async def tell():
        if told is None:
            raise TimeoutError
        return told

    async def scenario():
        async with running(app) as client:
            app.state.collect_metrics = ClusterMetrics(tell)
            return await client.get("/metrics", headers={"x-request-id": "mine"})

    return asyncio.run(scenario())


def test_metrics_are_answered_for_all(tmp_path):
    """``GET /metrics`` returns the metrics of all replicas."""
    told = {"one": exposition(1), "two": exposition(2)}
    answer = metrics_of(told, tmp_path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert answer.content == merge(told)


def test_the_metrics_token_counts_on_ray_too(tmp_path):
    """The metrics of all replicas are no way around it."""
    assert metrics_of({"one": exposition(1)}, tmp_path, metrics_token="hush-hush").status_code == 401


def test_a_replica_that_does_not_answer_is_a_503(tmp_path):
    """No metrics are better than those of some, which would look as if the others had vanished."""
    answer = metrics_of(None, tmp_path)
    assert answer.status_code == 503
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["request_id"] == "mine"
