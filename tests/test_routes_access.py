"""Keys: needed where they are set, compared in full, and a queue's client each."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import SecretStr

from app.errors import Unauthorized
from app.routes.access import identify
from tests.scripted import ScriptedUpscaler
from tests.service import noise, png, running, scripted_app

KEYS = {"ann": SecretStr("first-key"), "ben": SecretStr("second-key")}


def test_without_keys_all_requests_are_of_one_client():
    """A server without keys requires none."""
    assert identify(None, {}) == identify("anything", {}) == ""


def test_each_key_is_a_separate_client():
    """By the name of the key, which does not give the key away."""
    assert [identify(key.get_secret_value(), KEYS) for key in KEYS.values()] == ["ann", "ben"]


@pytest.mark.parametrize("token", [None, "", "first-ke", "first-key ", "FIRST-KEY", "first-keysecond-key", "ü"])
def test_anything_else_is_refused(token):
    """Also a part of a key, and one with letters that headers rarely hold."""
    with pytest.raises(Unauthorized):
        identify(token, KEYS)


def test_with_keys_the_api_is_closed_and_the_rest_is_open(tmp_path):
    """401 with the way in; page, health, documents and metrics need none."""
    app = scripted_app(tmp_path, {"api_keys": "hush-hush"}, lightweight_x2=ScriptedUpscaler())

    async def scenario():
        async with running(app) as client:
            photo = {"file": png(noise(8, 8))}
            closed = [
                await client.post("/v1/upscale", files=photo),
                await client.post("/v1/upscale", files=photo, headers={"authorization": "Bearer wrong"}),
                await client.post("/v1/upscale", files=photo, headers={"authorization": "Basic aHVzaC1odXNo"}),
                await client.get("/v1/variants"),
                await client.get("/v1/variants/x2"),
            ]
            key = {"authorization": "Bearer hush-hush"}
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


@pytest.mark.parametrize("token", [None, ""])
def test_promise_21_a_missing_token_matches_no_key(token):
    """Not even an empty one, should there ever be one."""
    with pytest.raises(Unauthorized):
        identify(token, {"empty": SecretStr(""), **KEYS})


@pytest.mark.parametrize("admin_token", ["", None])
@pytest.mark.parametrize("sent", [{}, {"authorization": "Bearer "}, {"authorization": "Bearer"}, {"authorization": ""}])
def test_an_empty_admin_token_opens_nothing(tmp_path, monkeypatch, admin_token, sent):
    """With keys set and ``SWIN2SR_ADMIN_TOKEN=""``, a request without a key is refused on every route under /v1."""
    monkeypatch.setenv("SWIN2SR_ADMIN_TOKEN", "")
    app = scripted_app(
        tmp_path, {"api_keys": "hush-hush", "admin_token": admin_token}, lightweight_x2=ScriptedUpscaler()
    )

    async def scenario():
        async with running(app) as client:
            read = [await client.get(path, headers=sent) for path in ("/v1/variants", "/v1/variants/x2")]
            upscaled = await client.post("/v1/upscale", files={"file": png(noise(8, 8))}, headers=sent)
            changes = [
                await client.post(f"/v1/variants/lightweight-x2/{what}", headers=sent)
                for what in ("load", "unload", "reload")
            ]
            return [each.status_code for each in (*read, upscaled)], [each.status_code for each in changes]

    read, changed = asyncio.run(scenario())
    assert read == [401] * 3
    assert changed == [403] * 3
