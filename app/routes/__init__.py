"""What can be asked over HTTP, a module per resource; a route parses, asks the service, and responds."""

from typing import Annotated

from fastapi import Depends, Request

from app.service import Service


async def current_service(request: Request) -> Service:
    """The service that the application's lifespan owns. Not a plain function, which would take a thread of the pool."""
    service: Service = request.app.state.service
    return service


ServiceDependency = Annotated[Service, Depends(current_service)]
