"""Keys: needed where they are set, compared in full, and a queue's client each."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import SecretStr

from app.errors import Unauthorized
from app.routes.access import identify
from tests.scripted import ScriptedUpscaler
from tests.service import noise, png, running, scripted_app

KEYS = (SecretStr("first"), SecretStr("zweiter-Schlüssel"))


def test_without_keys_everybody_is_the_same_client():
    """An open server asks nobody."""
    assert identify(None, ()) == identify("anything", ()) == ""


def test_each_key_is_a_client_of_its_own():
    """And its name in the queue does not give the key away."""
    names = [identify(key.get_secret_value(), KEYS) for key in KEYS]
    assert len(set(names)) == 2
    assert not any(key.get_secret_value() in name for key in KEYS for name in names)


@pytest.mark.parametrize("token", [None, "", "firs", "first ", "FIRST", "firstzweiter-Schlüssel", "ü"])
def test_anything_else_is_refused(token):
    """Also a part of a key, and one with letters that headers rarely hold."""
    with pytest.raises(Unauthorized):
        identify(token, KEYS)


def test_with_keys_the_api_is_closed_and_the_rest_is_open(tmp_path):
    """401 with the way in; page, health, documents and metrics need none."""
    app = scripted_app(tmp_path, {"api_keys": "hush"}, lightweight_x2=ScriptedUpscaler())

    async def scenario():
        async with running(app) as client:
            photo = {"file": png(noise(8, 8))}
            closed = [
                await client.post("/v1/upscale", files=photo),
                await client.post("/v1/upscale", files=photo, headers={"authorization": "Bearer wrong"}),
                await client.post("/v1/upscale", files=photo, headers={"authorization": "Basic aHVzaA=="}),
                await client.get("/v1/variants"),
                await client.get("/v1/variants/x2"),
            ]
            key = {"authorization": "Bearer hush"}
            await app.state.service.boot(lambda: None)
            opened = [
                await client.post("/v1/upscale", files=photo, headers=key),
                await client.get("/v1/variants", headers=key),
            ]
            opened += [await client.get(path) for path in ("/", "/docs", "/openapi.json", "/metrics", "/health/ready")]
            return closed, opened

    closed, opened = asyncio.run(scenario())
    for response in closed:
        assert response.status_code == 401
        assert response.json()["code"] == "unauthorized"
        assert response.headers["www-authenticate"] == "Bearer"
    assert [response.status_code for response in opened] == [200] * 7
