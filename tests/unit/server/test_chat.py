"""Chat completions over the application itself: whole, streamed, with tools, refused."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from kvloom.session.requests import ChunkPart, Dropped, TextPart
from kvloom.types import Fidelity
from tests.unit.server.scripted import Script, ScriptedBackend, chat, scripted

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = ('<tool_call>\n{"name": "weather",', ' "arguments": {"city": "Oslo"}}\n', "</tool_call>")


def events_of(text: str) -> list[Any]:
    """The data of every event, the last one apart: it has to be the end."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") for block in blocks)
    assert blocks[-1] == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


async def test_a_reply_has_openais_shape_and_says_what_it_cost() -> None:
    backend = ScriptedBackend(Script(chunks=("ab" * 32,)))
    async with scripted(backend) as client:
        answer = await client.post(PATH, json=chat("How are you?"))
    assert answer.status_code == 200
    body = answer.json()
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hello there.", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["choices"][0]["logprobs"] is None
    assert body["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 3,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    report = body["kvloom"]
    assert (report["fidelity"], report["reused"], report["loaded"], report["computed"]) == ("exact", 1, 0, 3)
    assert report["chunks"] == ["ab" * 32]
    assert answer.headers["x-request-id"].startswith("req-")
    assert backend.num_leases == 0


async def test_a_stream_spells_the_same_reply_and_ends_with_done() -> None:
    async with scripted() as client:
        answer = await client.post(PATH, json=chat(stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == "Hello there."
    assert [e["choices"][0]["finish_reason"] for e in events] == [None] * 4 + ["stop"]
    assert len({e["id"] for e in events}) == 1
    assert all("usage" not in e for e in events)
    assert events[-1]["kvloom"]["computed"] == 1


async def test_usage_comes_with_its_own_last_event_where_it_is_asked_for() -> None:
    async with scripted() as client:
        answer = await client.post(PATH, json=chat(stream=True, stream_options={"include_usage": True}))
    events = events_of(answer.text)
    assert all(e["usage"] is None for e in events[:-1])
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 3


async def test_every_choice_is_drawn_its_own_way_and_comes_whole() -> None:
    backend = ScriptedBackend()
    async with scripted(backend) as client:
        whole = (await client.post(PATH, json=chat(n=3, seed=5))).json()
        streamed = events_of((await client.post(PATH, json=chat(n=3, seed=-1, stream=True))).text)
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert whole["usage"]["prompt_tokens"] == 2  # counted once
    assert whole["usage"]["completion_tokens"] == 9
    assert sorted(backend.seeds[:3], key=str) == [5, 6, 7]
    assert all(seed is not None and 0 <= seed < 2**32 - 1 for seed in backend.seeds)
    for index in range(3):
        mine = [e["choices"][0] for e in streamed if e["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "Hello there."
        assert mine[-1]["finish_reason"] == "stop"


async def test_every_parameter_reaches_the_engine() -> None:
    backend = ScriptedBackend()
    fields: dict[str, Any] = {
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repeat_penalty": 1.1,
        "presence_penalty": 0.25, "frequency_penalty": -0.5, "logit_bias": {"42": -100, "7": 1.5},
        "stop": ["\n\n", "END"], "top_logprobs": 2, "logprobs": True,
        "kvloom": {"fidelity": "splice", "overflow": "fifo"},
    }  # fmt: skip
    async with scripted(backend) as client:
        answer = await client.post(PATH, json=chat(**fields))
    assert answer.status_code == 200, answer.text
    request = backend.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 40, 0.05)
    assert (sampling.repeat_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.1, 0.25, -0.5)
    assert sampling.logit_bias == ((42, -100.0), (7, 1.5))
    assert (request.max_tokens, request.stop, request.top_logprobs) == (9, ("\n\n", "END"), 2)
    assert (request.fidelity, request.overflow) == (Fidelity.SPLICE, "fifo")


async def test_a_chunk_stands_in_a_message_by_reference() -> None:
    backend = ScriptedBackend()
    content = [{"type": "kvloom_chunk", "id": "utils.py"}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": content}]
    async with scripted(backend) as client:
        answer = await client.post(PATH, json=chat() | {"messages": messages})
    assert answer.status_code == 200
    prompt = backend.requests[0].prompt
    assert [message.role for message in prompt.messages] == ["system", "user"]  # type: ignore[union-attr]
    assert prompt.messages[1].parts == (ChunkPart("utils.py"), TextPart("What is it?"))  # type: ignore[union-attr]


async def test_what_a_policy_left_out_stands_in_the_body_and_in_a_header() -> None:
    dropped = (Dropped(1, "user", 120), Dropped(2, "assistant", 340))
    async with scripted(ScriptedBackend(Script(dropped=dropped))) as client:
        whole = await client.post(PATH, json=chat(kvloom={"overflow": "fifo"}))
        streamed = await client.post(PATH, json=chat(kvloom={"overflow": "fifo"}, stream=True))
    assert whole.headers["x-kvloom-dropped"] == streamed.headers["x-kvloom-dropped"] == "1:user:120,2:assistant:340"
    assert whole.json()["kvloom"]["dropped"][1] == {"index": 2, "role": "assistant", "num_tokens": 340}
    assert len(events_of(streamed.text)[-1]["kvloom"]["dropped"]) == 2


async def test_logprobs_come_with_their_bytes_and_alternatives() -> None:
    async with scripted() as client:
        whole = (await client.post(PATH, json=chat(logprobs=True, top_logprobs=2))).json()
        streamed = events_of((await client.post(PATH, json=chat(logprobs=True, stream=True))).text)
    content = whole["choices"][0]["logprobs"]["content"]
    assert [item["token"] for item in content] == ["Hello", " there", "."]
    assert content[0]["bytes"] == list(b"Hello")
    assert [top["logprob"] for top in content[0]["top_logprobs"]] == [-1.0, -2.0]
    told = [e["choices"][0]["logprobs"]["content"] for e in streamed if e["choices"][0]["logprobs"]]
    assert [item["token"] for items in told for item in items] == ["Hello", " there", "."]
    assert told[0][0]["top_logprobs"] == []


async def test_reasoning_is_told_apart_from_the_answer() -> None:
    async with scripted(ScriptedBackend(Script(reasoning=("Hm", "…")))) as client:
        whole = (await client.post(PATH, json=chat())).json()
        streamed = events_of((await client.post(PATH, json=chat(stream=True))).text)
    assert whole["choices"][0]["message"]["reasoning_content"] == "Hm…"
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3  # a character is a token there
    assert whole["choices"][0]["message"]["content"] == "Hello there."
    deltas = [e["choices"][0]["delta"] for e in streamed]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == "Hm…"
    assert "".join(d.get("content", "") for d in deltas) == "Hello there."


# --- tools and forms -------------------------------------------------------------------------------------------------


async def test_calls_are_read_out_of_a_reply_whole_and_streamed() -> None:
    backend = ScriptedBackend(Script(words=("Let me see.", *CALL)))
    async with scripted(backend) as client:
        whole = (await client.post(PATH, json=chat(tools=[WEATHER]))).json()
        streamed = events_of((await client.post(PATH, json=chat(tools=[WEATHER], stream=True))).text)
    choice = whole["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}
    deltas = [e["choices"][0]["delta"] for e in streamed]
    assert "".join(d.get("content", "") for d in deltas) == "Let me see."
    (streamed_call,) = [one for d in deltas for one in d.get("tool_calls", [])]
    assert streamed_call["index"] == 0 and streamed_call["id"].startswith("call_")
    assert json.loads(streamed_call["function"]["arguments"]) == {"city": "Oslo"}
    assert streamed[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert backend.requests[0].sampling.grammar
    assert backend.requests[0].prompt.tools[0]["function"]["name"] == "weather"  # type: ignore[union-attr]


async def test_without_a_choice_of_tools_the_reply_is_free() -> None:
    backend = ScriptedBackend()
    async with scripted(backend) as client:
        await client.post(PATH, json=chat(tools=[WEATHER], tool_choice="none"))
    assert backend.requests[0].sampling.grammar == ""
    assert backend.requests[0].prompt.tools == ()  # type: ignore[union-attr]


async def test_a_conversation_with_calls_comes_back_as_it_was_given() -> None:
    backend = ScriptedBackend()
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    async with scripted(backend) as client:
        answer = await client.post(PATH, json={"model": "scripted", "messages": messages})
    assert answer.status_code == 200, answer.text
    _, said, told = backend.requests[0].prompt.messages  # type: ignore[union-attr]
    assert (said.tool_calls[0].name, told.tool_call_id) == ("weather", "call_1")


async def test_json_is_asked_for_by_a_grammar() -> None:
    backend = ScriptedBackend()
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}}
    async with scripted(backend) as client:
        first = await client.post(PATH, json=chat(response_format={"type": "json_object"}))
        second = await client.post(PATH, json=chat(response_format=wanted))
        wrong = await client.post(
            PATH,
            json=chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}}),
        )
    assert first.status_code == second.status_code == 200
    grammars = [request.sampling.grammar for request in backend.requests]
    assert all(grammars) and grammars[0] != grammars[1]
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"] == "response_format.json_schema.schema"


async def test_a_model_without_a_form_for_tools_refuses_them_by_name() -> None:
    async with scripted(ScriptedBackend(tool_form="")) as client:
        answer = await client.post(PATH, json=chat(tools=[WEATHER]))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools"
    assert answer.json()["error"]["code"] == "unsupported_parameter"


# --- what is refused -------------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "Hi"}

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"audio": {"voice": "x"}}, "unsupported_parameter", "audio"),
    ({"store": True}, "unsupported_parameter", "store"),
    ({"temprature": 1}, "unknown_parameter", "temprature"),
    ({"max_tokens": 0}, "value_below_minimum", "max_tokens"),
    ({"max_tokens": 100_001}, "value_above_maximum", "max_tokens"),
    ({"max_tokens": "5"}, "invalid_type", "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "invalid_value", "max_tokens"),
    ({"temperature": -1}, "value_below_minimum", "temperature"),
    ({"n": 17}, "invalid_value", "n"),
    ({"stop": [""]}, "invalid_value", "stop"),
    ({"stop": ["x" * 2000]}, "invalid_value", "stop"),
    ({"stop": ["x"] * 17}, "invalid_value", "stop"),
    ({"logit_bias": {"x": 1}}, "invalid_value", "logit_bias"),
    ({"logit_bias": {"²": 1}}, "invalid_value", "logit_bias"),
    ({"logit_bias": {"5": 101}}, "value_above_maximum", "logit_bias.5"),
    ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ({"seed": 2**64}, "value_above_maximum", "seed"),
    ({"kvloom": {"overflow": "lifo"}}, "invalid_value", "kvloom.overflow"),
    ({"messages": []}, "value_below_minimum", "messages"),
    ({"messages": [USER] * 2049}, "invalid_value", "messages"),
    ({"messages": [{"role": "bot", "content": "x"}]}, "invalid_value", "messages[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "unsupported_parameter",
     "messages[0].content[0].type"),
    ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
    ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
    ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
    ({"tools": [WEATHER] * 65}, "invalid_value", "tools"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "code", "param"), WRONG, ids=[str(list(item[0]))[1:40] + item[2] for item in WRONG])
async def test_a_wrong_request_is_refused_by_name(fields: dict[str, Any], code: str, param: str) -> None:
    backend = ScriptedBackend()
    async with scripted(backend) as client:
        answer = await client.post(PATH, json=chat() | fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"] or "", error["type"]) == (code, param, "invalid_request_error")
    assert backend.num_leases == 0
    assert not backend.seeds


async def test_an_overflow_is_told_with_its_numbers() -> None:
    async with scripted() as client:
        long = await client.post(PATH, json=chat("word " * 300))
        greedy = await client.post(PATH, json=chat("Hi", max_tokens=300))
    for answer, count in ((long, 301), (greedy, 2)):
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert (error["code"], error["n_prompt_tokens"], error["n_ctx"]) == ("context_length_exceeded", count, 256)
        assert "maximum context length is 256 tokens" in error["message"]


async def test_an_unknown_model_is_told_with_those_that_there_are() -> None:
    async with scripted() as client:
        answer = await client.post(PATH, json=chat() | {"model": "gpt-4o"})
        alias = await client.post(PATH, json=chat() | {"model": "alias"})
    assert answer.status_code == 404
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("model_not_found", "model")
    assert "scripted" in answer.json()["error"]["message"]
    assert alias.json()["model"] == "scripted"


# --- failures --------------------------------------------------------------------------------------------------------


async def test_a_failure_says_nothing_of_its_inside(caplog: pytest.LogCaptureFixture) -> None:
    async with scripted(ScriptedBackend(Script(fails_at=0))) as client:
        whole = await client.post(PATH, json=chat())
        streamed = await client.post(PATH, json=chat(stream=True))
    for answer in (whole, streamed):
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert "secret" not in answer.text and "Traceback" not in answer.text
        assert answer.headers["x-request-id"]
    assert "a secret of the engine" in caplog.text  # the log has it


async def test_a_failure_in_mid_stream_is_an_event_and_the_slot_comes_back() -> None:
    backend = ScriptedBackend(Script(fails_at=2))
    async with scripted(backend, slots=1) as client:
        answer = await client.post(PATH, json=chat(stream=True))
        events = events_of(answer.text)
        assert answer.status_code == 200
        assert events[-1]["error"]["code"] == "internal_error"
        backend.script = Script()
        again = await client.post(PATH, json=chat())
    assert again.status_code == 200
    assert backend.num_leases == 0


async def test_one_choice_that_fails_ends_the_others() -> None:
    pace = threading.Semaphore(5)  # one more than there are choices: one of them comes to where it fails
    backend = ScriptedBackend(Script(words=["w"] * 50, fails_at=1, pace=pace))
    async with scripted(backend) as client:
        answer = await client.post(PATH, json=chat(n=4))
    assert answer.status_code == 500
    assert backend.idle.is_set()
