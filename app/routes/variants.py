"""What a request can ask for, and, for the administrator, what is loaded."""

from fastapi import APIRouter, Depends

from app.errors import Forbidden, NotReady, Unauthorized, UnknownVariant
from app.routes import ServiceDependency
from app.routes.access import current_client, require_admin
from app.routes.examples import problems
from app.schemas import VariantDescription, VariantList

router = APIRouter(prefix="/v1/variants", tags=["variants"], dependencies=[Depends(current_client)])
admin_router = APIRouter(prefix="/v1/variants", tags=["admin"], dependencies=[Depends(require_admin)])

_REFUSALS = problems(Unauthorized, Forbidden, UnknownVariant, NotReady)


@router.get("", summary="All variants, what each is for, and its state", responses=problems(Unauthorized))
async def list_variants(service: ServiceDependency) -> VariantList:
    """Official, embedded and own variants."""
    return VariantList(default=service.registry.default, variants=service.registry.describe_all())


@router.get("/{name}", summary="One variant", responses=problems(Unauthorized, UnknownVariant))
async def describe_variant(name: str, service: ServiceDependency) -> VariantDescription:
    """A variant, by its name or by an alias."""
    return service.registry.describe(name)


@admin_router.post("/{name}/load", summary="Load a variant", responses=_REFUSALS)
async def load_variant(name: str, service: ServiceDependency) -> VariantDescription:
    """Answers when it is loaded and warm; official weights are fetched if they are not here, loaded ones stay."""
    registry = service.registry
    await registry.load(registry.find(name))
    return registry.describe(name)


@admin_router.post("/{name}/unload", summary="Unload a variant", responses=_REFUSALS)
async def unload_variant(name: str, service: ServiceDependency) -> VariantDescription:
    """New requests for it are refused from now on; those that were accepted are finished."""
    registry = service.registry
    await registry.unload(registry.resolve(name))
    return registry.describe(name)


@admin_router.post("/{name}/reload", summary="Load a variant's weights again", responses=_REFUSALS)
async def reload_variant(name: str, service: ServiceDependency) -> VariantDescription:
    """Answers when the new weights serve; if they cannot be loaded, the old ones stay."""
    registry = service.registry
    await registry.reload(registry.resolve(name))
    return registry.describe(name)
