"""Sentences about invalid options and settings: the value, shortened and escaped, and what is allowed."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from app.ray.settings import RaySettings
from app.schemas import UpscaleOptions, allowed, describe_fault, option_faults


def faults(**options):
    with pytest.raises(ValidationError) as caught:
        UpscaleOptions.model_validate(options)
    return option_faults(caught.value.errors())


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("quality", "0", "quality: '0' is not an integer from 1 to 100"),
        ("quality", "1.5", "quality: '1.5' is not an integer from 1 to 100"),
        ("quality", "", "quality: '' is not an integer from 1 to 100"),
        ("quality", "\u0665", "quality: '\\u0665' is not an integer from 1 to 100"),
        ("quality", True, "quality: True is not a number"),
        ("quality", None, "quality: None is not an integer from 1 to 100"),
        ("quality", {"a": [1] * 99}, "quality: {'a': [1, 1, 1, 1, 1, 1, ...]} is not an integer from 1 to 100"),
        ("width", "1e3", "width: '1e3' is not an integer from 1 to 1000000000"),
        ("width", "-5", "width: '-5' is not an integer from 1 to 1000000000"),
        ("height", "9" * 5000, f"height: '{'9' * 22}...{'9' * 23}' is not an integer from 1 to 1000000000"),
        ("factor", "nan", "factor: 'nan' is not a number above 0 and up to 1000000000"),
        ("factor", "2,5", "factor: '2,5' is not a number above 0 and up to 1000000000"),
        ("factor", False, "factor: False is not a number"),
        ("megapixels", "0", "megapixels: '0' is not a number above 0 and up to 1000000000"),
        (
            "megapixels",
            -(10**99),
            "megapixels: a number of many digits is not a number above 0 and up to 1000000000",
        ),
        ("strength", "1.5", "strength: '1.5' is not a number from 0 to 1"),
        ("enlarge", "maybe", "enlarge: 'maybe' is not true or false"),
        ("ensemble", "\x00\n", "ensemble: '\\x00\\n' is not true or false"),
        ("fit", "fill", "fit: 'fill' is not inside, cover or exact"),
        ("restore", "yes", "restore: 'yes' is not auto, always or never"),
        ("format", "jpg", "format: 'jpg' is not png, jpeg, webp, tiff, avif, jxl or same"),
        ("metadata", "some", "metadata: 'some' is not keep or strip"),
        ("tile", "63", "tile: '63' is not an integer of at least 64 or auto"),
        ("tile", "big", "tile: 'big' is not an integer of at least 64 or auto"),
        ("max_bytes", "1e9", "max_bytes: '1e9' is not an integer from 1 to 1000000000000000000"),
        ("timeout_ms", "soon", "timeout_ms: 'soon' is not an integer from 1 to 1000000000000000000"),
        ("variant", "x" * 101, f"variant: '{'x' * 22}...{'x' * 23}' is not text of at most 100 characters"),
    ],
)
def test_a_sentence_has_the_value_and_what_is_allowed(name, value, sentence):
    """One sentence for each option, whatever the value is."""
    assert faults(**{name: value}) == [sentence]


def test_every_option_and_setting_says_what_it_allows():
    """Only secrets and lists have no such text."""
    assert all(allowed(field) for field in UpscaleOptions.model_fields.values())
    silent = {name for name, field in RaySettings.model_fields.items() if not allowed(field)}
    secrets = {"api_keys", "admin_token", "metrics_token"}
    lists = {"trusted_proxies", "allowed_hosts", "cors_origins", "variants"}
    paths = {"uds", "ssl_certfile", "ssl_keyfile", "api_keys_file", "admin_token_file", "model_dir", "cache_dir"}
    assert silent == secrets | lists | paths


@pytest.mark.parametrize(
    "values",
    [{"api_keys": "hush"}, {"admin_token": "hush"}, {"metrics_token": "hush hush hush"}, {"api_keys": ["hush", 5]}],
)
def test_a_fault_of_a_secret_does_not_show_it(values):
    """Not even shortened."""
    with pytest.raises(ValidationError) as caught:
        RaySettings(**values)
    for fault in caught.value.errors():
        assert "hush" not in describe_fault(fault, RaySettings.model_fields[fault["loc"][0]])
