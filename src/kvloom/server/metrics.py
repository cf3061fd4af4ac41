"""What a server counts and measures, for Prometheus to fetch and, where one is set up, for OpenTelemetry to send.

Knows completions and looms' status; no route. No label holds a tenant, a key or anything that a client wrote.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from kvloom.errors import KvloomError
from kvloom.server.telemetry import DURATION_BUCKETS, TOKEN_S_BUCKETS, TTFT_BUCKETS, Telemetry
from kvloom.session.loom import Loom
from kvloom.session.requests import ChatPrompt, Completion, Request

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

WAIT_BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds in the queue, up to its longest."""

LEVELS = ("normal", "soft", "hard", "critical")
"""Of the memory guard, as numbers from 0."""

OTHER_ROUTE = "other"
"""A path that no route has: what clients try is no label."""


class QueueView(Protocol):
    """What `Admission` tells."""

    @property
    def num_running(self) -> int: ...

    @property
    def num_waiting(self) -> int: ...

    @property
    def num_slots(self) -> int: ...


@runtime_checkable
class FleetView(Protocol):
    """What a backend of several models tells."""

    def looms(self) -> dict[str, Loom]: ...

    @property
    def num_loads(self) -> int: ...

    @property
    def num_unloads(self) -> int: ...


@dataclass(frozen=True)
class RepliedRequest:
    """One request whose replies have ended, as far as it is measured.

    `operation`: OpenTelemetry's name of it ("chat", "text_completion", "embeddings"). `choices_each`: replies to one
    prompt, which counts once.
    """

    model: str
    operation: str
    completions: tuple[Completion, ...]
    choices_each: int = 1
    first_delta_s: float | None = None
    queue_waits_s: tuple[float, ...] = ()


def operation_of(request: Request) -> str:
    """OpenTelemetry's name of what a request asks for."""
    return "chat" if isinstance(request.prompt, ChatPrompt) else "text_completion"


class Metrics:
    """One server's. Safe for several threads. Every server has a registry of its own, so that two in one process do
    not count together."""

    def __init__(self, telemetry: Telemetry | None = None) -> None:
        self.registry = CollectorRegistry()
        self._telemetry = telemetry or Telemetry()
        counter, histogram = self._counter, self._histogram
        by_model = ("model",)
        self._requests = counter("requests", "HTTP requests", ("method", "route", "status"))
        self._durations = histogram(
            "request_duration", "From a request's arrival to the end of its answer", ("route",), DURATION_BUCKETS
        )
        self._refusals = counter("quota_refusals", "Requests refused by a key's limits", ("code",))
        self._turned_away = counter("unavailable", "Requests refused with 503, by reason", ("code",))
        self._prompt = counter("prompt_tokens", "Tokens of prompts (gen_ai.client.token.usage, input)", by_model)
        self._completion = counter(
            "completion_tokens", "Tokens of replies (gen_ai.client.token.usage, output)", by_model
        )
        self._cached = counter("cached_tokens", "Prompt tokens that were not computed", by_model)
        self._sources = counter(
            "prompt_source_tokens",
            "Prompt tokens of every reply by where their KV came from: reused (device), loaded (RAM or disk), computed",
            ("model", "source"),
        )
        self._rotated = counter("rotated_tokens", "Loaded tokens that were turned to another position", by_model)
        self._recomputed = counter("recomputed_tokens", "Placed tokens that were computed again (blend)", by_model)
        self._replies = counter("replies", "Replies by how they ended", ("model", "finish_reason"))
        self._reply_durations = histogram(
            "reply_duration", "A reply's work (gen_ai.server.request.duration)", by_model, DURATION_BUCKETS
        )
        self._ttft = histogram(
            "time_to_first_token",
            "From the start of the work on a prompt to its first token (gen_ai.server.time_to_first_token)",
            by_model,
            TTFT_BUCKETS,
        )
        self._per_token = histogram(
            "time_per_output_token",
            "Between two tokens of a reply, its mean (gen_ai.server.time_per_output_token)",
            by_model,
            TOKEN_S_BUCKETS,
        )
        self._first_delta = histogram(
            "time_to_first_delta", "From acceptance to the first piece of text, the queue included", by_model,
            TTFT_BUCKETS,
        )  # fmt: skip
        self._waits = histogram("queue_wait", "How long a reply waited for its slot", (), WAIT_BUCKETS)
        # So that they are there, as 0, before the first of them.
        self._refusals.labels("rate_limit_exceeded")
        self._refusals.labels("insufficient_quota")

    def _counter(self, name: str, words: str, labels: Sequence[str]) -> Counter:
        return Counter(f"kvloom_{name}", words, labels, registry=self.registry)

    def _histogram(self, name: str, words: str, labels: Sequence[str], buckets: Sequence[float]) -> Histogram:
        return Histogram(f"kvloom_{name}_seconds", words, labels, buckets=buckets, registry=self.registry)

    # -- counting -----------------------------------------------------------------------------------------------

    def answered(self, method: str, route: str, status: int, duration_s: float, code: str = "") -> None:
        """An answer has ended. `route`: the path's template, "" where there is none; `code`: of an error."""
        route = route or OTHER_ROUTE
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._durations.labels(route).observe(duration_s)
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            self._refusals.labels(code or "rate_limit_exceeded").inc()
        elif status == HTTPStatus.SERVICE_UNAVAILABLE:
            self._turned_away.labels(code or "unavailable").inc()

    def replied(self, request: RepliedRequest) -> None:
        """A request's replies have ended, cancelled ones included."""
        model = request.model
        for number, completion in enumerate(request.completions):
            usage = completion.usage
            if number % max(1, request.choices_each) == 0:
                self._prompt.labels(model).inc(usage.prompt_tokens)
                self._cached.labels(model).inc(usage.reused_tokens + usage.loaded_tokens)
            self._completion.labels(model).inc(usage.completion_tokens)
            for source, count in (
                ("reused", usage.reused_tokens), ("loaded", usage.loaded_tokens), ("computed", usage.computed_tokens),
            ):  # fmt: skip
                self._sources.labels(model, source).inc(count)
            self._rotated.labels(model).inc(usage.rotated_tokens)
            self._recomputed.labels(model).inc(usage.recomputed_tokens)
            self._replies.labels(model, completion.finish_reason).inc()
            self._times(request, completion)
        if request.first_delta_s is not None:
            self._first_delta.labels(model).observe(request.first_delta_s)
        for wait_s in request.queue_waits_s:
            self._waits.observe(wait_s)

    def _times(self, request: RepliedRequest, completion: Completion) -> None:
        usage, per_token = completion.usage, None
        if not usage.completion_tokens:
            return
        self._ttft.labels(request.model).observe(usage.ttft_s)
        self._reply_durations.labels(request.model).observe(usage.total_s)
        if usage.completion_tokens > 1 and usage.total_s > usage.ttft_s:
            per_token = (usage.total_s - usage.ttft_s) / (usage.completion_tokens - 1)
            self._per_token.labels(request.model).observe(per_token)
        self._telemetry.replied(request.model, request.operation, usage, per_token)

    # -- showing ------------------------------------------------------------------------------------------------

    def watch(self, queue: QueueView, backend: object = None) -> None:
        """Show these as they are when somebody looks. Once."""
        self.registry.register(_Gauges(queue, backend if isinstance(backend, FleetView) else None))

    def text(self) -> bytes:
        """The page that Prometheus fetches. Blocks: it looks at every tier."""
        return generate_latest(self.registry)


_METHODS = frozenset(("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"))


class _Gauges(Collector):
    """Reads the present when it is asked."""

    def __init__(self, queue: QueueView, fleet: FleetView | None) -> None:
        self._queue = queue
        self._fleet = fleet
        self._lock = threading.Lock()

    def describe(self) -> list[Metric]:
        """Nothing is read before somebody asks."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield _gauge("kvloom_queue_depth", "Replies that wait for a slot", self._queue.num_waiting)
        yield _gauge("kvloom_running_replies", "Replies under way", self._queue.num_running)
        yield _gauge("kvloom_slots", "Replies that may run at once", self._queue.num_slots)
        if self._fleet is None:
            return
        looms = self._fleet.looms()
        yield _gauge("kvloom_models_loaded", "Models in memory", len(looms))
        yield _counter("kvloom_model_loads", "Models that were loaded", self._fleet.num_loads)
        yield _counter("kvloom_model_unloads", "Models that were unloaded", self._fleet.num_unloads)
        with self._lock:
            yield from _of_looms(looms)


def _of_looms(looms: Mapping[str, Loom]) -> Iterator[Metric]:
    by_tier = ("model", "tier")
    entries = GaugeMetricFamily(
        "kvloom_tier_entries", "KV entries held; all models share one folder on disk", labels=by_tier
    )
    held = GaugeMetricFamily("kvloom_tier_bytes", "Bytes of KV held", labels=by_tier)
    budget = GaugeMetricFamily("kvloom_tier_budget_bytes", "Bytes that a tier may hold", labels=by_tier)
    faults = CounterMetricFamily(
        "kvloom_store_faults", "Entries that failed a check or could not be held", labels=["model", "reason"]
    )
    cells = GaugeMetricFamily("kvloom_used_cells", "Native cells that hold a token", labels=["model"])
    window = GaugeMetricFamily("kvloom_window_tokens", "The window of a model", labels=["model"])
    guard = GaugeMetricFamily(
        "kvloom_guard_level", f"The memory guard: {', '.join(f'{i} {name}' for i, name in enumerate(LEVELS))}",
        labels=["model"],
    )  # fmt: skip
    for model, loom in looms.items():
        with suppress(KvloomError):  # it was unloaded meanwhile
            status = loom.status()
            for tier in status.tiers:
                labels = (model, tier.tier.value)
                entries.add_metric(labels, tier.num_entries)
                held.add_metric(labels, tier.used_bytes)
                if tier.budget_bytes is not None:
                    budget.add_metric(labels, tier.budget_bytes)
            for reason, count in status.faults.items():
                faults.add_metric((model, reason), count)
            cells.add_metric((model,), status.used_cells)
            window.add_metric((model,), status.window)
            guard.add_metric((model,), LEVELS.index(loom.guard.level.value))
    yield from (entries, held, budget, faults, cells, window, guard)


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=value)


def _counter(name: str, words: str, value: float) -> Metric:
    return CounterMetricFamily(name, words, value=value)
