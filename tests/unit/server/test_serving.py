"""What only a running server shows: clients that leave or read nothing, draining, loading, ports."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from kvloom.errors import ConfigError, ModelFormatError
from kvloom.server.run import listen
from tests.unit.server.live import PATIENCE_S, Live, live, read_until
from tests.unit.server.scripted import Script, ScriptedBackend, app_over, chat


def becomes(what: Callable[[], bool]) -> bool:
    """Whether it becomes true; asks until it does, at most `PATIENCE_S`."""
    until = time.monotonic() + PATIENCE_S
    while not what():
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


def test_events_come_as_they_are_made() -> None:
    pace = threading.Semaphore(1)
    backend = ScriptedBackend(Script(pace=pace))
    with live(backend) as server, server.send(chat(stream=True)) as raw:
        assert b"Hello" in read_until(raw, b"Hello")
        assert backend.num_running == 1  # the rest has not been made yet
        pace.release(2)
        assert b"there" in read_until(raw, b"data: [DONE]")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_reply_within_one_step(stream: bool) -> None:
    pace = threading.Semaphore(2)
    backend = ScriptedBackend(Script(words=["w "] * 1000, pace=pace))
    with live(backend, slots=1) as server:
        raw = server.send(chat(stream=stream, max_tokens=200))
        assert backend.started.acquire(timeout=PATIENCE_S)
        if stream:
            read_until(raw, b"w ")
        raw.close()
        # No permit is given: only the cancellation can end the reply.
        assert backend.idle.wait(PATIENCE_S)
        assert becomes(lambda: backend.num_leases == 0)
        backend.script = Script()
        assert httpx.post(f"{server.url}/v1/chat/completions", json=chat()).status_code == 200


def test_a_client_that_leaves_the_queue_never_runs() -> None:
    pace = threading.Semaphore(0)
    backend = ScriptedBackend(Script(pace=pace))
    with live(backend, slots=1) as server:
        admission = server.app.state.service.admission
        with server.send(chat()):
            assert backend.started.acquire(timeout=PATIENCE_S)
            waiting = server.send(chat())
            assert becomes(lambda: admission.num_waiting == 1)
            waiting.close()
            assert becomes(lambda: admission.num_waiting == 0)
            pace.release(3)
            assert backend.idle.wait(PATIENCE_S)
        assert len(backend.seeds) == 1


def test_a_slow_reader_never_holds_the_engine_up_and_a_dead_one_is_given_up() -> None:
    words = ["a long word that fills buffers soon " * 200] * 3000
    backend = ScriptedBackend(Script(words=words), window=100_000)
    body = chat(stream=True, max_tokens=3000)
    with live(backend, slots=1, stalled_client_s=1.0) as server, server.send(body) as raw:
        # Nothing is read. The engine goes on to the end, and the slot is free again.
        assert backend.started.acquire(timeout=PATIENCE_S)
        assert backend.idle.wait(PATIENCE_S)
        assert becomes(lambda: server.app.state.service.lifecycle.num_running == 0)
        backend.script = Script()
        other = httpx.post(f"{server.url}/v1/chat/completions", json=chat(), timeout=PATIENCE_S)
        assert other.status_code == 200
        assert raw.recv(1)


def test_a_dead_reader_cancels_a_reply_that_still_runs() -> None:
    pace = threading.Semaphore(1500)
    words = ["a long word that fills buffers soon " * 200] * 3000
    backend = ScriptedBackend(Script(words=words, pace=pace), window=100_000)
    with live(backend, slots=1, stalled_client_s=1.0) as server, server.send(chat(stream=True, max_tokens=3000)):
        assert backend.started.acquire(timeout=PATIENCE_S)
        assert backend.idle.wait(PATIENCE_S)  # half of it has no permit: it was cancelled


def test_half_a_request_harms_nobody() -> None:
    with live(ScriptedBackend()) as server:
        for data in (
            b"",
            b"POST /v1/ch",
            b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 50\r\n\r\n{",
            b"\x16\x03\x01",
        ):
            raw = socket.create_connection(("127.0.0.1", server.port))
            raw.sendall(data)
            raw.close()
        assert httpx.post(f"{server.url}/v1/chat/completions", json=chat()).status_code == 200


# --- ending ----------------------------------------------------------------------------------------------------------


def test_a_draining_server_finishes_replies_and_takes_nothing_new() -> None:
    pace = threading.Semaphore(1)
    backend = ScriptedBackend(Script(pace=pace))
    with live(backend) as server:
        with server.send(chat(stream=True)) as raw:
            read_until(raw, b"Hello")
            server.server.stop()
            assert becomes(lambda: httpx.get(f"{server.url}/health").status_code == 503)
            refused = httpx.post(f"{server.url}/v1/chat/completions", json=chat())
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert "retry-after" in refused.headers
            assert httpx.get(f"{server.url}/health").json()["status"] == "draining"
            assert not server.ended.is_set()
            pace.release(2)
            assert b'"finish_reason":"stop"' in read_until(raw, b"data: [DONE]")
        assert server.ended.wait(PATIENCE_S)
        assert backend.is_closed


def test_a_drain_cancels_what_runs_past_its_time() -> None:
    backend = ScriptedBackend(Script(words=["w"] * 100, pace=threading.Semaphore(1)))
    with live(backend, drain_timeout_s=0.1) as server, server.send(chat(stream=True)) as raw:
        read_until(raw, b'"w"')
        server.server.stop()
        rest = read_until(raw, b"data: [DONE]")
        assert b'"code":"cancelled"' in rest and b"finish_reason" not in rest
        assert server.ended.wait(PATIENCE_S)
    assert backend.is_closed


# --- beginning -------------------------------------------------------------------------------------------------------


def test_while_the_model_loads_only_health_answers() -> None:
    loaded = threading.Event()
    backend = ScriptedBackend()

    async def loading() -> None:
        await asyncio.to_thread(loaded.wait, PATIENCE_S)

    backend.loading = loading
    app = app_over(backend)
    bound = listen("127.0.0.1", 0)
    server = Live(app, app.state.service.settings, bound)
    server._thread.start()
    try:
        health = httpx.get(f"{server.url}/health")
        asked = httpx.post(f"{server.url}/v1/chat/completions", json=chat())
        assert (health.status_code, health.json()["status"]) == (503, "loading")
        assert (asked.status_code, asked.json()["error"]["code"]) == (503, "loading")
        loaded.set()
        assert becomes(lambda: httpx.get(f"{server.url}/health").status_code == 200)
    finally:
        loaded.set()
        server.stop()


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_error() -> None:
    backend = ScriptedBackend()

    async def loading() -> None:
        raise ModelFormatError("cut off after 3 bytes")

    backend.loading = loading
    app = app_over(backend)
    bound = listen("127.0.0.1", 0)
    server = Live(app, app.state.service.settings, bound)
    with pytest.raises(ModelFormatError, match="cut off"):
        asyncio.run(server.server.serve_on(bound))


def test_a_port_in_use_is_told_and_two_restarts_in_a_row_work() -> None:
    first = listen("127.0.0.1", 0)
    port = first.getsockname()[1]
    with pytest.raises(ConfigError, match=f"port {port}.*--port"):
        listen("127.0.0.1", port)
    first.close()
    listen("127.0.0.1", port).close()
    with pytest.raises(ConfigError, match="no address"):
        listen("no-such-host.invalid", 1)


def test_each_request_writes_one_line_without_its_content(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kvloom.server")
    with live(ScriptedBackend()) as server:
        httpx.post(f"{server.url}/v1/chat/completions", json=chat("a secret text", user="u-1"))
        with httpx.stream(
            "POST", f"{server.url}/v1/chat/completions", json=chat("a secret text", stream=True)
        ) as answer:
            answer.read()
        assert becomes(lambda: len([r for r in caplog.records if r.message == "request"]) == 2)
    lines = [record for record in caplog.records if record.message == "request"]
    fields = [line.__dict__["fields"] for line in lines]
    [whole] = [one for one in fields if not one.get("stream")]
    [streamed] = [one for one in fields if one.get("stream")]
    assert whole["status"] == 200 and whole["completion_tokens"] == 3 and whole["user"] == "u-1"
    assert streamed["stream"] is True and streamed["model"] == "scripted"
    assert "secret" not in json.dumps(fields)
