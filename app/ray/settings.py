"""How many replicas there are on Ray, and what each gets; knows no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from app.cgroup import usable_cpus
from app.settings import Settings


class RaySettings(Settings):
    """The settings of the service, and how many there are of it."""

    ray_min_replicas: int = Field(1, ge=1, description="replicas that are always there")
    ray_max_replicas: int | Literal["auto"] = Field(
        "auto", description="replicas under load; auto: one for each GPU, or for each THREADS processors"
    )
    ray_target_requests: int = Field(
        4, ge=1, description="requests in a replica, on average, from which another one is started"
    )

    @model_validator(mode="after")
    def _fit_ray(self) -> Self:
        if isinstance(self.ray_max_replicas, int) and self.ray_max_replicas < self.ray_min_replicas:
            raise ValueError(
                f"RAY_MIN_REPLICAS {self.ray_min_replicas} is more than RAY_MAX_REPLICAS {self.ray_max_replicas}"
            )
        if self.device.startswith("cuda:"):
            raise ValueError(f"DEVICE {self.device}: Ray gives each replica a GPU of its own; say cuda, cpu or auto")
        if self.admin_token is not None:
            raise ValueError(
                "ADMIN_TOKEN: load, unload and reload would reach one of Ray's replicas only. Unset it; for other "
                "variants, start again"
            )
        return self


@dataclass(frozen=True)
class ReplicaResources:
    """What each replica gets of a cluster, and how many replicas there may be."""

    cpus: int
    gpus: int
    replicas: int


def plan_replicas(settings: RaySettings, resources: Mapping[str, float], *, can_grow: bool = False) -> ReplicaResources:
    """Give each replica a GPU and a processor, or ``THREADS`` processors.

    Args:
        settings: checked.
        resources: ``CPU`` and ``GPU`` of the cluster.
        can_grow: whether the cluster may become larger.

    Raises:
        ValueError: if there is no such device, or the replicas wanted do not fit.
    """
    gpus = int(resources.get("GPU", 0))
    if settings.device == "cuda" and not gpus and not can_grow:
        raise ValueError("DEVICE cuda: the Ray cluster has no GPU")
    gpu = int(settings.device == "cuda" or (settings.device == "auto" and gpus > 0))
    processors = 1 if gpu else usable_cpus()
    cpus = processors if settings.threads == "auto" else settings.threads
    room = min(int(resources.get("CPU", 0)) // cpus, gpus if gpu else 2**31)
    wanted = settings.ray_min_replicas if settings.ray_max_replicas == "auto" else settings.ray_max_replicas
    if not can_grow and wanted > room:
        raise ValueError(
            f"{wanted} replicas do not fit here, each with THREADS {cpus}{' and a GPU' * gpu}: there is room for {room}"
        )
    return ReplicaResources(cpus, gpu, max(wanted, room) if settings.ray_max_replicas == "auto" else wanted)
