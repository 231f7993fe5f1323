"""ASGI middleware that merges the metrics of all replicas, because a scrape reaches only one of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import NotReady
from app.http.middleware import send_problem
from app.metrics import MEDIA_TYPE

LABEL = "replica"


class ClusterMetrics:
    """Answers ``GET /metrics`` for all replicas. Other requests go to the application.

    Args:
        app: the application of one replica.
        ask: returns the Prometheus text of each replica by its name; raises TimeoutError if one does not answer.
    """

    def __init__(self, app: ASGIApp, ask: Callable[[], Awaitable[Mapping[str, str]]]) -> None:
        self.app = app
        self.ask = ask

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("GET", "/metrics"):
            await self.app(scope, receive, send)
            return
        try:
            body = merge(await self.ask())
        except TimeoutError:
            error = NotReady("A replica did not report its metrics in time.")
            await send_problem(send, error, Headers(scope=scope).get("x-request-id", ""))
            return
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def merge(expositions: Mapping[str, str]) -> bytes:
    """Merge the Prometheus text of several replicas. Each sample gets the label ``replica``."""
    families: dict[str, Metric] = {}
    for replica, text in expositions.items():
        for family in text_string_to_metric_families(text):
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                merged.add_sample(sample.name, {**sample.labels, LABEL: replica}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return generate_latest(registry)


class _Families(Collector):
    """Exposes given metric families."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        yield from self._families
