"""Merges the metrics of all replicas, because a scrape reaches only one of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from app.errors import NotReady

LABEL = "replica"


class ClusterMetrics:
    """Collects the metrics of all replicas.

    Args:
        ask: returns the Prometheus text of each replica by its name; raises TimeoutError if one does not answer.
    """

    def __init__(self, ask: Callable[[], Awaitable[Mapping[str, str]]]) -> None:
        self.ask = ask

    async def __call__(self) -> bytes:
        """Prometheus text.

        Raises:
            NotReady: if a replica does not answer. The metrics of some replicas would look as if the others were gone.
        """
        try:
            return merge(await self.ask())
        except TimeoutError:
            raise NotReady("A replica did not report its metrics in time.") from None


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
