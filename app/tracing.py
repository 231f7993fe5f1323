"""Spans of requests and their stages, exported by the OpenTelemetry SDK if the extra ``[otel]`` is installed."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from app.metrics import STAGES

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

FLUSH_SECONDS = 2.0
"""Maximum time for exporting the last spans at shutdown."""

NAME = "swin2sr"

logger = logging.getLogger(__name__)


class Tracer:
    """Exports spans with the OpenTelemetry SDK.

    Args:
        provider: of the SDK, with its exporter.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(NAME)

    def record(self, name: str, headers: Mapping[str, str], fields: Mapping[str, object], seconds: float) -> None:
        """Export one span for a finished request, with one child span for each of its stages, in their order.

        Args:
            name: method and path.
            headers: of the request; ``traceparent`` names the parent span.
            fields: of its log line; ``decode_ms`` and so on are the durations of its stages.
            seconds: duration of the request.
        """
        from opentelemetry import trace  # noqa: PLC0415 - with the extra only
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        end = time.time_ns()
        parent = TraceContextTextMapPropagator().extract(dict(headers))
        kept = {key: value for key, value in fields.items() if isinstance(value, (str, int, float)) and value != ""}
        kind = trace.SpanKind.SERVER
        span = self._tracer.start_span(name, parent, kind, kept, start_time=end - int(seconds * 1e9))
        if str(fields.get("outcome", "ok")) == "internal_error":
            span.set_status(trace.StatusCode.ERROR)
        below = trace.set_span_in_context(span)
        # Only durations are known. Stages follow each other with short gaps, and encoding is the last one.
        begin = end - sum(int(_milliseconds(fields, stage) * 1e6) for stage in STAGES)
        for stage in STAGES:
            length = int(_milliseconds(fields, stage) * 1e6)
            if f"{stage}_ms" in fields:
                self._tracer.start_span(stage, below, start_time=begin).end(begin + length)
            begin += length
        span.end(end)

    def close(self) -> None:
        """Export the remaining spans. A collector that does not answer does not delay the shutdown further."""
        thread = threading.Thread(target=self._provider.shutdown, name="swin2sr-otel", daemon=True)
        thread.start()
        thread.join(FLUSH_SECONDS)


def make_tracer(environment: Mapping[str, str] = os.environ) -> Tracer | None:
    """The tracer that the environment variables of the OpenTelemetry SDK configure; None if they configure none.

    Spans are exported if an endpoint is set (``OTEL_EXPORTER_OTLP_ENDPOINT``, ``..._TRACES_ENDPOINT``) or the exporter
    is (``OTEL_TRACES_EXPORTER=otlp``). If the extra is not installed then, a warning is logged.
    """
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    is_wanted = any(environment.get(name) for name in names) or exporter == "otlp"
    if not is_wanted or exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        logger.warning("OTEL_* variables are set, but spans need: pip install 'swin2sr-serve[otel]'")
        return None
    named = {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": NAME}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    logger.info("spans are exported with OpenTelemetry")
    return Tracer(provider)


def _milliseconds(fields: Mapping[str, object], stage: str) -> float:
    value = fields.get(f"{stage}_ms", 0.0)
    return float(value) if isinstance(value, (int, float)) else 0.0
