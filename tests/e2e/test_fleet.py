"""Two real models under one memory budget: loaded, asked, unloaded, and asked again over the KV they left."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvloom.cli.main import run
from kvloom.config import Settings, load_settings
from kvloom.server.app import create_app
from kvloom.server.auth import LOCAL_TENANT
from kvloom.server.fleet import Fleet, make_fleet
from kvloom.session.model_plan import ModelLimits, Planner
from kvloom.session.requests import Completion, RawPrompt, Request
from kvloom.types import SamplingParams
from tests.tiny_gguf import TinyModel, write_tiny
from tests.unit.server.test_serve_command import serving

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

WINDOW = 768
PROMPT = "the harbour has two piers, " * 20
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVLOOM_THREADS", "1")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of two tiny models of different shapes."""
    folder = tmp_path_factory.mktemp("fleet")
    write_tiny(folder / "one.gguf", TinyModel(seed=1))
    write_tiny(folder / "two.gguf", TinyModel(arch="qwen2", seed=2))
    lines = [
        f"- {{id: {name}, path: {name}.gguf, context: {WINDOW}, aliases: [the-{name}]}}" for name in ("one", "two")
    ]
    path = folder / "models.yaml"
    path.write_text("models:\n" + "\n".join(lines) + "\n")
    return path


def settings_of(registry: Path, home: Path, num_models: float) -> Settings:
    base = load_settings({"context": WINDOW, "guard": {"enabled": False}}, home=home)
    needed = [
        Planner(registry.with_name(f"{name}.gguf"), base, ModelLimits(), read=lambda _: None).least_bytes
        for name in ("one", "two")
    ]
    server = {"models": str(registry), "models_memory_bytes": int(num_models * max(needed)), "slots": 2}
    return load_settings({"guard": {"enabled": False}, "server": server}, home=home)


def replied(fleet_lease: Any, prompt: str = PROMPT) -> Completion:
    prepared = fleet_lease.prepare(Request(RawPrompt(text=prompt), max_tokens=8, sampling=GREEDY))
    stream = fleet_lease.complete(prepared, 1)
    for _ in stream:
        pass
    found = stream.result
    assert isinstance(found, Completion)
    return found


async def reply_of(fleet: Fleet, model: str) -> Completion:
    lease = await fleet.acquire(model, LOCAL_TENANT)
    try:
        return await asyncio.to_thread(replied, lease)
    finally:
        lease.release()


async def test_two_models_under_a_budget_for_one_come_and_go_and_their_kv_stays(registry: Path, tmp_path: Path) -> None:
    fleet = make_fleet(settings_of(registry, tmp_path, 1.5), tmp_path)
    await fleet.start()
    try:
        first = await reply_of(fleet, "one")
        assert first.usage.computed_tokens > 400
        other = await reply_of(fleet, "the-two")
        assert list(fleet.looms()) == ["two"]
        again = await reply_of(fleet, "one")
        assert list(fleet.looms()) == ["one"]
    finally:
        await fleet.close()
    assert again.text == first.text
    assert other.usage.computed_tokens > 400  # nothing of the other model's is taken for its own
    assert again.usage.loaded_tokens >= 256  # whole blocks; the rest is the last one, and the reply's logits
    assert again.usage.computed_tokens < 256
    assert (fleet.num_loads, fleet.num_unloads) == (3, 3)


async def test_two_models_at_once_answer_as_each_does_alone(registry: Path, tmp_path: Path) -> None:
    found: list[list[Completion]] = []
    for at_once in (False, True):
        home = tmp_path / str(at_once)
        fleet = make_fleet(settings_of(registry, home, 3), home)
        await fleet.start()
        try:
            asked = [reply_of(fleet, name) for name in ("one", "two")]
            found.append(list(await asyncio.gather(*asked)) if at_once else [await one for one in asked])
            assert set(fleet.looms()) == {"one", "two"}
        finally:
            await fleet.close()
    assert [one.text for one in found[0]] == [one.text for one in found[1]]
    assert all(one.usage.completion_tokens for replies in found for one in replies)


async def test_the_server_over_a_fleet_lists_answers_and_measures(registry: Path, tmp_path: Path) -> None:
    settings = settings_of(registry, tmp_path, 1.5)
    fleet = make_fleet(settings, tmp_path)
    app = create_app(fleet, settings.server)
    async with app.router.lifespan_context(app):
        await app.state.service.lifecycle.loaded()
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            before = (await client.get("/v1/models")).json()["data"]
            body = {"prompt": "Hello", "max_tokens": 3}
            answers = [
                await client.post("/v1/completions", json={"model": name, **body})
                for name in ("the-one", "two", "three")
            ]
            after = (await client.get("/v1/models")).json()["data"]
            page = (await client.get("/metrics")).text
    assert [(card["id"], card["is_loaded"], card["max_model_len"]) for card in before] == [
        ("one", False, WINDOW), ("two", False, WINDOW),
    ]  # fmt: skip
    assert [answer.status_code for answer in answers] == [200, 200, 404]
    assert [answers[i].json()["model"] for i in range(2)] == ["one", "two"]
    assert answers[2].json()["error"]["code"] == "model_not_found"
    assert "known: one, two" in answers[2].json()["error"]["message"]
    assert [card["is_loaded"] for card in after] == [False, True]
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert values["kvloom_models_loaded",] == 1
    assert values["kvloom_requests_total", "/v1/completions", "200", "POST"] == 2
    assert values["kvloom_used_cells", "two"] > 0


def test_a_batch_over_both_models_from_the_command_line(
    registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(registry, tmp_path, 1.5)
    monkeypatch.setenv("KVLOOM_GUARD__ENABLED", "false")
    monkeypatch.setenv("KVLOOM_SERVER__MODELS_MEMORY_BYTES", str(settings.server.models_memory_bytes))
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with source.open("w") as lines:
        for number in range(6):
            body = {"model": ("one", "two")[number % 2], "prompt": f"{number} {PROMPT}", "max_tokens": 4}
            one = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/completions", "body": body}
            lines.write(json.dumps(one) + "\n")
    command = ["batch", str(source), str(target), "--models", str(registry), "--home", str(tmp_path), "--json"]
    assert run(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["num_requests"], told["num_done"], told["num_failed"]) == (6, 6, 0)
    records = [json.loads(text) for text in target.read_text().splitlines()]
    assert {record["custom_id"] for record in records} == {f"r{number}" for number in range(6)}
    assert all(record["response"]["body"]["usage"]["completion_tokens"] for record in records)
    # All of one model first: it is loaded once.
    assert [record["response"]["body"]["model"] for record in records] == ["one"] * 3 + ["two"] * 3
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out)["num_done_before"] == 6


def test_serve_with_a_registry_names_its_models_and_loads_the_one_that_is_asked(registry: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "home", registry.with_name("one.gguf"), "--models", str(registry)) as (process, told):
        assert told["models"] == ["one", "two"]
        assert told["window"] == WINDOW
        body = {"model": "the-two", "prompt": "Hi", "max_tokens": 2}
        answer = httpx.post(f"{told['url']}/completions", json=body, timeout=60)
        cards = httpx.get(f"{told['url']}/models", timeout=60).json()["data"]
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert answer.status_code == 200, answer.text
    assert [card["is_loaded"] for card in cards] == [False, True]
    assert process.returncode == 0, log
    assert "two is loaded" in log
    assert "unloading two: the server ends" in log
