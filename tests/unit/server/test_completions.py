"""Completions of raw prompts, the Responses API, embeddings, models and tokens over the application itself."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from kvloom.session.requests import Dropped, RawPrompt
from tests.unit.server.scripted import MODEL, VALUES, Script, ScriptedBackend, scripted
from tests.unit.server.test_chat import events_of

pytestmark = pytest.mark.anyio

PATH = "/v1/completions"


def raw(prompt: Any = "One two", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, **fields}


async def test_a_text_is_gone_on_with() -> None:
    backend = ScriptedBackend()
    async with scripted(backend) as client:
        body = (await client.post(PATH, json=raw(max_tokens=2))).json()
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"index": 0, "text": "Hello there", "logprobs": None, "finish_reason": "length"}]
    assert backend.requests[0].prompt == RawPrompt(text="One two")


async def test_several_prompts_give_their_choices_side_by_side_and_count_once_each() -> None:
    backend = ScriptedBackend()
    async with scripted(backend) as client:
        body = (await client.post(PATH, json=raw(["One two", "Three"], n=2, echo=True))).json()
        tokens = (await client.post(PATH, json=raw([[72, 105], [72]], echo=True))).json()
        too_many = await client.post(PATH, json=raw(["x"] * 9, n=2))
    assert [choice["text"] for choice in body["choices"]] == ["One twoHello there."] * 2 + ["ThreeHello there."] * 2
    assert body["usage"]["prompt_tokens"] == 3
    assert [choice["text"] for choice in tokens["choices"]] == ["HiHello there.", "HHello there."]
    assert backend.requests[-1].prompt == RawPrompt(tokens=(72,))
    assert (too_many.status_code, too_many.json()["error"]["param"]) == (400, "n")


async def test_a_stream_of_completions_spells_the_same_text() -> None:
    async with scripted() as client:
        answer = await client.post(PATH, json=raw(stream=True, echo=True, stream_options={"include_usage": True}))
    events = events_of(answer.text)
    assert "".join(e["choices"][0]["text"] for e in events if e["choices"]) == "One twoHello there."
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["usage"]["total_tokens"] == 5


async def test_logprobs_have_the_old_form_with_offsets() -> None:
    async with scripted() as client:
        whole = (await client.post(PATH, json=raw(logprobs=1))).json()["choices"][0]["logprobs"]
        streamed = events_of((await client.post(PATH, json=raw(logprobs=0, stream=True))).text)
    assert whole["tokens"] == ["Hello", " there", "."]
    assert whole["token_logprobs"] == [-0.5] * 3
    assert whole["top_logprobs"][0] == {"other0": -1.0}
    assert whole["text_offset"] == [0, 5, 11]
    offsets = [e["choices"][0]["logprobs"]["text_offset"] for e in streamed if e["choices"][0]["logprobs"]]
    assert offsets == [[0], [5], [11]]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "x"]}, "prompt[1]"),
        ({"prompt": [-1]}, "prompt[0]"),
    ],
)
async def test_what_completions_cannot_do_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    async with scripted() as client:
        answer = await client.post(PATH, json=raw() | fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


# --- responses -------------------------------------------------------------------------------------------------------


def named_events(text: str) -> list[Any]:
    found = []
    for block in [block for block in text.split("\n\n") if block]:
        name, data = block.split("\n", 1)
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


async def test_a_response_has_its_own_shape() -> None:
    backend = ScriptedBackend()
    async with scripted(backend) as client:
        body = (
            await client.post(
                "/v1/responses",
                json={"model": MODEL, "input": "Hi", "instructions": "Be brief.", "metadata": {"a": "b"}},
            )
        ).json()
    assert (body["object"], body["status"], body["store"], body["metadata"]) == (
        "response",
        "completed",
        False,
        {"a": "b"},
    )
    (item,) = body["output"]
    assert item["content"] == [{"type": "output_text", "text": "Hello there.", "annotations": [], "logprobs": []}]
    assert body["usage"]["output_tokens"] == 3
    assert [message.role for message in backend.requests[0].prompt.messages] == ["system", "user"]  # type: ignore[union-attr]


async def test_the_events_of_a_response_come_in_order_and_number_themselves() -> None:
    async with scripted(ScriptedBackend(Script(reasoning=("Hm",)))) as client:
        answer = await client.post("/v1/responses", json={"model": MODEL, "input": "Hi", "stream": True})
    events = named_events(answer.text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "reasoning_text.delta", "reasoning_text.done",
        "output_item.done", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.delta", "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    final = events[-1]["response"]
    assert [item["type"] for item in final["output"]] == ["reasoning", "message"]
    ids = {event["item_id"] for event in events if event["type"] == "response.output_text.delta"}
    assert ids == {final["output"][1]["id"]}
    assert {event["output_index"] for event in events if "text.delta" in event["type"]} == {0, 1}


async def test_truncation_is_a_policy_and_a_short_reply_is_incomplete() -> None:
    backend = ScriptedBackend(Script(dropped=(Dropped(0, "user", 5),)))
    async with scripted(backend) as client:
        answer = await client.post(
            "/v1/responses",
            json={
                "model": MODEL,
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
                    {"role": "user", "content": "c"},
                ],
                "truncation": "auto",
                "max_output_tokens": 1,
            },
        )
    body = answer.json()
    assert backend.requests[0].overflow == "fifo"
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert answer.headers["x-kvloom-dropped"] == "0:user:5"


@pytest.mark.parametrize("name", ["previous_response_id", "conversation", "background", "tools", "reasoning"])
async def test_what_responses_cannot_do_is_refused_by_name(name: str) -> None:
    values: dict[str, Any] = {"background": True, "tools": [{"type": "web_search"}], "reasoning": {"effort": "low"}}
    async with scripted() as client:
        answer = await client.post(
            "/v1/responses", json={"model": MODEL, "input": "x", name: values.get(name, "some_1")}
        )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_parameter")
    assert answer.json()["error"]["param"] == name


async def test_a_failing_response_ends_with_its_failure() -> None:
    async with scripted(ScriptedBackend(Script(fails_at=1))) as client:
        answer = await client.post("/v1/responses", json={"model": MODEL, "input": "Hi", "stream": True})
    last = named_events(answer.text)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["code"] == "internal_error"


# --- what generates nothing ------------------------------------------------------------------------------------------


async def test_embeddings_come_as_numbers_or_bytes() -> None:
    async with scripted(ScriptedBackend(has_embeddings=True)) as client:
        body = (await client.post("/v1/embeddings", json={"model": MODEL, "input": ["ab", "c"]})).json()
        packed = (
            await client.post("/v1/embeddings", json={"model": MODEL, "input": [72, 105], "encoding_format": "base64"})
        ).json()
    assert [item["embedding"] for item in body["data"]] == [VALUES.tolist()] * 2
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4").tolist() == VALUES.tolist()


async def test_a_model_without_embeddings_says_so() -> None:
    async with scripted() as client:
        answer = await client.post("/v1/embeddings", json={"model": MODEL, "input": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_parameter")


async def test_models_are_listed_and_found_by_alias() -> None:
    async with scripted() as client:
        listed = (await client.get("/v1/models")).json()
        one = (await client.get("/v1/models/alias")).json()
        none = await client.get("/v1/models/no/such")
    assert listed["object"] == "list"
    assert listed["data"] == [one]
    assert (one["id"], one["max_model_len"], one["object"]) == (MODEL, 256, "model")
    assert (none.status_code, none.json()["error"]["code"]) == (404, "model_not_found")


async def test_text_becomes_tokens_and_tokens_text() -> None:
    async with scripted() as client:
        tokens = (await client.post("/tokenize", json={"content": "Hi", "add_special": True})).json()
        text = (await client.post("/detokenize", json={"tokens": [72, 105]})).json()
        both = await client.post("/tokenize", json={"content": "Hi", "prompt": "Hi"})
    assert tokens == {"tokens": [1, 72, 105], "count": 3, "max_model_len": 256}
    assert text == {"content": "Hi", "prompt": "Hi"}
    assert both.status_code == 400
