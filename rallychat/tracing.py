"""OpenTelemetry: a request and the steps of its answer as spans. Off, it costs one comparison; no text goes in.

Spans are told when they have ended, from times that are taken anyway. Where they go is said by OpenTelemetry's own
variables; without an endpoint there is no tracing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rallychat.errors import SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

log = logging.getLogger(__name__)

_tracer: Tracer | None = None
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_NANO = 1_000_000_000


@contextmanager
def tracing(exporter: SpanExporter | None = None) -> Iterator[None]:
    """Traces until the block ends, if the environment names an endpoint (or an exporter is given).

    Raises:
        SettingsError: an endpoint is named, and OpenTelemetry is not installed.
    """
    global _tracer
    if exporter is None and not any(os.environ.get(name) for name in _ENDPOINTS):
        yield
        return
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "rallychat")})
        provider = TracerProvider(resource=resource)
        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        else:
            provider.add_span_processor(SimpleSpanProcessor(exporter))
    except ImportError as exc:
        raise SettingsError(
            "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, and OpenTelemetry is not installed.",
            hint="./rally add otel, or pip install 'rallychat[otel]'",
        ) from exc
    _tracer = provider.get_tracer("rallychat")
    try:
        yield
    finally:
        _tracer = None
        provider.shutdown()


@contextmanager
def request(method: str, headers: Mapping[str, str]) -> Iterator[dict[str, str | int]]:
    """Around a request; what it puts into the dictionary becomes attributes. Goes on with the client's trace."""
    said: dict[str, str | int] = {}
    if _tracer is None:
        yield said
        return
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind, Status, StatusCode

    with _tracer.start_as_current_span(
        method,
        extract(headers),
        kind=SpanKind.SERVER,
        record_exception=False,  # its words may be a person's
    ) as span:
        try:
            yield said
        finally:
            span.update_name(f"{method} {said.get('http.route', '')}".rstrip())
            span.set_attributes({"http.request.method": method, **said})
            if int(said.get("http.response.status_code", 0)) >= 500:
                span.set_status(Status(StatusCode.ERROR))


def turn(
    attributes: Mapping[str, str | int | float], steps: Mapping[str, tuple[float, float]], *, failed: bool
) -> None:
    """An answer that has ended. `steps`: when each began and ended, by the monotonic clock; the first is the whole."""
    if _tracer is None or not steps:
        return
    from opentelemetry import trace

    past = time.time_ns() - time.monotonic_ns()

    def at(moment: float) -> int:
        return past + int(moment * _NANO)

    (name, (began, ended)), *parts = steps.items()
    whole = _tracer.start_span(name, start_time=at(began), attributes=dict(attributes))
    if failed:
        whole.set_status(trace.StatusCode.ERROR)
    inside = trace.set_span_in_context(whole)
    for part, (since, until) in parts:
        _tracer.start_span(part, inside, start_time=at(since)).end(at(max(since, until)))
    whole.end(at(ended))
