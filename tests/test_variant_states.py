"""Whether requests for a variant succeed, in every state."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.variants.loaded_model import LoadedModel
from app.variants.served_variant import ServedVariant
from tests.scripted import ScriptedUpscaler

WEIGHTS = Path("weights.safetensors")


@pytest.mark.parametrize(
    ("path", "state", "available"),
    [
        (None, {}, False),
        (None, {"state": "loading", "reason": "being fetched: 2.0 of 48.9 MB"}, False),
        (None, {"state": "failed", "reason": "could not be fetched"}, False),
        (WEIGHTS, {}, True),
        (WEIGHTS, {"state": "loading", "reason": None}, True),
        (WEIGHTS, {"state": "failed", "reason": "the file is damaged"}, False),
        (WEIGHTS, {"state": "absent", "reason": "was unloaded", "withdrawn": True}, False),
        (WEIGHTS, {"state": "ready", "loaded": LoadedModel("x 1", ScriptedUpscaler())}, True),
    ],
    ids=lambda value: value.get("state", "new") if isinstance(value, dict) else None,
)
def test_a_variant_is_available_if_requests_for_it_succeed(path, state, available):
    """Its weights are present or loaded, did not fail to load, and were not unloaded by an administrator."""
    assert ServedVariant("own", None, path, "own", **state).is_available == available
