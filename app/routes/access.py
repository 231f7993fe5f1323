"""Who may ask: keys travel as ``Authorization: Bearer``."""

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
    Depends(HTTPBearer(auto_error=False, description="Needed where the server has API_KEYS.")),
]


ADMIN = "(admin)"
"""Whose request it is that carries the admin token; no key can have this name."""


async def current_client(request: Request, service: ServiceDependency, credentials: Credentials) -> str:
    """The name of the key that a request carries: clients take turns in the queue.

    Raises:
        Unauthorized: if a key is needed and none, or a wrong one, was sent.
    """
    token, settings = credentials.credentials if credentials else None, service.settings
    name = ADMIN if _is_admin(token, settings) else identify(token, settings.keys)
    if name:
        add_log_fields(request.scope, key=name)
    return name


async def require_admin(service: ServiceDependency, credentials: Credentials) -> None:
    """Let nobody but the administrator through.

    Raises:
        Forbidden: if there is no admin token on this server, or a user's key was sent.
        Unauthorized: if none, or a wrong one, was sent.
    """
    token, settings = credentials.credentials if credentials else None, service.settings
    if settings.admin_secret is None:
        raise Forbidden("This server has no SWIN2SR_ADMIN_TOKEN, so nobody may change what is loaded.")
    if _is_admin(token, settings):
        return
    if any(_matches(token, settings.keys.values())):
        raise Forbidden("This is a user's key. What is loaded changes with the admin token only.")
    raise Unauthorized("The admin token is needed. Send it as `Authorization: Bearer TOKEN`.")


async def require_metrics_token(service: ServiceDependency, credentials: Credentials) -> None:
    """Let through who may read the metrics.

    Raises:
        Unauthorized: if there is a metrics token, and none or a wrong one was sent.
    """
    expected = service.settings.metrics_token
    if expected is not None and not any(_matches(credentials.credentials if credentials else None, [expected])):
        raise Unauthorized("The metrics token is needed. Send it as `Authorization: Bearer TOKEN`.")


ClientDependency = Annotated[str, Depends(current_client)]


def identify(token: str | None, keys: Mapping[str, SecretStr]) -> str:
    """The name of the key that was sent; empty where no keys are needed.

    Every key is compared, each in constant time, so that the time of the answer tells nothing.

    Raises:
        Unauthorized: if a key is needed and none, or a wrong one, was sent.
    """
    if not keys:
        return ""
    matches = _matches(token, keys.values())
    if not any(matches):
        what = "This key is not known" if token else "A key is needed"
        raise Unauthorized(f"{what}. Send one as `Authorization: Bearer KEY`.")
    return list(keys)[matches.index(True)]


def _is_admin(token: str | None, settings: Settings) -> bool:
    return settings.admin_secret is not None and any(_matches(token, [settings.admin_secret]))


def _matches(token: str | None, keys: Iterable[SecretStr]) -> list[bool]:
    """Compare a token with each key in constant time. A missing or empty token matches no key."""
    sent = (token or "").encode()
    return [secrets.compare_digest(sent, key.get_secret_value().encode()) and sent != b"" for key in keys]
