"""Settings for Ray, and the number and the resources of replicas. Does not import Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from app.cgroup import usable_cpus
from app.http.settings import AutoOrPositive
from app.settings import Settings

RAY_PROXY = (
    "uds",
    "ssl_certfile",
    "ssl_keyfile",
    "root_path",
    "keep_alive_ms",
    "header_timeout_ms",
    "send_timeout_ms",
    "max_connections",
)
"""Settings of sockets, which belong to Ray's proxy."""


class RaySettings(Settings):
    """The settings of the service, and those of its replicas."""

    ray_min_replicas: int = Field(1, ge=1, description="minimum number of replicas")
    ray_max_replicas: AutoOrPositive = Field(
        "auto", description="maximum number of replicas; auto: one for each GPU, or for each THREADS processors"
    )
    ray_target_requests: int = Field(
        4, ge=1, description="average number of requests per replica above which another replica is started"
    )

    @model_validator(mode="after")
    def _fit_ray(self) -> Self:
        if isinstance(self.ray_max_replicas, int) and self.ray_max_replicas < self.ray_min_replicas:
            raise ValueError(
                f"RAY_MIN_REPLICAS ({self.ray_min_replicas}) must not be larger than RAY_MAX_REPLICAS "
                f"({self.ray_max_replicas})"
            )
        if self.device.startswith("cuda:"):
            raise ValueError(
                f"DEVICE ({self.device}) names a GPU, but Ray assigns GPUs to replicas. Use cuda, cpu or auto."
            )
        if proxied := [
            name.upper() for name in RAY_PROXY if getattr(self, name) != Settings.model_fields[name].default
        ]:
            raise ValueError(
                f"{', '.join(proxied)}: on Ray the sockets belong to Ray's proxy, which does not read these settings. "
                "Unset what is named here."
            )
        if self.admin_secret is not None:
            raise ValueError(
                "ADMIN_TOKEN is not supported on Ray: load, unload and reload would reach only one replica. Unset it, "
                "and restart to change variants."
            )
        return self


@dataclass(frozen=True)
class ReplicaResources:
    """Processors and GPUs of each replica, and the maximum number of replicas."""

    cpus: int
    gpus: int
    replicas: int


def plan_replicas(settings: RaySettings, resources: Mapping[str, float], *, can_grow: bool = False) -> ReplicaResources:
    """Plan replicas: each gets a GPU and one processor, or ``THREADS`` processors.

    Args:
        settings: of the service.
        resources: numbers of ``CPU`` and ``GPU`` in the cluster.
        can_grow: whether the cluster may add machines.

    Raises:
        ValueError: if the cluster has no such device, or too few resources.
    """
    gpus = int(resources.get("GPU", 0))
    if settings.device == "cuda" and not gpus and not can_grow:
        raise ValueError("DEVICE is cuda, but the Ray cluster has no GPU. Use cpu or auto.")
    gpu = int(settings.device == "cuda" or (settings.device == "auto" and gpus > 0))
    processors = 1 if gpu else usable_cpus()
    cpus = processors if settings.threads == "auto" else settings.threads
    room = min(int(resources.get("CPU", 0)) // cpus, gpus if gpu else 2**31)
    wanted = settings.ray_min_replicas if settings.ray_max_replicas == "auto" else settings.ray_max_replicas
    if not can_grow and wanted > room:
        raise ValueError(
            f"{wanted} replicas with THREADS ({cpus}){' and one GPU' * gpu} each do not fit into the cluster: there "
            f"is room for {room}. Lower RAY_MIN_REPLICAS, RAY_MAX_REPLICAS or THREADS."
        )
    return ReplicaResources(cpus, gpu, max(wanted, room) if settings.ray_max_replicas == "auto" else wanted)
