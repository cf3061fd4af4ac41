"""Metrics: counted once, per model and route, with nothing in them that a client wrote."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvloom.server.admission import Admission
from kvloom.server.auth import LOCAL_TENANT, Caller, KeyCheck
from kvloom.server.metrics import Metrics, RepliedRequest
from kvloom.server.telemetry import Telemetry
from kvloom.session.requests import Completion, RawPrompt, Request
from kvloom.types import Fidelity, Usage
from tests.unit.server.fleets import fleet_of
from tests.unit.server.scripted import MODEL as MODEL_ID
from tests.unit.server.scripted import ScriptedBackend, app_over, chat, client_of

pytestmark = pytest.mark.anyio

MODEL = {"model": "m"}


def completion(num_tokens: int = 11, finish: str = "stop") -> Completion:
    usage = Usage(100, 60, 30, 10, 20, 5, 0, num_tokens, Fidelity.SPLICE, 0.5, 0.1, 2.5)
    return Completion("text", "", finish, usage)


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(metrics.text().decode())
    return {(sample.name, frozenset(sample.labels.items())): sample.value for one in families for sample in one.samples}


def value(metrics: Metrics, name: str, labels: Mapping[str, str] | None = None) -> float:
    return samples(metrics)[name, frozenset((labels or {}).items())]


def test_tokens_are_counted_by_model_and_by_where_their_kv_came_from() -> None:
    metrics = Metrics()
    metrics.replied(RepliedRequest("m", "chat", (completion(), completion()), choices_each=2))
    assert value(metrics, "kvloom_prompt_tokens_total", MODEL) == 100  # two choices of one prompt
    assert value(metrics, "kvloom_cached_tokens_total", MODEL) == 90
    assert value(metrics, "kvloom_completion_tokens_total", MODEL) == 22
    found = {
        source: value(metrics, "kvloom_prompt_source_tokens_total", {**MODEL, "source": source})
        for source in ("reused", "loaded", "computed")
    }
    assert found == {"reused": 120, "loaded": 60, "computed": 20}
    assert value(metrics, "kvloom_rotated_tokens_total", MODEL) == 40
    assert value(metrics, "kvloom_recomputed_tokens_total", MODEL) == 10
    assert value(metrics, "kvloom_replies_total", {**MODEL, "finish_reason": "stop"}) == 2


def test_times_are_of_replies_that_said_something() -> None:
    metrics = Metrics()
    silent = completion(0, "cancelled")
    metrics.replied(RepliedRequest("m", "chat", (completion(), silent), 2, first_delta_s=0.7, queue_waits_s=(0.0, 4.0)))
    assert value(metrics, "kvloom_time_to_first_token_seconds_sum", MODEL) == 0.5
    assert value(metrics, "kvloom_time_to_first_token_seconds_count", MODEL) == 1
    assert value(metrics, "kvloom_time_per_output_token_seconds_sum", MODEL) == pytest.approx(2.0 / 10)
    assert value(metrics, "kvloom_time_to_first_delta_seconds_sum", MODEL) == 0.7
    assert value(metrics, "kvloom_queue_wait_seconds_sum") == 4.0
    assert value(metrics, "kvloom_queue_wait_seconds_count") == 2


def test_quota_refusals_stand_there_before_the_first_and_are_told_apart() -> None:
    metrics = Metrics()
    assert value(metrics, "kvloom_quota_refusals_total", {"code": "insufficient_quota"}) == 0
    metrics.answered("POST", "/v1/chat/completions", 429, 0.01, "insufficient_quota")
    metrics.answered("POST", "/v1/chat/completions", 503, 0.01, "queue_full")
    assert value(metrics, "kvloom_quota_refusals_total", {"code": "insufficient_quota"}) == 1
    assert value(metrics, "kvloom_unavailable_total", {"code": "queue_full"}) == 1


def test_two_servers_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.answered("GET", "/health", 200, 0.1)
    assert not [key for key in samples(other) if key[0] == "kvloom_requests_total"]


def test_every_name_is_ours_and_names_its_unit() -> None:
    metrics = Metrics()
    metrics.answered("GET", "/health", 200, 0.1)
    metrics.replied(RepliedRequest("m", "chat", (completion(),), first_delta_s=1.0))
    for family in text_string_to_metric_families(metrics.text().decode()):
        assert family.name.startswith("kvloom_")
        assert family.documentation
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


# --- what is there now -----------------------------------------------------------------------------------------------


async def test_the_present_is_read_when_somebody_looks(tmp_path: Path) -> None:
    fleet, _, clock = fleet_of(tmp_path, "ab", idle_unload_s=60)
    metrics, queue = Metrics(), Admission(1, 8, 60.0)
    metrics.watch(queue, fleet)
    assert value(metrics, "kvloom_models_loaded") == 0
    tickets = queue.enter("t", 3)
    lease = await fleet.acquire("a", LOCAL_TENANT)
    for _ in lease.complete(lease.prepare(Request(RawPrompt(text="Hello there"), max_tokens=4)), 1):
        pass
    assert value(metrics, "kvloom_models_loaded") == 1
    assert value(metrics, "kvloom_running_replies") == 1
    assert value(metrics, "kvloom_queue_depth") == 2
    assert value(metrics, "kvloom_slots") == 1
    assert value(metrics, "kvloom_guard_level", {"model": "a"}) == 0
    lease.loom.flush()
    tiers = {dict(labels)["tier"] for name, labels in samples(metrics) if name == "kvloom_tier_bytes"}
    assert tiers == {"device", "ram", "disk"}
    assert value(metrics, "kvloom_tier_entries", {"model": "a", "tier": "disk"}) >= 1
    assert value(metrics, "kvloom_tier_bytes", {"model": "a", "tier": "disk"}) > 0
    lease.release()
    clock.now_s += 100
    await fleet.unload_idle()
    assert value(metrics, "kvloom_models_loaded") == 0
    assert value(metrics, "kvloom_model_loads_total") == 1
    assert value(metrics, "kvloom_model_unloads_total") == 1
    assert not [key for key in samples(metrics) if key[0] == "kvloom_tier_bytes"]
    for ticket in tickets:
        ticket.leave()
    await fleet.close()


# --- over HTTP -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def client(keys: KeyCheck | None = None) -> AsyncIterator[tuple[httpx.AsyncClient, Metrics]]:
    app = app_over(ScriptedBackend(), keys=keys)
    async with client_of(app) as found:
        yield found, app.state.service.metrics


async def test_answers_are_counted_by_the_routes_template_and_status() -> None:
    async with client() as (http, metrics):
        await http.get("/v1/models/scripted")
        await http.get("/v1/models/nothing/of/the/kind")
        await http.get("/v1/secret-of-a-client")
        await http.post("/v1/chat/completions", json=chat())
        page = await http.get("/metrics")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/plain")
    counted = {
        tuple(sorted(dict(labels).items())): count
        for (name, labels), count in samples(metrics).items()
        if name == "kvloom_requests_total"
    }
    routes = {(dict(labels)["route"], dict(labels)["status"]) for labels in counted}
    assert routes == {
        ("/v1/models/{model:path}", "200"), ("/v1/models/{model:path}", "404"), ("other", "404"),
        ("/v1/chat/completions", "200"),
    }  # fmt: skip
    assert all(count == 1 for count in counted.values())
    assert "secret" not in page.text
    assert "nothing" not in page.text


async def test_a_reply_over_http_is_counted_with_its_tokens_and_its_wait() -> None:
    async with client() as (http, metrics):
        await http.post("/v1/chat/completions", json=chat(n=2))
        await http.post("/v1/completions", json={"model": MODEL_ID, "prompt": ["a b", "c"]})
    model = {"model": MODEL_ID}
    assert value(metrics, "kvloom_completion_tokens_total", model) == 4 * 3
    # "<head> Hi" once for its two choices, and the two texts.
    assert value(metrics, "kvloom_prompt_tokens_total", model) == 2 + 2 + 1
    assert value(metrics, "kvloom_queue_wait_seconds_count") == 4
    assert value(metrics, "kvloom_time_to_first_delta_seconds_count", model) == 2


async def test_a_method_that_a_client_made_up_is_no_label() -> None:
    async with client() as (http, metrics):
        for number in range(5):
            await http.request(f"MADEUP{number}", "/health")
    methods = {dict(labels).get("method") for name, labels in samples(metrics) if name == "kvloom_requests_total"}
    assert methods == {"other"}


class TwoKeys:
    async def is_required(self) -> bool:
        return True

    async def check(self, key: str) -> Caller | None:
        return {"ours": Caller(LOCAL_TENANT, "1"), "theirs": Caller("somebody", "2")}.get(key)


@pytest.mark.parametrize(("key", "status"), [("ours", 200), ("theirs", 403), ("none", 401)])
async def test_with_keys_the_metrics_are_for_whoever_runs_the_server(key: str, status: int) -> None:
    async with client(TwoKeys()) as (http, _):
        answer = await http.get("/metrics", headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == status
    assert ("# HELP kvloom_requests_total" in answer.text) is (status == 200)
    if status != 200:
        assert re.search(r'"code": ?"(not_allowed|invalid_api_key)"', answer.text)


# --- OpenTelemetry ---------------------------------------------------------------------------------------------------


@dataclass
class Instrument:
    name: str
    told: list[tuple[float, dict[str, str]]]

    def record(self, amount: float, attributes: dict[str, str]) -> None:
        self.told.append((amount, attributes))


class Meter:
    def __init__(self) -> None:
        self.told: dict[str, list[tuple[float, dict[str, str]]]] = {}

    def create_histogram(self, name: str, **options: Any) -> Instrument:
        assert options["unit"]
        assert list(options["explicit_bucket_boundaries_advisory"]) == sorted(
            options["explicit_bucket_boundaries_advisory"]
        )
        return Instrument(name, self.told.setdefault(name, []))


def test_the_conventions_names_get_the_conventions_values() -> None:
    meter = Meter()
    Metrics(Telemetry(meter)).replied(RepliedRequest("m", "chat", (completion(),)))
    assert [amount for amount, _ in meter.told["gen_ai.server.time_to_first_token"]] == [0.5]
    assert [amount for amount, _ in meter.told["gen_ai.server.time_per_output_token"]] == [pytest.approx(0.2)]
    assert [amount for amount, _ in meter.told["gen_ai.server.request.duration"]] == [2.5]
    usage = {facts["gen_ai.token.type"]: amount for amount, facts in meter.told["gen_ai.client.token.usage"]}
    assert usage == {"input": 100, "output": 11}
    assert all(facts["gen_ai.operation.name"] == "chat" for told in meter.told.values() for _, facts in told)


def test_without_a_meter_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvloom.server.telemetry._meter", lambda: None)
    Metrics().replied(RepliedRequest("m", "chat", (completion(),)))
