"""The client's address, scheme and path prefix, from trusted proxies and ROOT_PATH. Pure ASGI."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.http.settings import PATH_PREFIX, is_own_path

UNIX = "unix"
"""The address of clients that connect to a Unix socket."""


class Forwarded(ProxyHeadersMiddleware):
    """uvicorn's middleware for ``X-Forwarded-For`` and ``-Proto``, extended by path prefixes.

    Paths work with the prefix and without it, because some proxies strip it, and probes do not send it.

    Args:
        app: the next application.
        trusted: addresses and networks whose headers are trusted.
        root_path: prefix if no trusted proxy sends ``X-Forwarded-Prefix``.
    """

    def __init__(self, app: ASGIApp, trusted: Sequence[str], root_path: str = "") -> None:
        super().__init__(app, list(trusted))  # type: ignore[arg-type]  # uvicorn's own types of ASGI
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # type: ignore[override]
        """Serve one connection."""
        if scope["type"] == "http":
            scope = {**scope, "client": _peer(scope)}
            prefix = self.root_path
            if scope["client"][0] in self.trusted_hosts:
                # The last one is the proxy's, if it did not replace what the client had sent.
                *_, last = "", *Headers(scope=scope).getlist("x-forwarded-prefix")
                sent = last.strip().rstrip("/")
                prefix = sent if re.fullmatch(PATH_PREFIX, sent) and not is_own_path(sent) else prefix
            if prefix:
                _mount(scope, prefix)
        await super().__call__(scope, receive, send)  # type: ignore[arg-type]


def _peer(scope: Scope) -> tuple[str, int]:
    """The address of the peer. An IPv4 client of an IPv6 socket gets its IPv4 address."""
    host, port = scope.get("client") or (UNIX, 0)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host, port
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), port


def _mount(scope: Scope, prefix: str) -> None:
    """Put a prefix in front of the path, if the path does not have it already."""
    scope["root_path"] = prefix
    path: str = scope["path"]
    if path not in ("*", prefix) and not path.startswith(f"{prefix}/"):
        scope["path"] = prefix + path
        scope["raw_path"] = prefix.encode() + scope.get("raw_path", path.encode())
