"""The metrics of all replicas in one answer, because who asks for them reaches any one of them. Pure ASGI."""

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
    """Answers ``GET /metrics`` for all replicas, and leaves the rest to the application.

    Args:
        app: the application of one replica.
        ask: what each replica exposes, by the replica's name; TimeoutError if one does not answer.
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
            error = NotReady("A replica does not tell its metrics now.")
            await send_problem(send, error, Headers(scope=scope).get("x-request-id", ""))
            return
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def merge(expositions: Mapping[str, str]) -> bytes:
    """Prometheus text of several replicas as one, every sample labelled with its replica."""
    families: dict[str, Metric] = {}
    for replica, text in expositions.items():
        for family in text_string_to_metric_families(text):
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                merged.add_sample(sample.name, {**sample.labels, LABEL: replica}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Given(families.values()))
    return generate_latest(registry)


class _Given(Collector):
    """Metrics as they are."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        yield from self._families
