"""Settings are read once, and impossible ones stop the boot with both names."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SWIN2SR_{name.upper()}", raising=False)


def test_the_defaults_are_the_contract():
    """What the documentation says is what an empty environment gives."""
    settings = Settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.variants == ("x2", "x4", "jpeg-restore", "compressed")
    assert settings.max_body_bytes == 64 * 2**20
    assert (settings.max_input_pixels, settings.max_output_pixels) == (50_000_000, 200_000_000)
    assert (settings.tile_size, settings.tile_overlap) == (544, 64)
    assert (settings.max_queue_pixels, settings.max_queue_requests) == (100_000_000, 256)
    assert (settings.request_timeout_ms, settings.upload_timeout_ms) == (600_000, 30_000)
    assert (settings.drain_delay_ms, settings.drain_timeout_ms) == (5_000, 600_000)
    assert settings.max_batch_pixels == settings.threads == settings.device == settings.precision == "auto"
    assert (settings.api_keys, settings.admin_token, settings.log_format) == ((), None, "text")


def test_the_environment_is_read(monkeypatch, tmp_path):
    """Lists are comma separated, and spaces around names do not matter."""
    monkeypatch.setenv("SWIN2SR_VARIANTS", "X2, small-x4 ,x2")
    monkeypatch.setenv("SWIN2SR_API_KEYS", "first-key, second-key")
    monkeypatch.setenv("SWIN2SR_MODEL_DIR", str(tmp_path))
    monkeypatch.setenv("SWIN2SR_MAX_BATCH_PIXELS", "1000000")
    monkeypatch.setenv("SWIN2SR_OFFLINE", "true")
    settings = Settings()
    assert settings.variants == ("x2", "small-x4")
    assert [key.get_secret_value() for key in settings.api_keys] == ["first-key", "second-key"]
    assert (settings.model_dir, settings.max_batch_pixels, settings.offline) == (tmp_path, 1_000_000, True)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"tile_overlap": 540}, ["TILE_OVERLAP (540)", "TILE_SIZE (544)"]),
        ({"tile_size": 70, "tile_overlap": 64, "max_input_pixels": 100}, ["TILE_OVERLAP (64)", "TILE_SIZE (70)"]),
        ({"max_batch_pixels": 1000}, ["MAX_BATCH_PIXELS (1000)", "TILE_SIZE (544)"]),
        ({"max_queue_pixels": 60_000_000}, ["MAX_QUEUE_PIXELS (60000000)", "MAX_INPUT_PIXELS (50000000)"]),
        ({"drain_delay_ms": 2, "drain_timeout_ms": 1}, ["DRAIN_DELAY_MS (2)", "DRAIN_TIMEOUT_MS (1)"]),
        ({"api_keys": "first-key,second-key", "admin_token": "second-key"}, ["ADMIN_TOKEN", "API_KEYS"]),
    ],
)
def test_an_invalid_combination_names_both_values(values, names):
    """The message contains both names and values."""
    with pytest.raises(ValidationError) as error:
        Settings(**values)
    for name in names:
        assert name in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"port": 65536},
        {"port": "http"},
        {"variants": " , "},
        {"device": "gpu"},
        {"device": "cuda:x"},
        {"precision": "float16"},
        {"threads": 0},
        {"max_batch_pixels": -1},
        {"max_body_bytes": 0},
        {"model_dir": "/nowhere/at/all"},
        {"log_format": "xml"},
        {"colour": "red"},
    ],
)
def test_an_invalid_value_is_refused(values):
    """Nothing is corrected in silence."""
    with pytest.raises(ValidationError, match=next(iter(values))):
        Settings(**values)


@pytest.mark.parametrize(
    ("dtype", "precision"), [("float32", "exact"), ("bfloat16", "fast"), ("auto", "auto"), ("float64", "auto")]
)
def test_the_old_setting_of_the_precision_is_refused(monkeypatch, dtype, precision):
    """A start with DTYPE stops, and names the corresponding value of PRECISION; an empty one is unset."""
    monkeypatch.setenv("SWIN2SR_DTYPE", "")
    assert Settings().precision == "auto"
    monkeypatch.setenv("swin2sr_dtype", dtype)
    with pytest.raises(ValidationError, match=f"SWIN2SR_DTYPE={dtype} .* SWIN2SR_PRECISION={precision}"):
        Settings()


def test_secrets_are_not_shown():
    """Neither the settings nor an error about them print a key."""
    assert "hush" not in repr(Settings(api_keys="hush-hush", admin_token="hush-hush-2"))
    with pytest.raises(ValidationError) as error:
        Settings(api_keys="hush-hush", admin_token="hush-hush")
    assert "hush" not in str(error.value)
    with pytest.raises(ValidationError) as error:
        Settings(api_keys="hush", admin_token="hush hush")
    assert "hush" not in str(error.value)


@pytest.mark.parametrize("name", ["API_KEYS", "ADMIN_TOKEN", "VARIANTS", "MODEL_DIR", "PORT", "OFFLINE"])
def test_an_empty_value_means_unset(monkeypatch, name):
    """Compose gives an empty value for ``${NAME:-}``; as an option it means the same."""
    default = Settings()
    monkeypatch.setenv(f"SWIN2SR_{name}", "")
    assert Settings() == default
    assert Settings(**{name.lower(): ""}) == default


@pytest.mark.parametrize("name", ["api_keys", "admin_token"])
@pytest.mark.parametrize(
    "value",
    ["short", "7-chars", " ", "\t", ",", " , ,", "\u200b", "two words", "Schlüssel-Schlüssel", "tab\tin-it"],
)
@pytest.mark.parametrize("given", ["variable", "option"])
def test_a_poor_secret_is_refused(monkeypatch, name, value, given):
    """Short, blank and non-ASCII secrets stop startup; the message names the setting and does not show the value."""
    if given == "variable":
        monkeypatch.setenv(f"SWIN2SR_{name.upper()}", value)
    with pytest.raises(ValidationError, match=name) as error:
        Settings(**({name: value} if given == "option" else {}))
    assert not value.strip(" ,\t") or value not in str(error.value)


def test_a_poor_key_beside_a_good_one_is_refused():
    """Every key is checked, not only the first."""
    with pytest.raises(ValidationError, match="api_keys"):
        Settings(api_keys="long-enough,short")


def test_settings_do_not_change():
    """They are read once, at boot."""
    with pytest.raises(ValidationError):
        Settings().port = 1


def test_where_weights_come_from_and_go_to():
    """The cache may be named from home; the release lies on the web, or it is refused."""
    official = Settings(cache_dir="~/weights", offline=True, release_url="https://mirror.example/v1").official_weights()
    assert official.cache_dir == Path.home() / "weights"
    assert (official.offline, official.release_url, official.hub_url) == (True, "https://mirror.example/v1", None)
    for address in ("file:///tmp", "mirror.example"):
        with pytest.raises(ValidationError, match="release_url"):
            Settings(release_url=address)
