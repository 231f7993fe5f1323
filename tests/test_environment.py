"""Unknown variables: those that look like secrets stop the startup, the others are reported."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from app import environment
from app.ray.settings import RaySettings
from app.settings import Settings

KNOWN = RaySettings.model_fields


def check(variables, **settings):
    return environment.check(variables, Settings(**settings), KNOWN)


@pytest.mark.parametrize(
    "name",
    [
        "KEYS",
        "TOKEN",
        "API_TOKEN",
        "APIKEYS",
        "AUTH",
        "MY_PASSWORD",
        "CLIENT_SECRET",
        "API_KYES",
        "ADMIN_TOKN",
        "api_kyes",
        "APT_KE0S",
        "KYES",
        "TOKN",
    ],
)
def test_what_looks_like_a_secret_stops_the_start(name):
    """It would not protect the service. The message names the closest setting and does not contain the value."""
    with pytest.raises(ValueError, match="SWIN2SR_") as error:
        check({f"SWIN2SR_{name}": "hush-hush-hush"})
    assert f"Unknown setting SWIN2SR_{name}." in str(error.value)
    assert "The closest setting is SWIN2SR_" in str(error.value)
    assert "hush" not in str(error.value)
    if name == "API_KYES":
        assert "SWIN2SR_API_KEYS." in str(error.value)


def test_the_closest_setting_may_be_another_one():
    """The name of the key file of TLS looks like a secret too."""
    with pytest.raises(ValueError, match=r"The closest setting is SWIN2SR_SSL_KEYFILE\."):
        check({"SWIN2SR_SSL_KEY_FILE": "key.pem"})


@pytest.mark.parametrize("name", ["SWINSR_API_KEYS", "SWIN2RS_ADMIN_TOKEN", "swin2s_metrics_token"])
def test_a_misspelt_prefix_stops_the_start(name):
    """For settings that hold secrets; variables of other programs are ignored."""
    with pytest.raises(ValueError, match=rf"{name} is not a setting\. Rename it to SWIN2SR_"):
        check({name: "hush-hush-hush"})
    assert check({"OPENAI_API_KEYS": "x", "API_KEYS": "x", "SWINSR_COLOUR": "x"}) == []


@pytest.mark.parametrize(
    "name",
    [
        "API_KEYS",
        "api_keys_file",
        "ADMIN_TOKEN",
        "ADMIN_TOKEN_FILE",
        "METRICS_TOKEN",
        "SSL_KEYFILE",
        "RAY_MIN_REPLICAS",
    ],
)
def test_settings_are_settings(name):
    """In upper and lower case, including those for Ray. Variables of other programs are ignored."""
    assert check({f"SWIN2SR_{name}": "x", "OTHER_TOKEN": "y"}) == []
    assert environment.warnings([f"SWIN2SR_{name}", "OTHER_TOKEN"], KNOWN) == []


@pytest.mark.parametrize("name", ["KEYS", "SERVICE_HOST", "DTYPE"])
def test_what_stops_the_start_is_not_called_ignored(name):
    """The error alone says what it is."""
    assert environment.warnings([f"SWIN2SR_{name}"], KNOWN) == []


def test_other_unknown_variables_are_reported():
    """With the closest setting, if one is similar."""
    assert check({"SWIN2SR_COLOUR": "blue"}) == []
    assert environment.warnings(["SWIN2SR_COLOUR", "SWIN2SR_MAX_BODY_BYTE", "SWIN2SR_URL"], KNOWN) == [
        "Unknown setting SWIN2SR_COLOUR (ignored).",
        "Unknown setting SWIN2SR_MAX_BODY_BYTE (ignored). Did you mean SWIN2SR_MAX_BODY_BYTES?",
    ]


@pytest.mark.parametrize(
    "name", ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_8000_TCP", "PORT_8000_TCP_ADDR"]
)
def test_what_kubernetes_injects_is_explained(name):
    """For a Service called ``swin2sr``: the message names ``enableServiceLinks``."""
    with pytest.raises(ValueError, match=rf"SWIN2SR_{name}\. .*enableServiceLinks: false"):
        check({f"SWIN2SR_{name}": "10.0.0.1"})


def test_an_injected_port_is_explained(monkeypatch):
    """It replaces a setting, so that the start fails while the settings are read."""
    monkeypatch.setenv("SWIN2SR_PORT", "tcp://10.0.0.1:8000")
    with pytest.raises(ValidationError, match="enableServiceLinks: false"):
        Settings()


def test_the_clients_key_does_not_protect_the_service(tmp_path):
    """Refused where other machines connect; a warning on loopback; irrespective of the keys' source."""
    variables = {"SWIN2SR_API_KEY": "hush-hush"}
    with pytest.raises(ValueError, match=r"does not protect the service; SWIN2SR_API_KEYS does.*HOST 0\.0\.0\.0"):
        check(variables, host="0.0.0.0")
    for local in ({}, {"host": "::1"}, {"host": "localhost"}, {"host": "0.0.0.0", "uds": tmp_path / "socket"}):
        [warning] = check(variables, **local)
        assert "SWIN2SR_API_KEY " in warning
    assert check(variables, host="0.0.0.0", api_keys="other-key") == []
    assert check({"SWIN2SR_API_KEY": ""}, host="0.0.0.0") == []
