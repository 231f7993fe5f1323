"""Spans, as a collector gets them over OTLP: a stand-in that listens on this machine."""

from __future__ import annotations

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from app import tracing
from tests.scripted import PATIENCE, ScriptedUpscaler
from tests.service import noise, png, running, scripted_app

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.fixture
def collector(monkeypatch):
    """Requests that the stand-in got, while the SDK's own variable names it."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments):
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield got
    server.shutdown()
    thread.join(PATIENCE)
    server.server_close()


def upscale(tmp_path, headers):
    """One image, and its options."""
    app = scripted_app(tmp_path, lightweight_x2=ScriptedUpscaler())

    async def exchange():
        async with running(app) as client:
            await client.get("/health/live")
            return await client.post(
                "/v1/upscale", content=png(noise(16, 16)), headers={"content-type": "image/png", **headers}
            )

    assert asyncio.run(exchange()).status_code == 200


def spans_of(got):
    resources = [resource for _, request in got for resource in request.resource_spans]
    names = {each.key: each.value.string_value for each in resources[0].resource.attributes}
    return names, [span for each in resources for scope in each.scope_spans for span in scope.spans]


def test_a_request_and_its_stages_are_spans(tmp_path, collector):
    """Below the caller's span, in order, within the request's time; probes are none."""
    upscale(tmp_path, {"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert {path for path, _ in collector} == {"/v1/traces"}
    resource, spans = spans_of(collector)
    assert resource["service.name"] == "swin2sr"
    by_name = {span.name: span for span in spans}
    assert sorted(by_name) == ["POST /v1/upscale", "decode", "encode", "forward", "queue"]
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    request = by_name["POST /v1/upscale"]
    assert request.parent_span_id.hex() == PARENT
    stages = [by_name[name] for name in ("decode", "queue", "forward", "encode")]
    assert {span.parent_span_id for span in stages} == {request.span_id}
    times = [at for span in stages for at in (span.start_time_unix_nano, span.end_time_unix_nano)]
    assert times == sorted(times)
    assert times[-1] <= request.end_time_unix_nano
    attributes = {each.key: each.value for each in request.attributes}
    assert attributes["variant"].string_value == "lightweight-x2"
    assert attributes["status"].int_value == 200


def test_the_sdks_own_variables_count(tmp_path, collector, monkeypatch):
    """The name of the service is one of them, and so is what turns it all off."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "upscaler-in-berlin")
    upscale(tmp_path, {})
    assert spans_of(collector)[0]["service.name"] == "upscaler-in-berlin"
    collector.clear()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    upscale(tmp_path, {})
    assert collector == []


def test_nothing_is_exported_unasked():
    """Without a variable there is no exporter."""
    for environment in ({}, {"OTEL_SERVICE_NAME": "x"}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}):
        assert tracing.make_tracer(environment) is None


def test_without_the_extra_there_is_a_warning(monkeypatch, caplog):
    """It names what to install; the service starts."""
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    tracer = tracing.make_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
    assert tracer is None
    assert "swin2sr-serve[otel]" in caplog.text


@pytest.mark.slow
def test_a_dead_collector_does_not_hold_up_the_end():
    """Closing waits for a bounded time."""

    class Stuck:
        def get_tracer(self, _name):
            return None

        def shutdown(self):
            threading.Event().wait(PATIENCE)

    before = tracing.FLUSH_SECONDS
    assert before < PATIENCE
    thread = threading.Thread(target=tracing.Tracer(Stuck()).close)
    thread.start()
    thread.join(before + PATIENCE / 2)
    assert not thread.is_alive()
