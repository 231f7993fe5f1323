"""Refuses requests for other host names, which prevents DNS rebinding by pages of other sites."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import MisdirectedRequest
from app.http.middleware import PROBES, refuse, route_path

ANY = "*"


class AllowedHosts:
    """Responds 421 to host names that are not accepted. Probes are exempt, because they use addresses. Pure ASGI.

    Args:
        app: the next application.
        names: accepted names in lower case; ``*.example.com`` accepts every subdomain, ``*`` any name.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self.app = app
        self.names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and ANY not in self.names and not route_path(scope).startswith(PROBES):
            header = Headers(scope=scope).get("host", "")
            host = host_name(header)
            if not any(_matches(host, name) for name in self.names):
                await refuse(scope, send, _refusal(header))
                return
        await self.app(scope, receive, send)


def host_name(header: str) -> str:
    """The name in a ``Host`` header, in lower case without the port; an IPv6 address keeps its brackets.

    Empty if the header is malformed.
    """
    match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^\s:@/\[\]]+)(:\d*)?", header.strip().lower())
    return match[1].rstrip(".") if match else ""


def _matches(host: str, name: str) -> bool:
    return host == name or (name.startswith("*.") and host.endswith(name[1:]) and len(host) > len(name) - 1)


def _refusal(host: str) -> MisdirectedRequest:
    return MisdirectedRequest(
        f"The host {host[:100]!r} is not accepted. If the name is right, add it to SWIN2SR_ALLOWED_HOSTS."
    )
