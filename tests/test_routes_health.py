"""Health tells the truth, under both families of names."""

from __future__ import annotations

import asyncio

import pytest

from app.main import create_app
from app.settings import Settings
from app.version import service_version, torch_version
from tests.scripted import Gate, ScriptedUpscaler
from tests.service import noise, png, running, scripted_app


def test_ready_comes_after_loading_and_warming(tmp_path):
    """Live from the first moment; started and ready only when the weights are warm."""
    upscaler = ScriptedUpscaler(skip=0)
    upscaler.gate = Gate(is_open=False)
    app = scripted_app(tmp_path, lightweight_x2=upscaler)
    service = app.state.service
    questions = ("live", "startup", "ready")

    async def scenario():
        async with running(app) as client:

            async def statuses():
                return [(await client.get(f"/health/{question}")).status_code for question in questions]

            await asyncio.to_thread(upscaler.gate.wait_until_reached)
            before = await statuses()
            reason = (await client.get("/health/ready")).json()
            model_before = (await client.get("/v2/models/lightweight-x2/ready")).status_code
            upscaler.gate.open()
            await service.boot(lambda: None)
            after = await statuses()
            model_after = (await client.get("/v2/models/lightweight-x2/ready")).status_code
            v2 = [(await client.get(f"/v2/health/{question}")).status_code for question in ("live", "ready")]
            return before, reason, model_before, after, model_after, v2

    before, reason, model_before, after, model_after, v2 = asyncio.run(scenario())
    assert before == [200, 503, 503]
    assert reason["code"] == "not_ready"
    assert "lightweight-x2: loading" in reason["detail"]
    assert model_before == 503
    assert after == [200, 200, 200]
    assert model_after == 200
    assert v2 == [200, 200]


@pytest.fixture
def ask(tmp_path):
    """Asks a service that has booted."""

    def send(path):
        app = scripted_app(tmp_path, lightweight_x2=ScriptedUpscaler())

        async def scenario():
            async with running(app) as client:
                await app.state.service.boot(lambda: None)
                return await client.get(path)

        return asyncio.run(scenario())

    return send


def test_a_failed_variant_is_a_reason():
    """With what is wrong with it; the process itself is fine, and its start is over."""

    def load(_name, _path):
        raise ValueError("keys are missing")

    app = create_app(Settings(variants="x2", device="cpu"), load=load)

    async def scenario():
        async with running(app) as client:
            await app.state.service.boot(lambda: None)
            return [await client.get(f"/health/{question}") for question in ("live", "startup", "ready")]

    live, startup, ready = asyncio.run(scenario())
    assert (live.status_code, startup.status_code, ready.status_code) == (200, 200, 503)
    assert "keys are missing" in ready.json()["detail"]
    assert int(ready.headers["retry-after"]) >= 1


def test_a_server_that_will_end_is_not_ready_but_still_serves(tmp_path):
    """So that a load balancer can look away first; the metrics say the same as the answer."""
    app = scripted_app(tmp_path, lightweight_x2=ScriptedUpscaler())

    async def scenario():
        async with running(app) as client:
            await app.state.service.boot(lambda: None)
            metrics = [(await client.get("/metrics")).text]
            app.state.service.begin_shutdown()
            ready = await client.get("/health/ready")
            metrics.append((await client.get("/metrics")).text)
            return metrics, ready, await client.post("/v1/upscale", files={"file": png(noise(8, 8))})

    metrics, ready, answer = asyncio.run(scenario())
    assert "\nswin2sr_ready 1.0\n" in metrics[0]
    assert "\nswin2sr_ready 0.0\n" in metrics[1]
    assert ready.status_code == 503
    assert "shutting down" in ready.json()["detail"]
    assert answer.status_code == 200


def test_an_unknown_model_is_404(ask):
    """Not 503: waiting would not help."""
    response = ask("/v2/models/x3/ready")
    assert response.status_code == 404
    assert "x3" in response.json()["error"]


def test_an_alias_has_a_readiness_too(ask):
    """That of what it stands for."""
    response = ask("/v2/models/x2/ready")
    assert response.status_code == 200


def test_metrics_are_prometheus_text(ask):
    """With every name of the contract."""
    response = ask("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    for name in (
        "swin2sr_requests_total",
        "swin2sr_request_duration_seconds",
        "swin2sr_stage_duration_seconds",
        "swin2sr_queue_wait_seconds",
        "swin2sr_queue_requests",
        "swin2sr_queue_pixels",
        "swin2sr_batch_images",
        "swin2sr_batch_pixels",
        "swin2sr_rejected_total",
        "swin2sr_variant_ready",
        "swin2sr_ready",
        "swin2sr_inflight_requests",
        "swin2sr_batch_budget_pixels",
        "swin2sr_out_of_memory_total",
        "swin2sr_device_memory_bytes",
        "swin2sr_build_info",
    ):
        assert f"# TYPE {name} " in response.text
    assert 'swin2sr_variant_ready{variant="lightweight-x2"} 1.0' in response.text
    assert 'swin2sr_variant_ready{variant="classical-x4"} 0.0' in response.text
    [line] = [line for line in response.text.splitlines() if line.startswith("swin2sr_build_info{")]
    for label in (f'version="{service_version()}"', f'torch="{torch_version()}"', 'kernel="', 'precision="'):
        assert label in line


def test_requests_are_counted_by_outcome(tmp_path):
    """What clients saw is what the metrics say, and batches add up."""
    app = scripted_app(tmp_path, lightweight_x2=ScriptedUpscaler())

    async def scenario():
        async with running(app) as client:
            for body in (png(noise(8, 8)), png(noise(200, 300)), b"no image"):
                await client.post("/v1/upscale", files={"file": body})
            await client.post("/v1/upscale", params={"quality": 0})
            return (await client.get("/metrics")).text

    text = asyncio.run(scenario())
    for line in (
        'swin2sr_requests_total{key="",outcome="ok",variant="lightweight-x2"} 2.0',
        'swin2sr_requests_total{key="",outcome="unsupported_format",variant="lightweight-x2"} 1.0',
        'swin2sr_requests_total{key="",outcome="invalid_option",variant=""} 1.0',
        'swin2sr_stage_duration_seconds_count{stage="forward"} 2.0',
        "swin2sr_batch_images_sum 7.0",
        "swin2sr_queue_wait_seconds_count 2.0",
        "swin2sr_inflight_requests 0.0",
        "swin2sr_queue_requests 0.0",
        "swin2sr_queue_pixels 0.0",
    ):
        assert line in text
