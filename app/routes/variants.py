"""What a request can ask for."""

from fastapi import APIRouter, Depends

from app.routes import ServiceDependency, problems
from app.routes.access import current_client
from app.schemas import VariantDescription, VariantList

router = APIRouter(prefix="/v1/variants", tags=["variants"], dependencies=[Depends(current_client)])


@router.get("", summary="All variants, what each is for, and its state", responses=problems(401))
async def list_variants(service: ServiceDependency) -> VariantList:
    """Official, embedded and own variants."""
    return VariantList(default=service.registry.default, variants=service.registry.describe_all())


@router.get("/{name}", summary="One variant", responses=problems(401, 404))
async def describe_variant(name: str, service: ServiceDependency) -> VariantDescription:
    """A variant, by its name or by an alias."""
    return service.registry.describe(name)
