"""A server's metrics, read over HTTP."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

GAUGES = ("swin2sr_inflight_requests", "swin2sr_queue_requests", "swin2sr_queue_pixels")


class MetricsSnapshot:
    """The metrics of a server at one moment.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        text = httpx.get(f"{url}/metrics", timeout=30).text
        families = text_string_to_metric_families(text)
        self._samples = [sample for family in families for sample in family.samples]

    def __getitem__(self, name: str) -> float:
        """A metric summed over its labels."""
        return sum(sample.value for sample in self._samples if sample.name == name)

    def by(self, name: str, label: str) -> dict[str, float]:
        """A metric by the values of one label, without zeros."""
        found: dict[str, float] = {}
        for sample in self._samples:
            if sample.name == name and sample.value:
                found[sample.labels[label]] = found.get(sample.labels[label], 0.0) + sample.value
        return found

    def is_quiet(self) -> bool:
        """Whether no request waits and every request has its response."""
        return all(self[gauge] == 0 for gauge in GAUGES)
