"""Who may ask: keys travel as ``Authorization: Bearer``."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from app.errors import Forbidden, Unauthorized
from app.routes import ServiceDependency

Credentials = Annotated[
    HTTPAuthorizationCredentials | None,
    Depends(HTTPBearer(auto_error=False, description="Needed where the server has API_KEYS.")),
]


def current_client(service: ServiceDependency, credentials: Credentials) -> str:
    """Whose request this is: clients take turns in the queue.

    Raises:
        Unauthorized: if a key is needed and none, or a wrong one, was sent.
    """
    token, settings = credentials.credentials if credentials else None, service.settings
    if settings.admin_token is not None and _is_one_of(token, [settings.admin_token]):
        return "admin"
    return identify(token, settings.api_keys)


def require_admin(service: ServiceDependency, credentials: Credentials) -> None:
    """Let nobody but the administrator through.

    Raises:
        Forbidden: if there is no admin token on this server, or a user's key was sent.
        Unauthorized: if none, or a wrong one, was sent.
    """
    token, settings = credentials.credentials if credentials else None, service.settings
    if settings.admin_token is None:
        raise Forbidden("This server has no SWIN2SR_ADMIN_TOKEN, so nobody may change what is loaded.")
    if _is_one_of(token, [settings.admin_token]):
        return
    if _is_one_of(token, settings.api_keys):
        raise Forbidden("This is a user's key. What is loaded changes with the admin token only.")
    raise Unauthorized("The admin token is needed. Send it as `Authorization: Bearer TOKEN`.")


ClientDependency = Annotated[str, Depends(current_client)]


def identify(token: str | None, keys: Sequence[SecretStr]) -> str:
    """A name for whoever sent a key, the same for each of its requests; empty where no keys are needed.

    Every key is compared, each in constant time, so that the answer's time tells nothing.

    Raises:
        Unauthorized: if a key is needed and none, or a wrong one, was sent.
    """
    if not keys:
        return ""
    matches = _matches(token, keys)
    if not any(matches):
        what = "This key is not known" if token else "A key is needed"
        raise Unauthorized(f"{what}. Send one as `Authorization: Bearer KEY`.")
    return f"key-{matches.index(True) + 1}"


def _matches(token: str | None, keys: Sequence[SecretStr]) -> list[bool]:
    """Compare a token with each key in constant time. A missing or empty token matches no key."""
    sent = (token or "").encode()
    return [secrets.compare_digest(sent, key.get_secret_value().encode()) and sent != b"" for key in keys]


def _is_one_of(token: str | None, keys: Sequence[SecretStr]) -> bool:
    return any(_matches(token, keys))
