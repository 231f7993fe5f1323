"""What can be asked over HTTP, a module per resource; a route parses, asks the service, and responds."""

from typing import Annotated

from fastapi import Depends, Request

from app.schemas import Problem
from app.service import Service


def current_service(request: Request) -> Service:
    """The service that the application's lifespan owns."""
    service: Service = request.app.state.service
    return service


ServiceDependency = Annotated[Service, Depends(current_service)]


def problems(*statuses: int) -> dict[int | str, dict[str, object]]:
    """The documentation of a route's errors."""
    content = {"application/problem+json": {"schema": Problem.model_json_schema()}}
    return {status: {"content": content, "description": "A problem document."} for status in statuses}
