"""Whether a variant can be used, in every state."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.variants.catalogue import Entry
from app.variants.loaded_model import LoadedModel
from app.variants.states import VariantState
from tests.scripted import ScriptedUpscaler

HERE, ELSEWHERE = Path("weights.safetensors"), None


@pytest.mark.parametrize(
    ("path", "condition", "available"),
    [
        (ELSEWHERE, VariantState(), False),
        (ELSEWHERE, VariantState("loading", "being fetched: 2.0 of 48.9 MB"), False),
        (ELSEWHERE, VariantState("failed", "could not be fetched"), False),
        (HERE, VariantState(), True),
        (HERE, VariantState("loading", None), True),
        (HERE, VariantState("failed", "the file is damaged"), False),
        (HERE, VariantState("absent", "was unloaded", withdrawn=True), False),
        (HERE, VariantState("ready", None, LoadedModel("x 1", ScriptedUpscaler())), True),
    ],
    ids=lambda value: value.state if isinstance(value, VariantState) else None,
)
def test_a_variant_is_available_when_a_request_for_it_gets_its_image(path, condition, available):
    """Its weights are here, they are sound as far as is known, and nobody took them away."""
    assert condition.serves(Entry("own", None, path, "own")) == available
