"""The variants of the server, and their loading and unloading by an administrator."""

from fastapi import APIRouter, Depends

from app.codec.formats import writable
from app.errors import Forbidden, NotReady, Unauthorized, UnknownVariant
from app.routes import ServiceDependency
from app.routes.access import current_client, require_admin
from app.routes.examples import problems
from app.schemas import VariantDescription, VariantList

router = APIRouter(prefix="/v1/variants", tags=["variants"], dependencies=[Depends(current_client)])
admin_router = APIRouter(prefix="/v1/variants", tags=["admin"], dependencies=[Depends(require_admin)])

_REFUSALS = problems(Unauthorized, Forbidden, UnknownVariant, NotReady)


@router.get("", summary="List variants and their states", responses=problems(Unauthorized))
async def list_variants(service: ServiceDependency) -> VariantList:
    """Official, embedded and own variants."""
    return VariantList(default=service.registry.default, variants=service.registry.describe_all(), formats=writable())


@router.get("/{name}", summary="One variant", responses=problems(Unauthorized, UnknownVariant))
async def describe_variant(name: str, service: ServiceDependency) -> VariantDescription:
    """A variant, by its name or by an alias."""
    return service.registry.describe(name)


@admin_router.post("/{name}/load", summary="Load a variant", responses=_REFUSALS)
async def load_variant(name: str, service: ServiceDependency) -> VariantDescription:
    """Responds when the variant is loaded and warm. Missing official weights are downloaded first."""
    registry = service.registry
    await registry.load(registry.find(name))
    return registry.describe(name)


@admin_router.post("/{name}/unload", summary="Unload a variant", responses=_REFUSALS)
async def unload_variant(name: str, service: ServiceDependency) -> VariantDescription:
    """New requests for the variant are refused. Accepted ones are finished."""
    registry = service.registry
    await registry.unload(registry.resolve(name))
    return registry.describe(name)


@admin_router.post("/{name}/reload", summary="Load a variant's weights again", responses=_REFUSALS)
async def reload_variant(name: str, service: ServiceDependency) -> VariantDescription:
    """Responds when the new weights are in use. If they cannot be loaded, the old ones are kept."""
    registry = service.registry
    await registry.reload(registry.resolve(name))
    return registry.describe(name)
