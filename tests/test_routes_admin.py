"""Load, unload and reload: with the admin token only, and without effect on accepted requests."""

from __future__ import annotations

import asyncio
import weakref

import numpy as np
import pytest

from app.main import create_app
from app.settings import Settings
from tests.scripted import PATIENCE, ScriptedUpscaler, model_dir
from tests.service import SMALL, enlarged, noise, pixels_of, png, running

PIXELS = noise(40, 30)
PHOTO = {"file": png(PIXELS)}
LARGE = noise(200, 300)
ADMIN = {"authorization": "Bearer wizard-wizard"}
VARIANT = "/v1/variants/classical-x2"


class Weights:
    """A loader whose every load gives new scripted weights, or fails as the test says."""

    def __init__(self):
        self.loaded = []
        self.fault = None
        self.scale = 2

    def __call__(self, _name, _path):
        if self.fault:
            raise self.fault
        self.loaded.append(ScriptedUpscaler(scale=self.scale))
        return self.loaded[-1]


@pytest.fixture
def weights():
    return Weights()


@pytest.fixture
def app(tmp_path, weights):
    folder = model_dir(tmp_path, "classical-x2", "small-x4")
    settings = {"variants": "classical-x2", "model_dir": folder, "device": "cpu", "admin_token": "wizard-wizard"}
    return create_app(Settings(**SMALL, **settings), load=weights)


def during(app, scenario):
    """What a scenario returns, given a client of the running, booted application."""

    async def run():
        async with running(app) as client:
            await app.state.service.boot(lambda: None)
            return await scenario(client)

    return asyncio.run(run())


async def change(client, what, variant=VARIANT, **request):
    return await client.post(f"{variant}/{what}", headers=ADMIN, **request)


@pytest.mark.parametrize("what", ["load", "unload", "reload"])
@pytest.mark.parametrize(
    ("admin_token", "sent", "refusal"),
    [
        ("wizard-wizard", None, (401, "unauthorized")),
        ("wizard-wizard", "wrong", (401, "unauthorized")),
        ("wizard-wizard", "muggle-muggle", (403, "forbidden")),
        (None, "wizard-wizard", (403, "forbidden")),
        (None, None, (403, "forbidden")),
    ],
)
def test_only_the_admin_token_changes_what_is_loaded(tmp_path, what, admin_token, sent, refusal):
    """No token, a wrong one, a user's key, and a server without an admin token are refused; nothing is loaded."""
    folder, weights = model_dir(tmp_path, "classical-x2"), Weights()
    settings = {"variants": "classical-x2", "model_dir": folder, "device": "cpu", "api_keys": "muggle-muggle"}
    app = create_app(Settings(**SMALL, **settings, admin_token=admin_token), load=weights)
    headers = {"authorization": f"Bearer {sent}"} if sent else {}
    response = during(app, lambda client: client.post(f"{VARIANT}/{what}", headers=headers))
    assert (response.status_code, response.json()["code"]) == refusal
    assert len(weights.loaded) == 1


def test_the_administrator_may_also_do_what_users_may(tmp_path, weights):
    """One token is enough to look and to try."""
    settings = {"variants": "classical-x2", "model_dir": model_dir(tmp_path, "classical-x2"), "device": "cpu"}
    app = create_app(Settings(**SMALL, **settings, api_keys="muggle-muggle", admin_token="wizard-wizard"), load=weights)
    assert during(app, lambda client: client.get("/v1/variants", headers=ADMIN)).status_code == 200


@pytest.mark.slow
def test_what_was_unloaded_is_refused_until_it_is_loaded_again(app, weights):
    """503 with the way back, the state absent; health and other variants do not suffer."""

    async def scenario(client):
        unloaded = await change(client, "unload")
        refused = await client.post("/v1/upscale", files=PHOTO)
        ready = await client.get("/health/ready")
        other = await client.post("/v1/upscale", files=PHOTO, params={"variant": "small-x4"})
        loaded = await change(client, "load")
        return unloaded, refused, ready, other, loaded, await client.post("/v1/upscale", files=PHOTO)

    unloaded, refused, ready, other, loaded, served = during(app, scenario)
    assert unloaded.json()["state"] == "absent"
    assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
    assert f"POST {VARIANT}/load" in refused.json()["detail"]
    assert int(refused.headers["retry-after"]) >= 1
    assert ready.status_code == other.status_code == 200
    assert loaded.json()["state"] == "ready"
    np.testing.assert_array_equal(pixels_of(served.content), enlarged(PIXELS))
    assert len(weights.loaded) == 3


def test_loading_what_is_loaded_changes_nothing(app, weights):
    """It is not loaded twice."""
    assert during(app, lambda client: change(client, "load")).json()["state"] == "ready"
    assert len(weights.loaded) == 1


@pytest.mark.slow
@pytest.mark.parametrize("what", ["unload", "reload"])
def test_a_request_that_was_accepted_keeps_its_weights(app, weights, what):
    """Its tiles run with the weights it was admitted for, also when the new ones have another scale."""

    async def scenario(client):
        old = weights.loaded[0]
        old.gate.close()
        request = asyncio.create_task(client.post("/v1/upscale", files={"file": png(LARGE)}))
        await asyncio.to_thread(old.gate.wait_until_reached)
        weights.scale = 4
        changed = await change(client, what)
        await change(client, "load")
        later = asyncio.create_task(client.post("/v1/upscale", files={"file": png(PIXELS)}))
        old.gate.open()
        return changed, await request, await later

    changed, during_change, later = during(app, scenario)
    assert changed.status_code == 200
    np.testing.assert_array_equal(pixels_of(during_change.content), enlarged(LARGE))
    np.testing.assert_array_equal(pixels_of(later.content), enlarged(PIXELS, 4))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["unload", "reload"])
def test_old_weights_are_let_go_when_their_last_request_is_over(app, weights, what):
    """Nothing else holds them: memory is given back."""

    async def scenario(client):
        old = weights.loaded.pop()
        seen = weakref.ref(old)
        old.gate.close()
        request = asyncio.create_task(client.post("/v1/upscale", files={"file": png(LARGE)}))
        await asyncio.to_thread(old.gate.wait_until_reached)
        await change(client, what)
        kept = seen() is not None
        old.gate.open()
        del old
        await request
        return kept, seen()

    assert during(app, scenario) == (True, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [ValueError("keys are missing"), MemoryError(), RuntimeError("can't allocate memory")]
)
def test_a_failed_reload_keeps_the_old_weights(app, weights, fault):
    """503 with the reason; requests are served as before, and the variant is still ready."""

    async def scenario(client):
        weights.fault = fault
        failed = await change(client, "reload")
        described = await client.get(VARIANT)
        return failed, described, await client.post("/v1/upscale", files=PHOTO)

    failed, described, served = during(app, scenario)
    assert (failed.status_code, failed.json()["code"]) == (503, "not_ready")
    assert "the old weights are kept" in failed.json()["detail"]
    assert described.json()["state"] == "ready"
    np.testing.assert_array_equal(pixels_of(served.content), enlarged(PIXELS))


def test_a_variant_that_failed_can_be_tried_again(app, weights):
    """After the file was corrected, without a restart."""

    async def scenario(client):
        weights.fault = ValueError("keys are missing")
        variant = "/v1/variants/small-x4"
        failed = await change(client, "load", variant)
        state = (await client.get(variant)).json()
        weights.fault = None
        return failed, state, await change(client, "load", variant)

    failed, state, mended = during(app, scenario)
    assert failed.status_code == 503
    assert (state["state"], state["reason"]) == ("failed", "keys are missing")
    assert mended.json()["state"] == "ready"


def test_an_unexpected_fault_while_loading_leaves_no_state_behind(app, weights, caplog):
    """Not loading for ever: failed, and the log has the truth."""

    async def scenario(client):
        weights.fault = KeyError("surprise")
        failed = await change(client, "load", "/v1/variants/small-x4")
        return failed, (await client.get("/v1/variants/small-x4")).json()

    failed, state = during(app, scenario)
    assert failed.status_code == 500
    assert state["state"] == "failed"
    assert "surprise" in caplog.text


def test_names_that_are_not_there_are_refused(app):
    """404 for an unknown one, 503 with the command for one without weights, which load alone would fetch."""

    async def scenario(client):
        names = (("load", "x3"), ("unload", "realworld-x4"), ("reload", "realworld-x4"))
        return [await change(client, what, f"/v1/variants/{name}") for what, name in names]

    unknown, *absent = during(app, scenario)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_variant")
    for refusal in absent:
        assert (refusal.status_code, refusal.json()["code"]) == (503, "not_ready")
        assert "swin2sr fetch realworld-x4" in refusal.json()["detail"]


@pytest.mark.slow
def test_changes_under_traffic_fail_no_request(app):
    """While weights are reloaded twenty times, every request gets its image."""

    async def scenario(client):
        over = asyncio.Event()
        answers = []

        async def ask():
            while not over.is_set():
                answers.append(await client.post("/v1/upscale", files=PHOTO))

        askers = [asyncio.create_task(ask()) for _ in range(4)]
        reloads = [await change(client, "reload") for _ in range(20)]
        over.set()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*askers)
        return reloads, answers

    reloads, answers = during(app, scenario)
    assert [response.status_code for response in reloads] == [200] * 20
    assert {response.status_code for response in answers} == {200}
    expected = enlarged(PIXELS)
    assert all((pixels_of(response.content) == expected).all() for response in answers)
