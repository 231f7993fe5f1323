"""Health probes and metrics."""

from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from app.errors import NotReady, Unauthorized
from app.metrics import MEDIA_TYPE
from app.routes import ServiceDependency
from app.routes.access import require_metrics_token
from app.routes.examples import EXPOSITION, problems
from app.schemas import Health, Readiness
from app.version import service_version

router = APIRouter(tags=["health"])

_OPEN: dict[str, Any] = {"security": []}
_ALL: dict[str, Any] = {"description": "All metrics.", "content": {"text/plain": {"example": EXPOSITION}}}


@router.get("/health/live", summary="Liveness probe", responses=problems(NotReady), openapi_extra=_OPEN)
async def live(service: ServiceDependency) -> Health:
    """503 if the process should be restarted."""
    service.check_liveness()
    return Health()


@router.get("/health/ready", summary="Readiness probe", responses=problems(NotReady), openapi_extra=_OPEN)
async def ready(service: ServiceDependency) -> Readiness:
    """503 with the reasons while loading, warming up or draining, or if the worker does not run."""
    service.check_readiness()
    return Readiness(version=service_version())


@router.get("/health/startup", summary="Startup probe", responses=problems(NotReady), openapi_extra=_OPEN)
async def startup(service: ServiceDependency) -> Health:
    """503 until all variants in VARIANTS were loaded or have failed."""
    if not service.registry.booted:
        raise NotReady("; ".join(service.registry.reasons_not_ready()), retry_after=1)
    return Health()


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={**problems(Unauthorized), 200: _ALL},
    dependencies=[Depends(require_metrics_token)],
)
async def metrics(service: ServiceDependency, request: Request) -> Response:
    """Counters, histograms and gauges as Prometheus text. Requires the metrics token if the server has one."""
    collect = getattr(request.app.state, "collect_metrics", None)  # of all replicas, on Ray
    return Response(await collect() if collect else service.metrics.exposition(), media_type=MEDIA_TYPE)
