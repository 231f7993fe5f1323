"""Settings of sockets, proxies, host names, secrets, and client timeouts."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.secrets import Secret, name_keys, read_keys, read_token

PREFIX = "SWIN2SR_"
LOOPBACK_NAMES = ("localhost", "*.localhost", "127.0.0.1", "[::1]")
"""Host names that are accepted by default when listening on loopback."""

OWN_PATHS = frozenset({"docs", "health", "metrics", "openapi.json", "status", "v1", "v2", "web"})
"""First parts of the service's own paths, which cannot be path prefixes."""

PATH_PREFIX = r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+"
"""Path prefixes that ROOT_PATH and X-Forwarded-Prefix may have; no part may be ``.`` or ``..``."""


AutoOrPositive = Annotated[int, Field(ge=1)] | Literal["auto"]


class HttpSettings(BaseSettings):
    """The settings that do not concern models.

    Raises:
        pydantic.ValidationError: if a value is invalid, or two values contradict each other.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 accepts other machines")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    uds: Path | None = Field(None, description="path of a Unix socket to listen on, instead of HOST and PORT")
    ssl_certfile: Path | None = Field(None, description="PEM file of the certificate chain; serves HTTPS")
    ssl_keyfile: Path | None = Field(None, description="PEM file of the certificate's private key")
    root_path: str | None = Field(None, description="path prefix under which a proxy serves the application")
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="comma-separated addresses or networks whose X-Forwarded-For, -Proto and -Prefix are trusted; "
        "unix: clients that connect to UDS",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="comma-separated host names accepted in Host, or *; unset: loopback names when listening on "
        "loopback, else any; other names get 421; /health and /metrics are exempt",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="comma-separated origins whose pages may call the API from a browser, or *"
    )
    keep_alive_ms: int = Field(75_000, ge=1, description="how long an idle connection stays open")
    header_timeout_ms: int = Field(
        15_000, ge=1, description="maximum time for a connection to send complete headers; then it is closed"
    )
    send_timeout_ms: int = Field(
        60_000,
        ge=1,
        description="time in which a client must read 64 KiB of its response, or the rest; else it is aborted",
    )
    max_connections: AutoOrPositive = Field(
        "auto", description="open connections; auto: the limit of open files, less a reserve"
    )
    api_keys: Annotated[tuple[Secret, ...], NoDecode] = Field(
        (), description="comma-separated keys; if set, /v1/* and /v2/models/* require one of them as bearer token"
    )
    api_keys_file: Path | None = Field(
        None, description="file with one key per line, name:key or key, instead of API_KEYS"
    )
    admin_token: Secret | None = Field(None, description="bearer token that allows load, unload and reload")
    admin_token_file: Path | None = Field(None, description="file whose only line is the admin token")
    metrics_token: Secret | None = Field(None, description="bearer token that /metrics requires, if it is set")

    _keys: Mapping[str, SecretStr] = PrivateAttr(default_factory=dict)
    _admin_secret: SecretStr | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, values: dict[str, object]) -> dict[str, object]:
        """An empty value means unset: this is what ``${ADMIN_TOKEN:-}`` gives in Compose."""
        return {name: value for name, value in values.items() if value not in ("", SecretStr(""))}

    @field_validator("api_keys", "trusted_proxies", "allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split(value)

    @field_validator("api_keys", "trusted_proxies", "allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _refuse_blank_lists(cls, value: object) -> object:
        """Refuse a list without items, which would disable what the user wanted to enable. Runs before ``_split``."""
        if isinstance(value, str) and not value.replace(",", "").strip():
            raise ValueError("contains only blanks or commas; set at least one item, or leave it empty")
        return value

    @field_validator("port", mode="before")
    @classmethod
    def _explain_injected_port(cls, value: object) -> object:
        if isinstance(value, str) and "://" in value:
            raise ValueError(
                f"{value[:100]!r} is not a port. Kubernetes sets this variable for a Service called swin2sr: set "
                "enableServiceLinks: false in the pod's spec"
            )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            try:
                _ = each == "unix" or ipaddress.ip_network(each)
            except ValueError as error:
                raise ValueError(f"{error}; list addresses and networks such as 10.0.0.0/8") from None
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(name.lower().rstrip(".") for name in value)
        for name in names:
            if not re.fullmatch(r"\*|(\*\.)?[\w.-]+|\[[0-9a-f:.]+\]", name):
                raise ValueError(
                    f"{name!r} is not a host name; list names such as images.example, without scheme and port"
                )
        return names

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        origins = tuple(each.lower().rstrip("/") for each in value)
        for each in origins:
            if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+", each):
                raise ValueError(f"{each!r} is not an origin; list origins such as https://photos.example, or *")
        return origins

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, value: str | None) -> str | None:
        path = (value or "").rstrip("/")
        if path and not re.fullmatch(PATH_PREFIX, path):
            raise ValueError(f"{path[:100]!r} is not a path prefix; write it as /tools/upscaler")
        if is_own_path(path):
            raise ValueError(f"{path[:100]!r} begins with a path of the service; choose another prefix")
        return path or None

    @field_validator("ssl_certfile", "ssl_keyfile")
    @classmethod
    def _find_file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError(f"{value} is not a file")
        return value

    @model_validator(mode="after")
    def _fit_certificate(self) -> Self:
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ValueError(f"SSL_KEYFILE ({self.ssl_keyfile}) needs SSL_CERTFILE too")
        return self

    @model_validator(mode="after")
    def _read_secrets(self) -> Self:
        if self.api_keys and self.api_keys_file:
            raise ValueError(f"API_KEYS and API_KEYS_FILE {self.api_keys_file} are both set; use one of them")
        if self.admin_token and self.admin_token_file:
            raise ValueError(f"ADMIN_TOKEN and ADMIN_TOKEN_FILE {self.admin_token_file} are both set; use one of them")
        try:
            name = "API_KEYS_FILE"
            self._keys = read_keys(self.api_keys_file) if self.api_keys_file else name_keys(self.api_keys)
            name = "ADMIN_TOKEN_FILE"
            self._admin_secret = read_token(self.admin_token_file) if self.admin_token_file else self.admin_token
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        self._check_separate()
        return self

    def _check_separate(self) -> None:
        """Refuse one secret for two purposes, because its holder would have the rights of both."""
        admin, metrics, keys = self._admin_secret, self.metrics_token, self._keys.values()
        if admin is not None and admin in keys:
            raise ValueError("ADMIN_TOKEN is also one of API_KEYS: every user would be an administrator")
        if metrics is not None and metrics == admin:
            raise ValueError("METRICS_TOKEN is also ADMIN_TOKEN: a reader of the metrics would be an administrator")
        if metrics is not None and metrics in keys:
            raise ValueError("METRICS_TOKEN is also one of API_KEYS: a reader of the metrics could use the API")

    @property
    def keys(self) -> Mapping[str, SecretStr]:
        """The API keys by name, from API_KEYS or API_KEYS_FILE; empty if none are required."""
        return self._keys

    @property
    def admin_secret(self) -> SecretStr | None:
        """The admin token, from ADMIN_TOKEN or ADMIN_TOKEN_FILE."""
        return self._admin_secret

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.uds is not None or _is_loopback(self.host)

    @property
    def accepted_hosts(self) -> tuple[str, ...]:
        """Host names that are accepted in ``Host``; ``*`` is any."""
        if self.allowed_hosts:
            return self.allowed_hosts
        return LOOPBACK_NAMES if self.uds is None and self.is_loopback else ("*",)


def is_own_path(prefix: str) -> bool:
    """Whether a path prefix begins with a path of the service."""
    return prefix.removeprefix("/").partition("/")[0] in OWN_PATHS


def split(value: object) -> object:
    """The parts of a comma-separated value, without blanks around them; values of other types unchanged."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")
