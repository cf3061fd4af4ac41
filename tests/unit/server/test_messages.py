"""What a wrong request is told helps: the name as it was written, the names there are, the setting, the way out."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from kvloom.errors import CancelledError, ConfigError
from kvloom.server.errors import internal, to_api_error
from kvloom.server.known_names import names_at
from kvloom.server.logs import LEVELS, RequestNotes, log_failure, set_up_logging
from kvloom.server.run import listen
from kvloom.server.schema.chat import ChatRequest
from tests.unit.server.scripted import ScriptedBackend, chat, scripted

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
SESSIONS = "/v1/kvloom/sessions"


async def refused(path: str, body: Any) -> tuple[int, dict[str, Any]]:
    async with scripted(ScriptedBackend(has_embeddings=True)) as client:
        answer = await client.post(path, json=body)
    error = answer.json()["error"]
    assert isinstance(error, dict)
    return answer.status_code, error


@pytest.mark.parametrize(
    ("path", "body", "param", "told"),
    [
        (CHAT, chat(temprature=1), "temprature", "did you mean `temperature`?"),
        (CHAT, chat(kvloom={"fidelty": "exact"}), "kvloom.fidelty", "did you mean `fidelity`?"),
        (SESSIONS, {"fidelty": "exact"}, "fidelty", "did you mean `fidelity`?"),
        (f"{SESSIONS}/{'0' * 16}/resize", {"tokens": 4096}, "tokens", "known here: window."),
        (f"{SESSIONS}/{'0' * 16}/move", {"chunk": "a", "tp": 0}, "tp", "known here: "),
    ],
)
async def test_an_unknown_name_is_told_with_those_that_may_stand_there(
    path: str, body: Any, param: str, told: str
) -> None:
    status, error = await refused(path, body)
    assert (status, error["code"], error["param"]) == (400, "unknown_parameter", param)
    assert error["message"].endswith(told) or told in error["message"]
    assert f"did you mean `{param}`" not in error["message"]


def test_the_names_of_a_place_are_those_of_every_model_that_may_stand_there() -> None:
    beside_content = names_at(ChatRequest, ("messages", 0, "user", "cotent"))
    assert {"role", "content", "tool_call_id"} <= set(beside_content) and "temperature" not in beside_content
    assert "temperature" in names_at(ChatRequest, ("temprature",))
    assert names_at(None, ("x",)) == names_at(int, ("x",)) == []


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (chat() | {"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        (chat() | {"messages": ["x"]}, "messages[0]", "invalid_type"),
        (
            chat() | {"messages": [{"role": "user", "content": [{}]}]},
            "messages[0].content[0].type",
            "missing_required_parameter",
        ),
        (chat() | {"messages": [{"role": "user", "content": {"a": 1}}]}, "messages[0].content", "invalid_type"),
        (chat(top_logprobs=2), "top_logprobs", "invalid_value"),
        (chat(max_tokens=2, max_completion_tokens=3), "max_tokens", "invalid_value"),
        (chat(tool_choice="required"), "tool_choice", "invalid_value"),
        (chat(stream_options={"include_usage": True}), "stream_options", "invalid_value"),
    ],
)
async def test_the_parameter_at_fault_is_named(body: Any, param: str, code: str) -> None:
    status, error = await refused(CHAT, body)
    assert (status, error["param"], error["code"]) == (400, param, code)
    assert "discriminator" not in error["message"]


@pytest.mark.parametrize(
    ("given", "code", "param"),
    [
        (["a"] * 5000, "value_above_maximum", "input"),
        ([-1] * 3000, "value_below_minimum", "input[0]"),
        ([], "value_below_minimum", "input"),
        ("", "value_below_minimum", "input"),
    ],
)
async def test_of_a_union_the_branch_that_was_meant_is_told(given: Any, code: str, param: str) -> None:
    status, error = await refused("/v1/embeddings", {"model": "scripted", "input": given})
    assert (status, error["code"], error["param"]) == (400, code, param), error


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"model": "scripted", "prompt": "x " * 5000}, "prompt"),
        ("/v1/embeddings", {"model": "scripted", "input": "x " * 5000}, "input"),
        (CHAT, chat("x " * 5000), "messages"),
    ],
)
async def test_a_prompt_that_does_not_fit_is_named_as_it_was_sent(path: str, body: Any, param: str) -> None:
    status, error = await refused(path, body)
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", param), error


@pytest.mark.parametrize(
    ("body", "setting"),
    [
        (chat() | {"messages": [{"role": "user", "content": "x"}] * 3000}, "max_messages"),
        (chat(stop=["x"] * 17), "max_stops"),
        (chat(stop="x" * 1025), "max_stop_chars"),
        (chat(logit_bias={str(i): 1 for i in range(1025)}), "max_logit_bias"),
        (chat(n=17), "max_choices"),
    ],
)
async def test_a_limit_is_told_with_its_setting(body: Any, setting: str) -> None:
    status, error = await refused(CHAT, body)
    assert status == 400
    assert f"(setting server.{setting})" in error["message"]


async def test_the_tool_whose_schema_cannot_be_held_to_is_named_without_our_grammar() -> None:
    tools = [
        {"type": "function", "function": {"name": "good", "parameters": {"type": "object"}}},
        {"type": "function", "function": {"name": "bad", "parameters": {"type": "nosuch"}}},
    ]
    status, error = await refused(CHAT, chat(tools=tools))
    assert (status, error["param"]) == (400, "tools[1].function.parameters")
    assert "nosuch" in error["message"] and "call_0" not in error["message"]


async def test_a_function_that_is_named_is_called_once_unless_more_is_asked_for() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    named: dict[str, Any] = {"tools": tools, "tool_choice": {"type": "function", "function": {"name": "f"}}}
    backend = ScriptedBackend()
    async with scripted(backend) as client:
        for parallel in (None, False, True):
            await client.post(CHAT, json=chat(**named, parallel_tool_calls=parallel))
    said, once, many = (request.sampling.grammar for request in backend.requests)
    assert said == once != many


async def test_large_headers_are_told_with_their_setting() -> None:
    async with scripted() as client:
        answer = await client.post(CHAT, json=chat(), headers={"x-large": "y" * 40_000})
    assert "(setting server.max_header_bytes)" in answer.json()["error"]["message"]


async def test_a_query_parameter_is_named() -> None:
    async with scripted() as client:
        answer = await client.get("/v1/kvloom/chunks?limit=-1")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "limit")
    assert error["message"].startswith("`limit`: ")


async def test_a_packed_body_is_refused_as_what_it_is() -> None:
    async with scripted() as client:
        packed = await client.post(
            CHAT, content=b"\x1f\x8b\x08", headers={"content-type": "application/json", "content-encoding": "gzip"}
        )
        plain = await client.post(CHAT, json=chat(), headers={"content-encoding": "identity"})
    assert (packed.status_code, packed.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert "content-encoding" in packed.json()["error"]["message"]
    assert plain.status_code == 200


async def test_a_wrong_method_is_told_with_every_right_one() -> None:
    async with scripted() as client:
        chats = await client.get(CHAT)
        sessions = await client.put(SESSIONS)
    assert "takes POST" in chats.json()["error"]["message"] and chats.headers["allow"] == "POST"
    assert sessions.headers["allow"] == "GET, POST"
    assert "takes GET, POST" in sessions.json()["error"]["message"]


async def test_an_unknown_model_is_named_by_its_path_too() -> None:
    async with scripted() as client:
        answer = await client.get("/v1/models/scriptde")
    assert answer.status_code == 404
    assert "`scriptde`" in answer.json()["error"]["message"]


def test_an_address_of_another_machine_is_told_as_such() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1 port 0: .*--host") as found:
        listen("192.0.2.1", 0)
    assert "stop what listens there" not in str(found.value)


def test_a_port_in_use_is_told_as_such() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="stop what listens there"):
        listen("127.0.0.1", taken.getsockname()[1])


# --- the log ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def _kept_loggers() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in LEVELS]
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, handlers, propagate, level in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.mark.usefixtures("_kept_loggers")
@pytest.mark.parametrize("name", ["kvloom.server.requests", "kvloom.engine", "uvicorn.error", "asyncio"])
def test_whoever_writes_a_line_writes_json_where_json_is_asked_for(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging("json")
    logging.getLogger(name).warning("something %s", "odd")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "something odd"


async def test_a_long_path_is_cut_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kvloom.server")
    async with scripted() as client:
        answer = await client.get("/" + "a" * 20_000)
    assert answer.status_code == 404
    (line,) = [record for record in caplog.records if record.message == "request"]
    assert len(line.__dict__["fields"]["path"]) < 300


def test_what_a_server_does_on_purpose_leaves_no_traceback_in_its_log(caplog: pytest.LogCaptureFixture) -> None:
    meant, failed = CancelledError("the reply was cancelled"), RuntimeError("a fault")
    log_failure(to_api_error(meant), meant, RequestNotes("req-1"))
    assert not caplog.records
    log_failure(internal(), failed, RequestNotes("req-2"))
    assert caplog.records[0].exc_info is not None
