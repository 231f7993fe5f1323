"""A client of the service, synchronous and asynchronous, that loads neither torch nor FastAPI.

    with Client("http://127.0.0.1:8000") as client:
        client.upscale("photo.jpg", variant="x2").save("upscaled.png")

Installed alone, without torch, it is ``swin2sr_client.client`` (see ``app/thin/pyproject.toml``); so that the same
files work under both names, the modules of this folder import relatively.
"""

from .answer import Progress, UpscaledImage
from .call import Options, ServerUnreachable, Source
from .clients import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "Options", "Progress", "ServerUnreachable", "Source", "UpscaledImage"]
