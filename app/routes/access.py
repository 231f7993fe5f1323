"""Authentication with API keys and tokens, sent as ``Authorization: Bearer``."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from app.errors import Forbidden, Unauthorized
from app.http.middleware import add_log_fields
from app.routes import ServiceDependency
from app.settings import Settings

Credentials = Annotated[
    HTTPAuthorizationCredentials | None,
    Depends(HTTPBearer(auto_error=False, description="Required if the server has API_KEYS.")),
]


ADMIN = "(admin)"
"""Client name of requests with the admin token. No key can have this name."""


async def current_client(request: Request, service: ServiceDependency, credentials: Credentials) -> str:
    """The name of the API key of a request. Clients take turns in the queue.

    Raises:
        Unauthorized: if a key is required, and none or a wrong one was sent.
    """
    token, settings = credentials.credentials if credentials else None, service.settings
    name = ADMIN if _is_admin(token, settings) else identify(token, settings.keys)
    if name:
        add_log_fields(request.scope, key=name)
    return name


async def require_admin(service: ServiceDependency, credentials: Credentials) -> None:
    """Require the admin token.

    Raises:
        Forbidden: if the server has no admin token, or an API key was sent.
        Unauthorized: if no token or a wrong one was sent.
    """
    token, settings = credentials.credentials if credentials else None, service.settings
    if settings.admin_secret is None:
        raise Forbidden("Loading and unloading are disabled: this server has no SWIN2SR_ADMIN_TOKEN.")
    if _is_admin(token, settings):
        return
    if any(_matches(token, settings.keys.values())):
        raise Forbidden("An API key does not permit this. Use the admin token.")
    raise Unauthorized("The admin token is required. Send it as `Authorization: Bearer TOKEN`.")


async def require_metrics_token(service: ServiceDependency, credentials: Credentials) -> None:
    """Require the metrics token, if the server has one.

    Raises:
        Unauthorized: if no token or a wrong one was sent.
    """
    expected = service.settings.metrics_token
    if expected is not None and not any(_matches(credentials.credentials if credentials else None, [expected])):
        raise Unauthorized("The metrics token is required. Send it as `Authorization: Bearer TOKEN`.")


ClientDependency = Annotated[str, Depends(current_client)]


def identify(token: str | None, keys: Mapping[str, SecretStr]) -> str:
    """The name of the key that was sent; empty if no keys are configured.

    All keys are compared, each in constant time, so that the response time reveals nothing about them.

    Raises:
        Unauthorized: if a key is required, and none or a wrong one was sent.
    """
    if not keys:
        return ""
    matches = _matches(token, keys.values())
    if not any(matches):
        what = "Unknown API key" if token else "An API key is required"
        raise Unauthorized(f"{what}. Send a key as `Authorization: Bearer KEY`.")
    return list(keys)[matches.index(True)]


def _is_admin(token: str | None, settings: Settings) -> bool:
    return settings.admin_secret is not None and any(_matches(token, [settings.admin_secret]))


def _matches(token: str | None, keys: Iterable[SecretStr]) -> list[bool]:
    """Compare a token with each key in constant time. A missing or empty token matches no key."""
    sent = (token or "").encode()
    return [secrets.compare_digest(sent, key.get_secret_value().encode()) and sent != b"" for key in keys]
