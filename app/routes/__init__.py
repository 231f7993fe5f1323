"""What can be asked over HTTP, a module per resource; a route parses, asks the service, and responds."""

from typing import Annotated

from fastapi import Depends, Request

from app.service import Service


def current_service(request: Request) -> Service:
    """The service that the application's lifespan owns."""
    service: Service = request.app.state.service
    return service


ServiceDependency = Annotated[Service, Depends(current_service)]
