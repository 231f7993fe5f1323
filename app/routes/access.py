"""Who may ask: keys travel as ``Authorization: Bearer``."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from app.errors import Unauthorized
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
    return identify(credentials.credentials if credentials else None, service.settings.api_keys)


ClientDependency = Annotated[str, Depends(current_client)]


def identify(token: str | None, keys: Sequence[SecretStr]) -> str:
    """A name for whoever sent a key, the same for each of its requests; empty where no keys are needed.

    Every key is compared, each in constant time, so that the answer's time tells nothing.

    Raises:
        Unauthorized: if a key is needed and none, or a wrong one, was sent.
    """
    if not keys:
        return ""
    sent = (token or "").encode()
    matches = [secrets.compare_digest(sent, key.get_secret_value().encode()) for key in keys]
    if not any(matches):
        what = "This key is not known" if token else "A key is needed"
        raise Unauthorized(f"{what}. Send one as `Authorization: Bearer KEY`.")
    return f"key-{matches.index(True) + 1}"
