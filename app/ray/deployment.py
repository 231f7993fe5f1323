"""The service on Ray Serve: the same application as replicas, on one machine or many. What ``swin2sr ray`` runs.

Ray's proxies take the requests, and each goes to the replica with fewer under way. A replica is a complete service: it
batches, queues and refuses by itself. It gets requests when everything is loaded and warm, and is replaced when a
restart is the cure.
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

from app.cgroup import usable_cpus
from app.ray.settings import RaySettings, ReplicaResources, plan_replicas
from app.settings import Settings
from app.sockets import listen, url

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

    from app.variants.loaded_model import Load

NAME = "swin2sr"
RAYS_ENVIRONMENT = MappingProxyType(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "app.ray.proxy.middleware",
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    }
)
"""Of Ray's processes, where nothing else is said: it reports to nobody, keeps no log line back, answers as this service
does, and waits for no replica that only a restart can help."""

QUIET = MappingProxyType({"enable_access_log": False, "log_level": "WARNING"})
"""Of Ray Serve's own log: replicas write a line for each request themselves."""


BROADCAST_SECONDS = 5.0
"""How long replicas may take to answer what all are asked."""


class Replica:
    """A process of the service, started, asked and ended by Ray."""

    def __init__(self, settings: Settings, load: Load | None = None) -> None:
        from app import logs  # noqa: PLC0415 - what a replica needs, and who starts it does not
        from app.main import create_app  # noqa: PLC0415
        from app.ray.metrics import ClusterMetrics  # noqa: PLC0415

        logs.configure(settings.log_format)
        self._app = create_app(settings, load=load, boot_first=True)
        self._app.add_middleware(ClusterMetrics, ask=self._ask_everybody)
        self._service = self._app.state.service
        self._ready = False
        self._everybody: DeploymentHandle | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray sends requests to, when its lifespan has started."""
        return self._app

    async def check_health(self) -> None:
        """Raise NotReady to be replaced: before the first request if anything is missing, later if nothing helps."""
        if not self._ready:
            self._service.check_readiness()
            self._ready = True
        self._service.check_liveness()

    async def expose(self) -> tuple[str, str]:
        """This replica's name, and its metrics as Prometheus text."""
        from ray import serve  # noqa: PLC0415

        return serve.get_replica_context().replica_id.unique_id, self._service.metrics.exposition().decode()

    async def begin_shutdown(self) -> None:
        """Be not ready from now on; what comes is still accepted."""
        self._service.begin_shutdown()

    async def _ask_everybody(self) -> dict[str, str]:
        from ray import serve  # noqa: PLC0415

        self._everybody = self._everybody or serve.get_deployment_handle(Replica.__name__, NAME)
        answers = self._everybody.broadcast("expose")
        told = await answers.results_async(timeout_s=BROADCAST_SECONDS, return_exceptions=True)
        return dict(each for each in told if not isinstance(each, BaseException))


def application(settings: RaySettings, resources_each: ReplicaResources, load: Load | None = None) -> Application:
    """The service as Ray deploys it.

    Args:
        settings: of each replica.
        resources_each: of each replica.
        load: makes weights ready to call; the real thing by default.
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
        # A replica refuses by its own rule, and says after which time to come again; Ray's bounds lie behind that.
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
    """Serve until a signal comes, on the cluster that ``RAY_ADDRESS`` names, or else on one that lives as long.

    Args:
        settings: checked.
        say: shows a line to the person who started it.
        sample: image in the command that is shown to try.
        load: makes weights ready to call; a test puts something else in the model's place.

    Returns:
        The exit status: 0 if everything that was accepted was finished in time.

    Raises:
        ValueError: if Ray is not installed, or something wanted is not there.
        OSError: if the address is not to be had.
        RuntimeError: if the replicas do not start.
    """
    _look_for_variants(settings)
    with listen(settings.host, settings.port) as listener:
        port = listener.getsockname()[1]
    address = url(settings.host, port)
    status = 0
    try:
        with _cluster(settings) as resources:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _end)
            resources_each = plan_replicas(settings, resources, can_grow=bool(os.environ.get("RAY_ADDRESS")))
            _start_proxies(settings, port)
            say(f"Swin2SR listens on {address}")
            handle = _deploy(application(settings, resources_each, load))
            say(f"Ready. Try: curl --fail-with-body -F file=@{sample} '{address}/v1/upscale' -o upscaled.png")
            reason = _wait_for_signal()
            status = 1  # if another signal stops what follows
            status = _drain(handle, settings, reason)
    except SystemExit:
        pass
    return status


class _End(SystemExit):
    """A signal asks for the end; Ray, while it starts, raises its base class then."""


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise _End(number)


def _wait_for_signal() -> int:
    try:
        while True:
            signal.pause()
    except _End as end:
        return int(end.args[0])


def _look_for_variants(settings: Settings) -> None:
    """Refuse here what every replica would refuse."""
    from app.variants.catalogue import Catalogue  # noqa: PLC0415

    Catalogue(settings.model_dir, "cpu", settings.official_weights()).choose(settings.variants)


@contextmanager
def _cluster(settings: Settings) -> Iterator[Mapping[str, float]]:
    """What a cluster has, as long as this process is connected to it."""
    os.environ.update({**RAYS_ENVIRONMENT, **os.environ, "SWIN2SR_MAX_BODY_BYTES": str(settings.max_body_bytes)})
    try:
        import ray  # noqa: PLC0415 - after its environment, and only where it is wanted
    except ImportError as error:
        raise ValueError("Ray is not installed: pip install 'swin2sr-serve[ray]'") from error
    own = {"address": "local", "num_cpus": usable_cpus(), "include_dashboard": False}
    try:
        ray.init(**({} if os.environ.get("RAY_ADDRESS") else own), logging_level=logging.ERROR)
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def _start_proxies(settings: Settings, port: int) -> None:
    from ray import serve as ray_serve  # noqa: PLC0415

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    seconds = settings.request_timeout_ms / 1000 + 1  # a replica answers in time; this is for those that never got one
    ray_serve.start(
        http_options={"host": settings.host, "port": port, "request_timeout_s": seconds},
        logging_config=dict(QUIET),
    )


def _deploy(service: Application) -> DeploymentHandle:
    from ray import serve as ray_serve  # noqa: PLC0415

    try:
        return ray_serve.run(service, name=NAME, logging_config=dict(QUIET))
    except RuntimeError as error:
        raise RuntimeError("No replica became ready; the lines above say why.") from error


def _drain(handle: DeploymentHandle, settings: Settings, reason: int) -> int:
    """End as the plain service does: first not ready, later accepting nothing, at last finished."""
    from ray import serve as ray_serve  # noqa: PLC0415

    until = time.monotonic() + settings.drain_timeout_ms / 1000
    with suppress(TimeoutError):
        handle.broadcast("begin_shutdown").results(timeout_s=BROADCAST_SECONDS, return_exceptions=True)
    if reason == signal.SIGTERM:
        time.sleep(settings.drain_delay_ms / 1000)
    while time.monotonic() < until:
        try:
            ray_serve.delete(NAME)
        except TimeoutError:  # Ray waits for a minute at most
            continue
        return 0 if time.monotonic() < until else 1
    return 1
