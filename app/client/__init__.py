"""A synchronous and an asynchronous client, which load neither torch nor FastAPI.

    with Client("http://127.0.0.1:8000") as client:
        client.upscale("photo.jpg", variant="x2").save("upscaled.png")

The same files are the separate package ``swin2sr_client.client`` (see ``app/thin/pyproject.toml``). Their relative
imports work under both names.
"""

from ..errors import ServerUnreachable
from .clients import AsyncClient, Client
from .images import Source
from .request import Options
from .response import Progress, UpscaledImage

__all__ = ["AsyncClient", "Client", "Options", "Progress", "ServerUnreachable", "Source", "UpscaledImage"]
