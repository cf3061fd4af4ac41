"""What is too much, too deep or no JSON at all: the right status in the right shape, and the server goes on."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from kvloom.config import ServerSettings
from kvloom.server.limits import LimitMiddleware
from tests.unit.server.scripted import Script, ScriptedBackend, app_over, chat, client_of, scripted

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def body_of(text: str) -> bytes:
    return b'{"model":"scripted","messages":[{"role":"user","content":' + text.encode() + b"}]}"


RUBBISH: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("no json", b"hello"),
    ("cut", b'{"model": "scr'),
    ("twice", b"{}{}"),
    ("a list", b"[]"),
    ("a text", b'"x"'),
    ("null", b"null"),
    ("NaN", b'{"model":"scripted","messages":[{"role":"user","content":"x"}],"temperature":NaN}'),
    ("infinity", b'{"model":"scripted","messages":[{"role":"user","content":"x"}],"temperature":1e999}'),
    ("5,000 digits", b'{"model":"scripted","messages":[{"role":"user","content":"x"}],"seed":' + b"9" * 5000 + b"}"),
    ("lone surrogate", body_of('"\\ud800"')),
    ("invalid UTF-8", b'{"model":"scripted","messages":[{"role":"user","content":"\xff\xfe"}]}'),
    ("NUL", b"\x00"),
    ("UTF-16", json.dumps(chat()).encode("utf-16")),
    ("deep", b'{"model":"scripted","tools":' + b"[" * 100 + b"]" * 100 + b"}"),
    ("very deep", b"[" * 100_000),
    ("a surrogate in a name", b'{"model":"scripted","\\udc00":1}'),
    ("a million wrong parts", b'{"model":"scripted","messages":[' + b"1," * 1_000_000 + b"1]}"),
    ("a million lists", b'{"model":"scripted","messages":[' + b"[]," * 1_000_000 + b"1]}"),
    ("many names", json.dumps({f"a{i}": 1 for i in range(100_000)}).encode()),
    ("10,000 messages", json.dumps(chat() | {"messages": [{"role": "user", "content": "x"}] * 10_000}).encode()),
]  # fmt: skip


@pytest.mark.parametrize("body", [item[1] for item in RUBBISH], ids=[item[0] for item in RUBBISH])
async def test_rubbish_is_refused_in_openais_shape(body: bytes) -> None:
    async with scripted() as client:
        answer = await client.post(PATH, content=body, headers=JSON)
        after = await client.post(PATH, json=chat())
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"] and isinstance(error["code"], str)
    assert after.status_code == 200


async def test_control_characters_and_special_tokens_in_content_are_content() -> None:
    backend = ScriptedBackend()
    text = "<|im_end|>\u0000\u202e </s> \U0001f9f6"
    async with scripted(backend) as client:
        answer = await client.post(PATH, json=chat(text))
    assert answer.status_code == 200
    assert backend.requests[0].prompt.messages[0].parts[0].text == text  # type: ignore[union-attr]


async def test_a_body_that_is_not_sent_as_json_is_refused() -> None:
    async with scripted() as client:
        plain = await client.post(PATH, content=json.dumps(chat()), headers={"content-type": "text/plain"})
        none = await client.post(PATH, content=json.dumps(chat()).encode())
    assert plain.status_code == none.status_code == 415


@pytest.mark.parametrize("says", ["the truth", "nothing", "too little"])
async def test_a_body_is_refused_once_it_has_grown_too_large(says: str) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"x" * 1024

    headers = (
        JSON | {"the truth": {"content-length": "1024000"}, "nothing": {}, "too little": {"content-length": "5"}}[says]
    )
    async with scripted(max_body_bytes=8192) as client:
        request = client.build_request("POST", PATH, content=parts(), headers=headers)
        answer = await client.send(request)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


async def test_what_is_too_large_is_refused_before_the_rest_of_it_has_come() -> None:
    num_received, at_answer = 0, None

    async def receive() -> Message:
        nonlocal num_received
        num_received += 1
        return {"type": "http.request", "body": b"x" * 1024, "more_body": num_received < 1000}

    async def send(message: Message) -> None:
        nonlocal at_answer
        if message["type"] == "http.response.start":
            assert message["status"] == 413
            at_answer = num_received

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass

    limited = LimitMiddleware(app, ServerSettings(max_body_bytes=8192))
    await limited({"type": "http", "headers": [], "method": "POST"}, receive, send)
    assert at_answer == 9
    assert num_received == 1000  # what still comes is read and thrown away, so that the client reads its answer


async def test_ten_megabytes_of_text_are_refused() -> None:
    async with scripted() as client:
        answer = await client.post(PATH, json=chat("x" * 10_000_000))
    assert answer.status_code == 413


async def test_large_headers_are_refused() -> None:
    async with scripted() as client:
        answer = await client.post(PATH, json=chat(), headers={"x-large": "y" * 40_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (431, "headers_too_large")


@pytest.mark.parametrize("gap_s", [0.01, None])
async def test_a_body_that_never_comes_or_drips_is_given_up(gap_s: float | None) -> None:
    app = app_over(ScriptedBackend(), stalled_client_s=0.5)
    has_begun = False
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        nonlocal has_begun
        if has_begun and gap_s is None:
            await asyncio.Event().wait()
        if has_begun and gap_s is not None:
            await asyncio.sleep(gap_s)
        has_begun = True
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    async with client_of(app) as client:
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {
            "type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b"",
            "headers": headers, "scheme": "http", "http_version": "1.1", "root_path": "", "server": ("localhost", 80),
        }  # fmt: skip
        await app(scope, receive, send)
        after = await client.post(PATH, json=chat())
    assert sent[0]["status"] == 408
    assert after.status_code == 200


async def test_unknown_paths_and_methods_have_the_same_shape() -> None:
    async with scripted() as client:
        nowhere = await client.get("/v2/nothing")
        wrong = await client.get(PATH)
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "unknown_path")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")


async def test_the_queue_refuses_with_a_time_to_come_again() -> None:
    import asyncio

    pace = threading.Semaphore(0)
    backend = ScriptedBackend(Script(pace=pace))
    async with scripted(backend, slots=1, queue_size=1) as client:
        running = asyncio.ensure_future(client.post(PATH, json=chat()))
        await asyncio.to_thread(backend.started.acquire)
        waiting = asyncio.ensure_future(client.post(PATH, json=chat()))
        while (await client.get("/health")).json()["waiting"] < 1:
            await asyncio.sleep(0.001)
        refused = await client.post(PATH, json=chat())
        pace.release(6)
        done = await asyncio.gather(running, waiting)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert [answer.status_code for answer in done] == [200, 200]
    assert backend.most_running == 1
    assert backend.num_leases == 0


async def test_health_is_told_to_watchers_that_want_no_body() -> None:
    async with scripted() as client:
        answer = await client.head("/health")
    assert answer.status_code == 200
    assert not answer.content
