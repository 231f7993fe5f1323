"""Builds the parts of a service and connects them."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.registry import Collector

from app import logs
from app.batching.batch import BatchReport
from app.batching.batcher import Batcher
from app.batching.runner import BatchRunner, cost_of
from app.batching.supervision import Heartbeat
from app.build_info import build_info
from app.cgroup import total_memory, usable_cpus
from app.errors import NotReady
from app.http.byte_budget import ByteBudget
from app.metrics import Metrics, labelled_gauge
from app.pipeline import Pipeline, TileBatcher
from app.settings import Settings
from app.variants.device import free, is_lost, keep_memory_small, machine_memory, measure, resident_memory
from app.variants.loaded_model import Load
from app.variants.registry import ModelRegistry
from model.gpu.runner import PACK_PIXELS

CPU_BATCH_PIXELS = 2**16
"""Pixels of a batch on a CPU with MAX_BATCH_PIXELS=auto. A larger tile runs alone. The network computes as many at a
time, so a larger batch would not be faster, and small requests would wait for it."""

LEAST_MEMORY = 64 * 2**20
"""Minimum of the memory budget, bytes."""

MEMORY_SHARE = 0.9
"""Part of the free memory that MAX_MEMORY_BYTES=auto gives to requests; the rest is for what is not accounted for."""

STALL_SECONDS = 15.0
"""Seconds without a heartbeat, while there is work, after which the service is not ready. A network sends a heartbeat
before each block and each layer of its head, which take some seconds on a slow processor."""

RESTART_SECONDS = 300.0
"""Seconds without a heartbeat after which the liveness probe fails."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """The parts of a service."""

    settings: Settings
    registry: ModelRegistry
    batcher: TileBatcher
    pipeline: Pipeline
    uploads: ByteBudget
    memory: ByteBudget
    responses: ByteBudget
    metrics: Metrics
    state: ServiceState

    def reasons_not_ready(self) -> list[str]:
        """Why requests should not be sent here now; empty if the service is ready."""
        status = self.batcher.status()
        reasons = self.registry.reasons_not_ready()
        if self.state.leaving or status.draining:
            reasons.append("shutting down")
        elif not status.alive:
            reasons.append("the worker is not running")
        elif status.seconds_since_beat > STALL_SECONDS:
            reasons.append(f"the worker has sent no heartbeat for {status.seconds_since_beat:.0f} s")
        return reasons

    def check_liveness(self) -> None:
        """Check that the process need not be restarted.

        Raises:
            NotReady: if the worker has stopped, or is frozen.
        """
        status = self.batcher.status()
        if self.registry.booted and not status.alive and not status.draining:
            raise NotReady("The worker has stopped and is not restarted. Restart the process.")
        if status.seconds_since_beat > RESTART_SECONDS:
            raise NotReady(
                f"The worker is frozen: no heartbeat for {status.seconds_since_beat:.0f} s. Restart the process."
            )

    def check_readiness(self) -> None:
        """Check that requests should be sent here.

        Raises:
            NotReady: if not, with all reasons.
        """
        if reasons := self.reasons_not_ready():
            raise NotReady("; ".join(reasons), reasons=reasons)

    def begin_shutdown(self) -> None:
        """Report not ready from now on. Requests are still accepted."""
        if not self.state.leaving:
            self.state.leaving = True
            self.state.ends_at = time.monotonic() + self.settings.drain_timeout_ms / 1000

    def abort(self) -> None:
        """Abort accepted requests when the shutdown begins, without waiting for them."""
        self.begin_shutdown()
        self.state.ends_at = time.monotonic()

    async def boot(self, on_ready: Callable[[], None]) -> None:
        """Load and warm the variants in VARIANTS."""
        started = time.monotonic()
        self.pipeline.start()
        await self.registry.boot()
        if self.settings.max_batch_pixels == "auto":
            self._fit_batches(free(self.registry.device), self.registry.bytes_per_pixel)
        if self.settings.max_memory_bytes == "auto":
            self._fit_memory(resident_memory() or 0)
        if reasons := self.reasons_not_ready():
            logger.warning("not ready: %s", "; ".join(reasons))
            return
        logger.info("ready after %.1f s", time.monotonic() - started)
        on_ready()

    def _fit_batches(self, free_bytes: int | None, bytes_per_pixel: int) -> None:
        """Bound a batch by half of the memory that is free after loading."""
        if free_bytes is None or not bytes_per_pixel:
            return
        pixels = free_bytes // 2 // bytes_per_pixel
        self.batcher.lower_budget(pixels)
        if self.registry.device.type == "cpu" and pixels < self.settings.tile_size**2:  # a GPU tries one when warmed up
            logger.warning(
                "half of the free memory (%d MiB) holds %d pixels, less than a tile of TILE_SIZE %d; lower TILE_SIZE",
                free_bytes // 2**21, pixels, self.settings.tile_size,
            )  # fmt: skip
        logger.info("largest batch: %d pixels", self.batcher.status().batch_budget)

    def _fit_memory(self, used: int) -> None:
        """Give requests the memory that the loaded variants and a forward pass on a CPU do not need."""
        left = max(0, available_memory() - used)
        if self.registry.device.type == "cpu":
            left -= min(left // 2, self.registry.bytes_per_pixel * self.settings.tile_size**2)
        self.memory.limit = max(LEAST_MEMORY, int(left * MEMORY_SHARE))
        logger.info("memory budget of requests: %d MiB", self.memory.limit // 2**20)

    async def close(self) -> None:
        """Finish admitted requests within the remaining drain time, and stop all threads."""
        self.begin_shutdown()
        left = max(0.0, self.state.ends_at - time.monotonic())
        try:
            self.state.finished = await asyncio.to_thread(self.batcher.close, left)
        except RuntimeError:  # no thread can be started; blocking the event loop is harmless now
            self.state.finished = self.batcher.close(left)
        self.registry.close()
        self.pipeline.close()


@dataclass
class ServiceState:
    """The mutable state of a service."""

    leaving: bool = False
    """Whether shutdown has begun: not ready, still accepting."""
    ends_at: float = math.inf
    """Time of ``time.monotonic()`` at which unfinished requests are aborted."""
    finished: bool = False
    """Whether all accepted requests were finished."""


def build_service(
    settings: Settings,
    load: Load | None = None,
    *,
    on_fatal: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> Service:
    """Build a service from settings. No thread is started and nothing is loaded yet.

    Args:
        settings: of the service.
        load: loads the weights of a variant; a stand-in for tests.
        on_fatal: called in the worker's thread when it died too often in a row.
        clock: of the queue; close to ``time.monotonic()``.

    Raises:
        ValueError: if a variant in ``settings.variants`` or the device does not exist.
    """
    keep_memory_small()
    cpus = usable_cpus()
    threads = cpus if settings.threads == "auto" else settings.threads
    heartbeat = Heartbeat(clock)
    registry = _build_registry(settings, threads, load, heartbeat)
    metrics = Metrics(settings.keys)
    run = BatchRunner(registry.device, threads)
    batcher = _build_batcher(settings, registry, metrics, heartbeat, run=run, clock=clock, on_fatal=on_fatal)
    limit = settings.max_memory_bytes
    memory = ByteBudget(max(LEAST_MEMORY, available_memory()) if limit == "auto" else limit)
    codec_threads = max(1, min(8, cpus // 2))
    service = Service(
        settings=settings,
        registry=registry,
        batcher=batcher,
        pipeline=Pipeline(registry, batcher, settings, memory=memory, codec_threads=codec_threads, stitch_threads=cpus),
        uploads=ByteBudget(settings.max_inflight_bytes),
        memory=memory,
        responses=ByteBudget(settings.max_response_bytes),
        metrics=metrics,
        state=ServiceState(),
    )
    metrics.watch(_Gauges(service))
    return service


def _build_registry(settings: Settings, threads: int, load: Load | None, heartbeat: Heartbeat) -> ModelRegistry:
    return ModelRegistry(
        settings.variants,
        model_dir=settings.model_dir,
        official=settings.official_weights(),
        device=settings.device,
        precision=settings.precision,
        threads=threads,
        tile_size=settings.tile_size,
        load=load,
        heartbeat=heartbeat.record,
    )


def _build_batcher(
    settings: Settings,
    registry: ModelRegistry,
    metrics: Metrics,
    heartbeat: Heartbeat,
    *,
    run: BatchRunner,
    clock: Callable[[], float],
    on_fatal: Callable[[], None],
) -> TileBatcher:
    def count(report: BatchReport) -> None:
        metrics.batch_images.observe(report.jobs)
        metrics.batch_pixels.observe(report.cost)
        registry.record_batch(report.key, report.cost, report.seconds)
        for wait in report.waits:
            metrics.queue_wait.observe(wait)

    budget = settings.max_batch_pixels
    on_cpu = registry.device.type == "cpu"
    smallest = 0 if on_cpu else PACK_PIXELS
    batcher: TileBatcher = Batcher(
        run,
        cost_of,
        max_batch_cost=max(settings.tile_size**2, smallest) if budget == "auto" else budget,
        max_queue_cost=settings.max_queue_pixels,
        max_queue_requests=settings.max_queue_requests,
        max_queue_delay=settings.max_queue_delay_ms / 1000,
        prefetch_cost=PACK_PIXELS,
        clock=clock,
        on_batch=count,
        on_fatal=on_fatal,
        is_lost=partial(is_lost, device=registry.device),
        heartbeat=heartbeat,
    )
    if budget == "auto" and on_cpu:
        batcher.lower_budget(CPU_BATCH_PIXELS)
    return batcher


def available_memory() -> int:
    """Bytes of main memory for this process: its container's limit, or half of the machine's memory."""
    machine = machine_memory()
    limit = total_memory(machine)
    return limit if limit < machine else machine // 2


class _Gauges(Collector):
    """Metrics whose values are read when they are requested."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._registry = service.registry
        self._batcher = service.batcher

    def collect(self) -> Iterator[Metric]:
        """The current values."""
        status = self._batcher.status()
        ready = float(not self._service.reasons_not_ready())
        yield build_info(self._registry.precision)
        yield Gauge("swin2sr_ready", "Whether new requests should be sent here.", value=ready)
        yield Gauge("swin2sr_queue_requests", "Requests in the queue.", value=status.waiting_requests)
        yield Gauge("swin2sr_queue_pixels", "Pixels in the queue.", value=status.waiting_cost)
        responses = self._service.responses.held
        yield Gauge("swin2sr_response_bytes", "Bytes of responses that are being sent.", value=responses)
        yield Gauge("swin2sr_batch_budget_pixels", "Largest batch now, in pixels.", value=status.batch_budget)
        yield Counter("swin2sr_out_of_memory", "Batches that ran out of memory.", value=status.out_of_memory)
        yield Counter("swin2sr_log_dropped", "Dropped log lines.", value=logs.dropped())
        kinds = measure(self._registry.device)
        yield labelled_gauge("swin2sr_device_memory_bytes", "Memory of the device.", "kind", kinds)
        states = [(each.name, float(each.state == "ready")) for each in self._registry.describe_all()]
        yield labelled_gauge("swin2sr_variant_ready", "Whether a variant is loaded and warm.", "variant", states)
