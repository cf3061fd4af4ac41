"""The server over a real loom with the deterministic engine: prompts are rendered, woven, sampled and counted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvloom.config import ServerSettings
from kvloom.server.account_gate import AccountKeys
from kvloom.server.accounts import Accounts
from kvloom.server.app import create_app
from kvloom.server.keys import KeyRing
from kvloom.server.local import LocalBackend
from kvloom.session.loom import Loom
from tests.unit.server.scripted import client_of
from tests.unit.server.test_chat import events_of
from tests.unit.session.fakes import fake_loom

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"


def chat(text: str = "Hi", **fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}


@asynccontextmanager
async def serving(home: Path, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Loom]]:
    backend = LocalBackend(lambda: fake_loom(home), "fake.gguf")
    async with client_of(create_app(backend, ServerSettings(**settings))) as client:
        yield client, backend.loom


async def test_a_reply_streamed_is_the_reply_whole(tmp_path: Path) -> None:
    async with serving(tmp_path) as (client, _):
        whole = (await client.post(PATH, json=chat(temperature=0))).json()
        events = events_of((await client.post(PATH, json=chat(temperature=0, stream=True))).text)
    content = whole["choices"][0]["message"]["content"]
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == content
    assert whole["usage"]["completion_tokens"] <= 8
    report = whole["kvloom"]
    assert report["reused"] + report["loaded"] + report["computed"] == whole["usage"]["prompt_tokens"]


async def test_a_prompt_that_comes_again_is_not_computed_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as (client, _):
        long = "a text of some length, " * 40
        first = (await client.post(PATH, json=chat(long))).json()["usage"]
        second = (await client.post(PATH, json=chat(long))).json()["usage"]
    assert first["prompt_tokens"] == second["prompt_tokens"] > 256
    assert second["prompt_tokens_details"]["cached_tokens"] > first["prompt_tokens_details"]["cached_tokens"]


async def test_a_chunk_by_reference_is_named_in_the_reply(tmp_path: Path) -> None:
    async with serving(tmp_path) as (client, loom):
        chunk = loom.load_text("def parse(): return 5\n" * 20, name="utils.py")
        content = [{"type": "kvloom_chunk", "id": "utils.py"}, {"type": "text", "text": "What is it?"}]
        messages = [{"role": "user", "content": content}]
        known = await client.post(PATH, json=chat() | {"messages": messages})
        messages[0]["content"] = [{"type": "kvloom_chunk", "id": "no-such"}]
        unknown = await client.post(PATH, json=chat() | {"messages": messages})
    assert known.json()["kvloom"]["chunks"] == [chunk.id]
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "chunk_not_found")


async def test_what_does_not_fit_is_refused_and_a_policy_makes_room(tmp_path: Path) -> None:
    messages = [
        {"role": role, "content": f"{number} " + "words " * 60}
        for number in range(12)
        for role in ("user", "assistant")
    ] + [{"role": "user", "content": "And now?"}]
    async with serving(tmp_path) as (client, loom):
        refused = await client.post(PATH, json=chat() | {"messages": messages})
        body = chat(kvloom={"overflow": "fifo"}) | {"messages": messages}
        dropped = await client.post(PATH, json=body)
        window = loom.window
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["n_ctx"]) == (400, "context_length_exceeded", window)
    assert error["n_prompt_tokens"] > window
    assert f"maximum context length is {window} tokens" in error["message"]
    assert dropped.status_code == 200, dropped.text
    named = dropped.json()["kvloom"]["dropped"]
    assert named[0]["index"] == 0 and all(item["num_tokens"] > 0 for item in named)
    assert dropped.headers["x-kvloom-dropped"].startswith("0:user:")
    assert dropped.json()["usage"]["prompt_tokens"] <= window - 8


async def test_json_and_seeds_and_choices_go_through_the_engines_own_sampler(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    async with serving(tmp_path) as (client, _):
        body = chat(n=2, seed=5, temperature=1.5, response_format=wanted, max_tokens=60)
        first = (await client.post(PATH, json=body)).json()
        again = (await client.post(PATH, json=body)).json()
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert texts == [choice["message"]["content"] for choice in again["choices"]]
    for choice in first["choices"]:
        if choice["finish_reason"] == "stop":
            assert json.loads(choice["message"]["content"])["a"] in (1, 2)


async def test_tokens_are_the_models_own_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as (client, loom):
        tokens = (await client.post("/tokenize", json={"content": "Hello <|im_end|>"})).json()["tokens"]
        back = (await client.post("/detokenize", json={"tokens": tokens})).json()["content"]
        size = loom.builder.tokenizer.vocabulary.size
        for path, body in (
            ("/detokenize", {"tokens": [size]}),
            ("/v1/completions", {"model": "fake", "prompt": [size], "max_tokens": 1}),
            (PATH, chat(logit_bias={str(size): 1})),
        ):
            answer = await client.post(path, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value"), path
    assert back == "Hello <|im_end|>"


async def test_completions_go_on_with_a_text(tmp_path: Path) -> None:
    async with serving(tmp_path) as (client, _):
        body = {"model": "fake.gguf", "prompt": "Once upon", "max_tokens": 6, "logprobs": 2, "temperature": 0}
        answer = (await client.post("/v1/completions", json=body)).json()
    choice = answer["choices"][0]
    assert answer["model"] == "fake"
    assert len(choice["logprobs"]["tokens"]) == answer["usage"]["completion_tokens"]
    assert all(value <= 0 for value in choice["logprobs"]["token_logprobs"])


async def test_a_tenant_finds_its_own_chunks_and_nobody_elses(tmp_path: Path) -> None:
    backend = LocalBackend(lambda: fake_loom(tmp_path / "home"), "fake")
    (tmp_path / "accounts").mkdir()
    with Accounts(tmp_path / "accounts") as accounts:
        ring = KeyRing(accounts)
        one, other = (ring.add(name, tenant=name).text for name in ("one", "other"))
        keys = AccountKeys(ring, is_always_required=True)
        async with client_of(create_app(backend, ServerSettings(), keys=keys)) as client:
            backend.loom.tenant("one").load_text("a secret " * 50, name="secret.txt")
            messages = [{"role": "user", "content": [{"type": "kvloom_chunk", "id": "secret.txt"}]}]
            body = chat() | {"messages": messages}
            answers = [
                await client.post(PATH, json=body, headers={"authorization": f"Bearer {key}"})
                for key in (one, other, one)
            ]
            cached = [answer.json().get("usage", {}).get("prompt_tokens_details") for answer in answers]
    assert [answer.status_code for answer in answers] == [200, 404, 200]
    assert cached[2]["cached_tokens"] > 0
