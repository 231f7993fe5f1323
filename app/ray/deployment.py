"""The service on Ray Serve, for ``swin2sr ray``: replicas of the application on one machine or several.

Ray's proxies receive the requests and pass each to the replica with fewer requests in progress. A replica is a complete
service with its own queue and batches. It gets requests once its variants are loaded and warmed up, and Ray replaces it
when its health check fails.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, NoReturn

from app import environment
from app.cgroup import usable_cpus
from app.ray.settings import RaySettings, ReplicaResources, plan_replicas
from app.settings import Settings
from app.sockets import listen, stop_signals, url

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

    from app.variants.loaded_model import Load

NAME = "swin2sr"
RAY_ENVIRONMENT = MappingProxyType(
    {
        "FORWARDED_ALLOW_IPS": "",  # the replicas trust TRUSTED_PROXIES; Ray's proxies trust no one
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "app.ray.proxy.middleware",
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    }
)
"""Default environment of Ray's processes: no usage reports, every log line, problem documents from the proxies, no
waiting for replicas that fail their health check, and 30 s instead of 5 for a proxy to start on a busy machine."""

QUIET = MappingProxyType({"enable_access_log": False, "log_level": "WARNING"})
"""Logging of Ray Serve: off, because replicas write a line for each request."""

BROADCAST_SECONDS = 5.0
"""Seconds that replicas have to answer a call to all of them."""


logger = logging.getLogger(__name__)


class Replica:
    """One process of the service, started, checked and stopped by Ray."""

    def __init__(self, settings: Settings, load: Load | None = None) -> None:
        from app import logs  # noqa: PLC0415 - needed in replicas only
        from app.main import create_app  # noqa: PLC0415
        from app.ray.metrics import ClusterMetrics  # noqa: PLC0415

        logs.configure(settings.log_format)
        self._app = create_app(settings, load=load, boot_first=True)
        self._app.state.collect_metrics = ClusterMetrics(self._collect_metrics)
        self._service = self._app.state.service
        self._ready = False
        self._replicas: DeploymentHandle | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application that Ray sends requests to."""
        return self._app

    async def check_health(self) -> None:
        """Raise NotReady if Ray should replace this replica.

        Until it was ready once, every missing variant counts. Later only faults count that a restart repairs.
        """
        if not self._ready:
            self._service.check_readiness()
            self._ready = True
        self._service.check_liveness()

    async def expose(self) -> tuple[str, str]:
        """The name of this replica, and its metrics as Prometheus text."""
        from ray import serve  # noqa: PLC0415

        return serve.get_replica_context().replica_id.unique_id, self._service.metrics.exposition().decode()

    async def begin_shutdown(self) -> None:
        """Report not ready from now on, and still accept requests."""
        self._service.begin_shutdown()

    async def _collect_metrics(self) -> dict[str, str]:
        from ray import serve  # noqa: PLC0415

        self._replicas = self._replicas or serve.get_deployment_handle(Replica.__name__, NAME)
        answers = self._replicas.broadcast("expose")
        results = await answers.results_async(timeout_s=BROADCAST_SECONDS, return_exceptions=True)
        return dict(each for each in results if not isinstance(each, BaseException))


def application(settings: RaySettings, resources_each: ReplicaResources, load: Load | None = None) -> Application:
    """Build the Ray application.

    Args:
        settings: of each replica.
        resources_each: processors and GPUs of each replica, and the number of replicas.
        load: loads the weights of a variant; None loads real ones.
    """
    from ray import serve  # noqa: PLC0415
    from ray.serve.config import AutoscalingConfig, BackpressureConfig  # noqa: PLC0415

    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=Replica.__name__,
        ray_actor_options={"num_cpus": resources_each.cpus, "num_gpus": resources_each.gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.ray_min_replicas,
            max_replicas=resources_each.replicas,
            target_ongoing_requests=settings.ray_target_requests,
        ),
        # Ray's limits are above the replica's own, so that a replica refuses first and sends its own Retry-After.
        max_ongoing_requests=2 * settings.max_queue_requests,
        max_queued_requests=settings.max_queue_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=settings.drain_timeout_ms / 1000,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=2,
        max_constructor_retry_count=2,
    )
    return deployment.bind(
        settings.model_copy(update={} if resources_each.gpus else {"threads": resources_each.cpus}), load
    )


def serve(
    settings: RaySettings, say: Callable[[str], None], sample: str = "photo.jpg", *, load: Load | None = None
) -> int:
    """Serve until a signal arrives, on the cluster at ``RAY_ADDRESS`` or on a new one that is stopped at the end.

    Args:
        settings: of the service.
        say: prints a line for the user.
        sample: image path shown in the startup hint.
        load: loads the weights of a variant; tests pass a stand-in.

    Returns:
        The exit status: 0 if all accepted requests finished in time.

    Raises:
        ValueError: if Ray is not installed, or a variant or device does not exist.
        OSError: if the address cannot be listened on.
        RuntimeError: if no replica becomes ready.
    """
    for warning in environment.check(os.environ, settings, RaySettings.model_fields):
        logger.warning("%s", warning)
    _check_variants(settings)
    with listen(settings.host, settings.port) as listener:
        port = listener.getsockname()[1]
    address = url(settings.host, port)
    status = 0
    try:
        with _recorded_signals() as raise_if_signalled, _cluster(settings) as resources:
            for number in stop_signals():
                signal.signal(number, _end)
            raise_if_signalled()
            resources_each = plan_replicas(settings, resources, can_grow=bool(os.environ.get("RAY_ADDRESS")))
            _start_proxies(settings, port)
            say(f"Swin2SR listens on {address}")
            handle = _deploy(application(settings, resources_each, load))
            say(f"Ready. Try: curl --fail-with-body -F file=@{sample} '{address}/v1/upscale' -o upscaled.png")
            reason = _wait_for_signal(raise_if_signalled)
            status = 1  # the status if another signal ends the draining
            status = _drain(handle, settings, reason)
    except SystemExit:
        pass
    return status


class _End(SystemExit):
    """Raised by signals. Ray raises its base class when a signal arrives during startup."""


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise _End(number)


@contextmanager
def _recorded_signals() -> Iterator[Callable[[], None]]:
    """Record signals, and yield a function that raises if one of them ends the service.

    While Ray starts, its handler of SIGTERM raises SystemExit. Once a service was seen to go on after that.
    """
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def raise_if_signalled() -> None:
        with suppress(BlockingIOError):
            for number in os.read(reader, 1024):
                if number in stop_signals():
                    raise _End(number)

    try:
        yield raise_if_signalled
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


def _wait_for_signal(raise_if_signalled: Callable[[], None]) -> int:
    try:
        raise_if_signalled()
        while True:
            signal.pause()
    except _End as end:
        return int(end.args[0])


def _check_variants(settings: Settings) -> None:
    """Report unknown or missing variants before replicas are started."""
    from app.variants.catalogue import Catalogue  # noqa: PLC0415

    Catalogue(settings.model_dir, "cpu", settings.official_weights()).choose(settings.variants)


@contextmanager
def _cluster(settings: Settings) -> Iterator[Mapping[str, float]]:
    """Connect to a cluster, and yield its resources."""
    os.environ.update({**RAY_ENVIRONMENT, **os.environ, "SWIN2SR_MAX_BODY_BYTES": str(settings.max_body_bytes)})
    try:
        import ray  # noqa: PLC0415 - an optional dependency, which reads its environment when imported
    except ImportError as error:
        raise ValueError("Ray is not installed. Install it with: pip install 'swin2sr-serve[ray]'") from error
    own = {"address": "local", "num_cpus": usable_cpus(), "include_dashboard": False}
    try:
        ray.init(**({} if os.environ.get("RAY_ADDRESS") else own), logging_level=logging.ERROR)
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def _start_proxies(settings: Settings, port: int) -> None:
    from ray import serve as ray_serve  # noqa: PLC0415

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    seconds = (
        settings.request_timeout_ms / 1000 + 1
    )  # for requests that no replica took; a replica keeps the timeout itself
    ray_serve.start(
        http_options={"host": settings.host, "port": port, "request_timeout_s": seconds},
        logging_config=dict(QUIET),
    )


def _deploy(service: Application) -> DeploymentHandle:
    from ray import serve as ray_serve  # noqa: PLC0415

    try:
        return ray_serve.run(service, name=NAME, logging_config=dict(QUIET))
    except RuntimeError as error:
        raise RuntimeError("No replica became ready. The lines above have the reason.") from error


def _drain(handle: DeploymentHandle, settings: Settings, reason: int) -> int:
    """Drain as the plain service does: report not ready, stop accepting, and finish accepted requests."""
    from ray import serve as ray_serve  # noqa: PLC0415

    until = time.monotonic() + settings.drain_timeout_ms / 1000
    with suppress(TimeoutError):
        handle.broadcast("begin_shutdown").results(timeout_s=BROADCAST_SECONDS, return_exceptions=True)
    if reason != signal.SIGINT:
        time.sleep(settings.drain_delay_ms / 1000)
    while time.monotonic() < until:
        try:
            ray_serve.delete(NAME)
        except TimeoutError:  # Ray waits for one minute at most
            continue
        return 0 if time.monotonic() < until else 1
    return 1
