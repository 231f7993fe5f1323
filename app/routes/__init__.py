"""The routes, one module per resource. A route parses the request, calls the service, and responds."""

from typing import Annotated

from fastapi import Depends, Request

from app.service import Service


async def current_service(request: Request) -> Service:
    """The service of the application. Async, because FastAPI runs plain functions in a thread."""
    service: Service = request.app.state.service
    return service


ServiceDependency = Annotated[Service, Depends(current_service)]
