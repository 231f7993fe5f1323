"""Methods that every endpoint supports: ``HEAD`` where ``GET`` works, and ``OPTIONS *``. Pure ASGI."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAsGet:
    """Passes ``HEAD`` on as ``GET`` and sends the response without its body. Responds to ``OPTIONS *`` itself.

    Args:
        app: the next application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and (scope["method"], scope["path"]) == ("OPTIONS", "*"):
            await Response(status_code=204, headers={"Allow": "GET, HEAD, POST, OPTIONS"})(scope, receive, send)
            return
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            body = {"body": b""} if message["type"] == "http.response.body" else {}
            await send({**message, **body})

        await self.app({**scope, "method": "GET"}, receive, send_head)
