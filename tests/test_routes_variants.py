"""What a person can choose from."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from app.variants.loaded_model import Throughput
from model.variants import ALIASES, VARIANTS, embedded_path
from tests.scripted import ScriptedUpscaler
from tests.service import noise, png, running, scripted_app


@pytest.fixture
def ask(tmp_path):
    """Asks a booted service with the variant ``classical-x2``."""

    def send(path):
        app = scripted_app(tmp_path, classical_x2=ScriptedUpscaler())

        async def scenario():
            async with running(app) as client:
                await app.state.service.boot(lambda: None)
                return await client.get(path)

        return asyncio.run(scenario())

    return send


def test_every_variant_is_listed_with_what_it_is_for(ask):
    """Official and embedded, present or not; the default is named."""
    listing = ask("/v1/variants").json()
    assert listing["default"] == "classical-x2"
    assert [each["name"] for each in listing["variants"]] == list(VARIANTS)
    for each in listing["variants"]:
        assert each["summary"].endswith(".")
        assert each["state"] in ("absent", "loading", "ready", "failed")
        assert each["reason"] or each["state"] == "ready"
    aliases = [alias for each in listing["variants"] for alias in each["aliases"]]
    assert len(aliases) == len(set(aliases)) <= len(ALIASES)


def test_a_ready_variant_says_where_it_runs(ask):
    """Device and type, beside the table's facts; of own weights in its place, no more than that."""
    description = ask("/v1/variants/classical-x2").json()
    assert (description["state"], description["available"]) == ("ready", True)
    assert (description["device"], description["precision"]) == ("scripted", "exact")
    assert (description["scale"], description["parameters"]) == (2, None)  # counted when a real network is loaded
    assert description["replaces"] == "official"
    assert (description["license"], description["source"], description["digest"]) == (None, "MODEL_DIR", None)


def test_embedded_weights_say_which_they_are(ask):
    """By their file's SHA-256, because another release may bring others."""
    digest = ask("/v1/variants/small-x2").json()["digest"]
    assert digest == hashlib.sha256(embedded_path("small-x2").read_bytes()).hexdigest()


def test_an_alias_describes_its_variant(ask):
    """So that a person sees what a request would get."""
    description = ask("/v1/variants/x2").json()
    assert "x2" in description["aliases"]


def test_an_absent_variant_says_how_to_get_it(ask):
    """In its reason."""
    description = ask("/v1/variants/realworld-x4").json()
    assert (description["state"], description["available"]) == ("absent", False)
    assert "swin2sr fetch realworld-x4" in description["reason"]


def test_an_unknown_variant_is_404(ask):
    """As a problem document."""
    response = ask("/v1/variants/x3")
    assert response.status_code == 404
    assert response.json()["code"] == "unknown_variant"


def test_a_variant_reports_its_measured_speed(tmp_path):
    """Unknown before the first request, then input pixels per second of its forward passes."""
    app = scripted_app(tmp_path, classical_x2=ScriptedUpscaler(), realworld_x4=ScriptedUpscaler(scale=4))

    async def scenario():
        async with running(app) as client:
            await app.state.service.boot(lambda: None)
            before = (await client.get("/v1/variants/classical-x2")).json()["pixels_per_second"]
            response = await client.post("/v1/upscale", files={"file": png(noise(64, 64))})
            assert response.status_code == 200
        return before

    assert asyncio.run(scenario()) is None
    described = {each.name: each.pixels_per_second for each in app.state.service.registry.describe_all()}
    assert described["classical-x2"] > 0
    assert described["realworld-x4"] is None


def test_recent_forward_passes_count_more():
    """A variant that became ten times slower says so after a few requests."""
    throughput = Throughput()
    for seconds in [0.1] * 20 + [1.0] * 20:
        throughput.record(1000, seconds)
    assert 1000 <= throughput.pixels_per_second < 1500
