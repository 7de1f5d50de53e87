"""OpenTelemetry: a request and the steps of its answer, in one trace, without a word of a person."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rallychat.errors import SettingsError
from rallychat.tracing import tracing
from tests.api_world import chat, echoing

SECRET = "the-password-is-hunter2"


def tree(spans: tuple[ReadableSpan, ...]) -> dict[str, str]:
    """Each span's name, and its parent's."""
    names = {span.context.span_id: span.name for span in spans if span.context}
    return {span.name: names.get(span.parent.span_id, "") if span.parent else "" for span in spans}


async def test_a_stored_answer_is_one_trace_with_its_steps(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    with tracing(exporter):
        async with echoing(tmp_path) as (http, service):
            service.idle.leave("")
            made = (await http.post("/v1/responses?", json={"input": SECRET})).json()
            spans = exporter.get_finished_spans()
    post = "POST /v1/responses"
    assert tree(spans) == {
        "plan": "turn", "queue": "turn", "prefill": "turn", "decode": "turn", "store": "turn", "turn": post, post: "",
    }  # fmt: skip
    by = {span.name: span for span in spans}
    attributes = by["turn"].attributes or {}
    assert attributes["gen_ai.usage.output_tokens"] == made["usage"]["output_tokens"]
    assert attributes["rallychat.end"] == "stop"
    assert (by[post].attributes or {})["http.response.status_code"] == 200
    assert SECRET not in "".join(span.to_json() for span in spans)
    moments = [by[name].start_time or 0 for name in ("turn", "plan", "queue", "prefill", "decode", "store")]
    assert moments == sorted(moments)


async def test_a_failure_is_marked_and_a_clients_trace_goes_on(tmp_path: Path) -> None:
    exporter, trace = InMemorySpanExporter(), "0af7651916cd43dd8448eb211c80319c"
    with tracing(exporter):
        async with echoing(tmp_path, window=256) as (http, _):
            headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
            await http.post("/v1/chat/completions", json=chat(f"{SECRET} " * 500), headers=headers)
            spans = exporter.get_finished_spans()
    by = {span.name: span for span in spans}
    assert set(by) == {"turn", "POST /v1/chat/completions"}
    assert not by["turn"].status.is_ok
    assert {f"{span.context.trace_id:032x}" for span in spans if span.context} == {trace}
    assert "hunter2" not in "".join(span.to_json() for span in spans)


async def test_without_an_endpoint_nothing_of_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *given: Any, **named: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with tracing():
        async with echoing(tmp_path) as (http, _):
            assert (await http.post("/v1/chat/completions", json=chat())).status_code == 200
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SettingsError, match="not installed"), tracing():
        pass
