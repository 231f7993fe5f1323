"""A complete, independent service: everything that lives as long as the application."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from prometheus_client import Metric
from prometheus_client.registry import Collector

from app import logs
from app.batching.batch import BatchReport
from app.batching.batcher import Batcher
from app.batching.byte_budget import ByteBudget
from app.batching.runner import BatchRunner, cost_of
from app.batching.supervision import Heartbeat
from app.build_info import build_info
from app.cgroup import total_memory, usable_cpus
from app.errors import NotReady
from app.http.uploads import UploadBudget
from app.metrics import Metrics, counter, gauge, labelled_gauge
from app.pipeline import Pipeline, TileBatcher
from app.settings import Settings
from app.variants.device import free, is_lost, keep_memory_small, machine_memory, measure, resident_memory
from app.variants.loaded_model import Load
from app.variants.registry import ModelRegistry
from model.gpu.runner import PACK_PIXELS

CPU_BATCH_PIXELS = 2**16
"""Pixels of a batch on a CPU, where the setting is auto; a larger tile runs alone. The network computes as many at a
time, so a larger batch would not be faster, and small requests would wait for it."""

LEAST_MEMORY = 64 * 2**20
"""Bytes that requests share at least."""

MEMORY_SHARE = 0.9
"""Part of the memory that is left which requests share; the rest is for what nobody accounts for."""

STALL_SECONDS = 15.0
"""Without a sign of life for so long, though there is work, the worker is frozen: nobody should send requests here. A
network gives one at each of its blocks and its head's layers, which on a slow processor take some seconds."""

RESTART_SECONDS = 300.0
"""Silence after which nothing but a restart helps."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """The parts of a service, made together and ended together."""

    settings: Settings
    registry: ModelRegistry
    batcher: TileBatcher
    pipeline: Pipeline
    uploads: UploadBudget
    memory: ByteBudget
    responses: ByteBudget
    metrics: Metrics
    state: ServiceState

    def reasons_not_ready(self) -> list[str]:
        """Why requests should go elsewhere now; empty when they are welcome."""
        status = self.batcher.status()
        reasons = self.registry.reasons_not_ready()
        if self.state.leaving or status.draining:
            reasons.append("shutting down")
        elif not status.alive:
            reasons.append("the worker is not running")
        elif status.seconds_since_beat > STALL_SECONDS:
            reasons.append(f"the worker has given no sign of life for {status.seconds_since_beat:.0f} s")
        return reasons

    def check_liveness(self) -> None:
        """Raise the reason for a restart, if there is one.

        Raises:
            NotReady: if the worker stopped for good, or is frozen.
        """
        status = self.batcher.status()
        if self.registry.booted and not status.alive and not status.draining:
            raise NotReady("The worker has stopped for good.")
        if status.seconds_since_beat > RESTART_SECONDS:
            raise NotReady(f"The worker is frozen: no sign of life for {status.seconds_since_beat:.0f} s.")

    def check_readiness(self) -> None:
        """Raise the reasons, if there are any.

        Raises:
            NotReady: with all of them.
        """
        if reasons := self.reasons_not_ready():
            raise NotReady("; ".join(reasons), reasons=reasons)

    def begin_shutdown(self) -> None:
        """Report not ready from now on. Requests are still accepted."""
        if not self.state.leaving:
            self.state.leaving = True
            self.state.ends_at = time.monotonic() + self.settings.drain_timeout_ms / 1000

    def abort(self) -> None:
        """End the time for accepted requests now."""
        self.begin_shutdown()
        self.state.ends_at = time.monotonic()

    async def boot(self, on_ready: Callable[[], None]) -> None:
        """Load and warm the wanted variants."""
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
        if pixels < self.settings.tile_size**2:
            logger.warning(
                "half of the free memory, %d MiB, holds %d pixels, less than a tile of TILE_SIZE %d: lower it",
                free_bytes // 2**21, pixels, self.settings.tile_size,
            )  # fmt: skip
        logger.info("a batch has %d pixels at most", self.batcher.status().batch_budget)

    def _fit_memory(self, used: int) -> None:
        """Give requests the memory that the loaded variants, and the forward pass on a CPU, leave."""
        left = max(0, available_memory() - used)
        if self.registry.device.type == "cpu":
            left -= min(left // 2, self.registry.bytes_per_pixel * self.settings.tile_size**2)
        self.memory.limit = max(LEAST_MEMORY, int(left * MEMORY_SHARE))
        logger.info("requests share %d MiB of memory", self.memory.limit // 2**20)

    async def close(self) -> None:
        """Finish admitted requests within the time that is left, and stop every thread."""
        self.begin_shutdown()
        left = max(0.0, self.state.ends_at - time.monotonic())
        try:
            self.state.finished = await asyncio.to_thread(self.batcher.close, left)
        except RuntimeError:  # no thread can be started; nobody else needs the event loop any more
            self.state.finished = self.batcher.close(left)
        self.registry.close()
        self.pipeline.close()


@dataclass
class ServiceState:
    """The part of a service that changes."""

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
        settings: checked.
        load: loads the weights of a variant; a stand-in for tests.
        on_fatal: called in the worker's thread when it died too often in a row.
        clock: of the queue; close to ``time.monotonic()``.

    Raises:
        ValueError: if a wanted variant or the device is not there.
    """
    keep_memory_small()
    cpus = usable_cpus()
    threads = cpus if settings.threads == "auto" else settings.threads
    heartbeat = Heartbeat(clock)
    registry = ModelRegistry(
        settings.variants,
        model_dir=settings.model_dir,
        official=settings.official_weights(),
        device=settings.device,
        precision=settings.precision,
        threads=threads,
        load=load,
        heartbeat=heartbeat.record,
    )
    metrics = Metrics(settings.keys)

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
        BatchRunner(registry.device, threads),
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
    limit = settings.max_memory_bytes
    memory = ByteBudget(max(LEAST_MEMORY, available_memory()) if limit == "auto" else limit)
    pipeline = Pipeline(
        registry,
        batcher,
        settings,
        memory=memory,
        codec_threads=max(1, min(8, cpus // 2)),
        stitch_threads=cpus,
    )
    uploads = UploadBudget(settings.max_inflight_bytes)
    service = Service(
        settings,
        registry,
        batcher,
        pipeline,
        uploads,
        memory,
        ByteBudget(settings.max_response_bytes),
        metrics,
        ServiceState(),
    )
    metrics.watch(_Gauges(service))
    return service


def available_memory() -> int:
    """Bytes of main memory for this process: its container's limit, or half of the machine's memory."""
    machine = machine_memory()
    limit = total_memory(machine)
    return limit if limit < machine else machine // 2


class _Gauges(Collector):
    """Gauges that are read when the metrics are requested."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._registry = service.registry
        self._batcher = service.batcher

    def collect(self) -> Iterator[Metric]:
        """The queue and the variants, now."""
        status = self._batcher.status()
        ready = float(not self._service.reasons_not_ready())
        yield build_info(self._registry.precision)
        yield gauge("swin2sr_ready", "Whether new requests should be sent here.", ready)
        yield gauge("swin2sr_queue_requests", "Requests that wait.", status.waiting_requests)
        yield gauge("swin2sr_queue_pixels", "Pixels that wait.", status.waiting_cost)
        responses = self._service.responses.held
        yield gauge("swin2sr_response_bytes", "Bytes of responses that are being sent.", responses)
        yield gauge("swin2sr_batch_budget_pixels", "Pixels that a batch may have now.", status.batch_budget)
        yield counter("swin2sr_out_of_memory", "Batches that ran out of memory.", status.out_of_memory)
        yield counter("swin2sr_log_dropped", "Log lines that nobody will read.", logs.dropped())
        kinds = measure(self._registry.device)
        yield labelled_gauge("swin2sr_device_memory_bytes", "Memory of the device.", "kind", kinds)
        states = [(each.name, float(each.state == "ready")) for each in self._registry.describe_all()]
        yield labelled_gauge("swin2sr_variant_ready", "Whether a variant is loaded and warm.", "variant", states)
