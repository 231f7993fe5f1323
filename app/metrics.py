"""Prometheus metrics. Every service has its own registry."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

UPSCALE = "/v1/upscale"
INFER = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer")
STAGES = ("decode", "queue", "forward", "encode")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PIXELS = (4096, 16384, 65536, 262144, 1048576, 4194304, 16777216)
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one service. Label values are bounded: variants, error codes and names of keys.

    Args:
        keys: names of the configured API keys.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._keys = frozenset(keys)
        self._registry = CollectorRegistry()
        registry = self._registry
        ProcessCollector(registry=registry)  # process_*: memory, processor time, open files
        self.requests = Counter(
            "swin2sr_requests", "Requests for an image by outcome.", ["variant", "outcome", "key"], registry=registry
        )
        self.duration = Histogram(
            "swin2sr_request_duration_seconds",
            "Duration from the first byte of the request to the end of the response.",
            ["variant"],
            buckets=SECONDS,
            registry=registry,
        )
        self.stages = Histogram(
            "swin2sr_stage_duration_seconds",
            "Time that a request spent in each stage.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.queue_wait = Histogram(
            "swin2sr_queue_wait_seconds", "Time from admission to the first batch.", buckets=SECONDS, registry=registry
        )
        self.batch_images = Histogram("swin2sr_batch_images", "Tiles in a batch.", buckets=IMAGES, registry=registry)
        self.batch_pixels = Histogram("swin2sr_batch_pixels", "Pixels in a batch.", buckets=PIXELS, registry=registry)
        self.rejected = Counter("swin2sr_rejected", "Requests that the queue rejected.", ["reason"], registry=registry)
        self.inflight = Gauge("swin2sr_inflight_requests", "Requests without a response yet.", registry=registry)

    def start_request(self, path: str) -> None:
        """Count a new request for an image."""
        if is_upscaling(path):
            self.inflight.inc()

    @property
    def unanswered(self) -> int:
        """Number of requests for an image without a response yet."""
        [metric] = self.inflight.collect()
        return int(metric.samples[0].value)

    def end_request(self, path: str, log_fields: Mapping[str, object], seconds: float) -> None:
        """Count a finished request for an image. Without an outcome in its log fields, the client has disconnected."""
        if not is_upscaling(path):
            return
        variant, outcome = str(log_fields.get("variant", "")), str(log_fields.get("outcome", "cancelled"))
        self.inflight.dec()
        key = str(log_fields.get("key", ""))
        self.requests.labels(variant, outcome, key if key in self._keys else "").inc()
        self.duration.labels(variant).observe(seconds)
        for stage in STAGES:
            duration = log_fields.get(f"{stage}_ms")
            if isinstance(duration, float):
                self.stages.labels(stage).observe(duration / 1000)
        if outcome in ("queue_full", "draining"):
            self.rejected.labels(str(log_fields.get("reason", outcome))).inc()

    def watch_connections(self, count: Callable[[], int]) -> None:
        """Add the gauge of open connections."""
        opened = Gauge("swin2sr_connections", "Open connections.", registry=self._registry)
        opened.set_function(count)

    def watch(self, gauges: Collector) -> None:
        """Add metrics whose values are read at each request."""
        self._registry.register(gauges)

    def exposition(self) -> bytes:
        """All metrics as Prometheus text."""
        return generate_latest(self._registry)


def is_upscaling(path: str) -> bool:
    """Whether this path is that of an endpoint that upscales."""
    return path == UPSCALE or INFER.fullmatch(path) is not None


def labelled_gauge(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> GaugeMetricFamily:
    """A gauge with one value for each value of a label."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values:
        family.add_metric([value], number)
    return family
