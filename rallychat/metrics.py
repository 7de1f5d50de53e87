"""What operators see: counts and times by model, in Prometheus' format. Never a word that a person wrote.

Each service has a registry of its own. What an answer cost is told here once, at its end; how engines stand is read
when somebody asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rallychat.answering import Growth
from rallychat.errors import RallyChatError
from rallychat.pool import Pool, Priority

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_TOKEN = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60, 120)
_GAP = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2, 5)
_WHOLE = (0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)


@dataclass(slots=True)
class Outcome:
    """How an answer ended: its finish reason, or the code of its error."""

    reason: str


class Metrics:
    """The counts of one service.

    Args:
        pool: whose engines are looked at when the metrics are read.
        running: how many answers are being made.
    """

    def __init__(self, pool: Pool, running: Callable[[], int] = lambda: 0) -> None:
        self.registry = registry = CollectorRegistry()
        registry.register(_Engines(pool))
        Gauge("rallychat_runs", "Answers being made or waited for.", registry=registry).set_function(running)
        tasks = Gauge("rallychat_tasks", "Tasks of the server's event loop.", registry=registry)
        tasks.set_function(lambda: len(asyncio.all_tasks()))
        self._compactions = Counter(
            "rallychat_compactions", "Memories of older turns that were made.", ("model",), registry=registry
        )
        self._answers = Counter(
            "rallychat_answers", "Answers that ended, by how.", ("model", "reason"), registry=registry
        )
        self._tokens = Counter(
            "rallychat_tokens",
            "Tokens: prompt (cached and evaluated) and generated.",
            ("model", "kind"),
            registry=registry,
        )
        self._lines = Counter(
            "rallychat_batch_lines", "Lines of batches, by outcome.", ("outcome",), registry=registry
        )
        self._waiting = Gauge(
            "rallychat_batch_lines_waiting", "Lines of batches to be answered.", registry=registry
        )
        self._queued = _seconds("queue", "From the request to a slot.", _FIRST_TOKEN, registry)
        self._first = _seconds("first_token", "From the request to its first token.", _FIRST_TOKEN, registry)
        self._gap = _seconds("inter_token", "Between two arrivals of tokens of one answer.", _GAP, registry)
        self._whole = _seconds("answer", "From the request to the end of its answer.", _WHOLE, registry)

    @contextmanager
    def answer(self, model: str, growth: Growth) -> Iterator[Outcome]:
        """Around the making of an answer: counts it however it ends."""
        outcome = Outcome("internal_error")
        try:
            yield outcome
        except asyncio.CancelledError:
            outcome.reason = "cancelled"
            raise
        except RallyChatError as exc:
            outcome.reason = exc.code
            raise
        finally:
            self._ended(model, outcome.reason, growth)

    def _ended(self, model: str, reason: str, growth: Growth) -> None:
        self._answers.labels(model, reason).inc()
        usage = growth.usage
        if growth.completion_tokens:  # what an answer without a token evaluated is not known
            self._tokens.labels(model, "cached").inc(usage.cached_tokens)
            self._tokens.labels(model, "evaluated").inc(max(0, usage.prompt_tokens - usage.cached_tokens))
            self._tokens.labels(model, "generated").inc(usage.completion_tokens)
            self._first.labels(model).observe(growth.first_token_ms / 1000)
        if growth.plan is not None:
            self._queued.labels(model).observe((growth.queued_ms or growth.elapsed_ms()) / 1000)
        gaps = self._gap.labels(model)
        for gap in growth.gaps:
            gaps.observe(gap)
        self._whole.labels(model).observe(growth.elapsed_ms() / 1000)

    def compacted(self, model: str) -> None:
        """Older turns of a conversation became a memory."""
        self._compactions.labels(model).inc()

    def batch_line(self, *, ok: bool) -> None:
        """A line of a batch has its outcome."""
        self._lines.labels("done" if ok else "failed").inc()

    def batch_lines_wait(self, count: int) -> None:
        """So many lines of batches have none yet."""
        self._waiting.set(count)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return bytes(generate_latest(self.registry))


def _seconds(what: str, help_text: str, buckets: Iterable[float], registry: CollectorRegistry) -> Histogram:
    return Histogram(
        f"rallychat_{what}_seconds", help_text, ("model",), buckets=tuple(buckets), registry=registry
    )


class _Engines(Collector):
    """How the loaded engines stand at the moment of asking."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        """One family a fact, one sample an engine."""
        slots = GaugeMetricFamily("rallychat_slots", "Answers at a time.", labels=["model"])
        busy = GaugeMetricFamily("rallychat_slots_busy", "Answers being made.", labels=["model"])
        waiting = GaugeMetricFamily("rallychat_queue_length", "Requests that wait.", labels=["model"])
        kinds = GaugeMetricFamily("rallychat_waiting", "Requests that wait.", labels=["model", "priority"])
        pauses = CounterMetricFamily(
            "rallychat_pauses", "Answers that made way for others.", labels=["model"]
        )
        copies = CounterMetricFamily(
            "rallychat_cache_copies",
            "Caches that left their slots (saved) and came back (restored).",
            labels=["model", "kind"],
        )
        up = GaugeMetricFamily("rallychat_engine_up", "1 while the engine answers.", labels=["model"])
        restarts = CounterMetricFamily("rallychat_engine_restarts", "Deaths of a worker.", labels=["model"])
        for engine in self._pool.engines():
            name = [engine.spec.model]
            slots.add_metric(name, engine.spec.slots)
            busy.add_metric(name, engine.queue.busy)
            waiting.add_metric(name, engine.queue.waiting)
            for priority in Priority:
                kinds.add_metric([*name, priority.name.lower()], engine.queue.waiting_of(priority))
            pauses.add_metric(name, engine.queue.pauses)
            copies.add_metric([*name, "saved"], engine.offload.saved)
            copies.add_metric([*name, "restored"], engine.offload.restored)
            up.add_metric(name, engine.state == "loaded")
            restarts.add_metric(name, engine.restarts)
        yield from (slots, busy, waiting, kinds, pauses, copies, up, restarts)
