"""OpenAI's own client against the running server: whole, streamed, asynchronous, its helpers and its errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.unit.server.live import Live, live
from tests.unit.server.scripted import MODEL, Script, ScriptedBackend
from tests.unit.server.test_chat import CALL, WEATHER

HELLO: Any = [{"role": "user", "content": "Hi"}]
TOOLS: Any = [WEATHER]


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(has_embeddings=True)


@pytest.fixture
def server(backend: ScriptedBackend) -> Iterator[Live]:
    with live(backend, queue_size=0, slots=2) as running:
        yield running


@pytest.fixture
def client(server: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat_whole_and_streamed(client: OpenAI) -> None:
    whole: Any = client.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True, top_logprobs=1, seed=3)
    assert whole.choices[0].message.content == "Hello there."
    assert whole.usage.prompt_tokens_details.cached_tokens == 1
    assert whole.choices[0].logprobs.content[1].token == " there"
    assert whole.kvloom["fidelity"] == "exact"
    text, usage = "", None
    for event in client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    ):
        text += (event.choices[0].delta.content or "") if event.choices else ""
        usage = event.usage or usage
    assert text == "Hello there."
    assert usage is not None and usage.completion_tokens == 3


async def _gathered(url: str) -> list[str]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        async def one() -> str:
            stream: Any = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
            return "".join([event.choices[0].delta.content or "" async for event in stream])

        return list(await asyncio.gather(one(), one()))


def test_the_asynchronous_client_streams_several_at_once(server: Live) -> None:
    assert asyncio.run(_gathered(server.url)) == ["Hello there."] * 2


def test_tools_are_called(backend: ScriptedBackend, client: OpenAI) -> None:
    backend.script = Script(words=CALL)
    whole: Any = client.chat.completions.create(model=MODEL, messages=HELLO, tools=TOOLS, tool_choice="required")
    (call,) = whole.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    with client.chat.completions.stream(model=MODEL, messages=HELLO, tools=TOOLS) as stream:
        final: Any = stream.get_final_completion()
    (streamed,) = final.choices[0].message.tool_calls
    assert streamed.function.name == "weather"
    assert final.choices[0].finish_reason == "tool_calls"
    # What came back goes in again, as the client writes it.
    again: Any = [
        *HELLO,
        whole.choices[0].message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    backend.script = Script()
    assert client.chat.completions.create(model=MODEL, messages=again).choices[0].message.content == "Hello there."


class Weather(BaseModel):
    city: str
    degrees: int


def test_a_parsed_reply_is_an_object(backend: ScriptedBackend, client: OpenAI) -> None:
    backend.script = Script(words=('{"city": "Oslo",', ' "degrees": 4}'))
    reply = client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Weather)
    assert reply.choices[0].message.parsed == Weather(city="Oslo", degrees=4)
    assert "city" in backend.requests[0].sampling.grammar
    answer = client.responses.parse(model=MODEL, input="Hi", text_format=Weather)
    assert answer.output_parsed == Weather(city="Oslo", degrees=4)


def test_responses_whole_and_streamed(client: OpenAI) -> None:
    assert client.responses.create(model=MODEL, input="Hi").output_text == "Hello there."
    with client.responses.stream(model=MODEL, input="Hi") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert stream.get_final_response().output_text == "".join(deltas) == "Hello there."


def test_completions_embeddings_and_models(client: OpenAI) -> None:
    assert client.completions.create(model=MODEL, prompt="x", logprobs=1).choices[0].text == "Hello there."
    text = "".join(event.choices[0].text for event in client.completions.create(model=MODEL, prompt="x", stream=True))
    assert text == "Hello there."
    assert client.embeddings.create(model=MODEL, input=["a", "b"]).data[1].embedding == [0.5, -0.25, 1.0]
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve("alias").id == MODEL


def test_errors_are_the_clients_own(backend: ScriptedBackend, client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as overflow:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 300}])
    assert overflow.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="store"):
        client.chat.completions.create(model=MODEL, messages=HELLO, store=True)
    with pytest.raises(openai.InternalServerError) as full:
        client.chat.completions.create(model=MODEL, messages=HELLO, n=3)
    assert (full.value.status_code, full.value.code) == (503, "queue_full")
    backend.script = Script(fails_at=1)
    with pytest.raises(openai.APIError, match="its log has the reason"):
        for _ in client.chat.completions.create(model=MODEL, messages=HELLO, stream=True):
            pass
