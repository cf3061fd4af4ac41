"""What a connection answers before there is a request: rubbish, heads that never come, upgrades. Over real sockets."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from typing import Any

import httpx
import pytest

from tests.unit.server.live import PATIENCE_S, Live, live, read_until
from tests.unit.server.scripted import Script, ScriptedBackend, chat


def exchanged(server: Live, data: bytes) -> bytes:
    """All that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as raw:
        raw.sendall(data)
        return rest_of(raw)


def rest_of(raw: socket.socket) -> bytes:
    got = b""
    while more := raw.recv(65536):
        got += more
    return got


def send_for(raw: socket.socket, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        raw.sendall(b"x" * 1024)
        time.sleep(0.01)  # a client that drips, not one that floods


def answer_of(got: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = got.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    ],
    ids=["TLS", "HTTP/0.9", "a header without a colon", "a negative length", "two lengths"],
)
def test_what_is_no_http_is_refused_in_openais_shape(data: bytes) -> None:
    with live(ScriptedBackend()) as server:
        status, error = answer_of(exchanged(server, data))
        assert (status, error["type"], error["code"]) == (400, "invalid_request_error", "invalid_http")
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_rubbish_behind_a_request_that_is_being_answered_ends_the_connection_and_the_reply() -> None:
    pace = threading.Semaphore(1)
    backend = ScriptedBackend(Script(words=["w"] * 100, pace=pace))
    with live(backend) as server, server.send(chat(stream=True)) as raw:
        assert backend.started.acquire(timeout=PATIENCE_S)
        raw.sendall(b"\x00rubbish\r\n\r\n")
        raw.shutdown(socket.SHUT_WR)
        rest_of(raw)
        assert backend.idle.wait(PATIENCE_S)
        backend.script = Script()
        assert httpx.post(f"{server.url}/v1/chat/completions", json=chat()).status_code == 200


def test_a_client_that_asks_twice_at_once_gets_both_answers_in_order() -> None:
    asks = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    pace = threading.Semaphore(0)
    backend = ScriptedBackend(Script(pace=pace))
    with live(backend) as server, server.send(chat()) as raw:
        assert backend.started.acquire(timeout=PATIENCE_S)
        raw.sendall(asks + asks.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        pace.release(3)
        got = rest_of(raw)
    assert got.count(b"HTTP/1.1 200 OK") == 3
    assert got.index(b"chat.completion") < got.index(b'"status":"ok"')


def test_a_client_that_leaves_with_another_request_on_its_way_is_noticed() -> None:
    pace = threading.Semaphore(0)
    backend = ScriptedBackend(Script(words=["w"] * 100, pace=pace))
    with live(backend) as server:
        raw = server.send(chat())
        assert backend.started.acquire(timeout=PATIENCE_S)
        time.sleep(0.05)  # the server waits for the client's leaving by now
        raw.sendall(b"GET /health HTTP/1.1\r\n")
        raw.close()
        assert backend.idle.wait(PATIENCE_S)  # no permit is given: only the cancellation can end the reply


def test_a_chunked_body_that_is_none_is_refused_in_openais_shape() -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with live(ScriptedBackend()) as server:
        status, error = answer_of(exchanged(server, head + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n"))
    assert (status, error["code"]) == (400, "invalid_http")


def test_half_a_head_is_given_up_after_its_time_however_it_drips() -> None:
    with (
        live(ScriptedBackend(), stalled_client_s=1.5) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=0.05) as raw,
    ):
        raw.sendall(b"GET /health HTTP/1.1\r\n")
        until = time.monotonic() + PATIENCE_S
        got = b""
        while not got and time.monotonic() < until:
            try:
                got = raw.recv(65536)
            except TimeoutError:
                raw.sendall(b"x-a: b\r\n")
        raw.settimeout(PATIENCE_S)
        assert answer_of(got + rest_of(raw))[0] == 408


def test_a_client_that_sends_on_still_gets_to_read_why_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvloom.server.connection.LINGER_S", PATIENCE_S)  # until the client closes, however slow it is
    with live(ScriptedBackend()) as server, socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.settimeout(PATIENCE_S)
        raw.sendall(b"GET /\r\n\r\n")
        got = raw.recv(1)
        for _ in range(20):  # bytes that nobody reads would have the system reset the connection, and its answer lost
            raw.sendall(b"x" * 1024)
        assert answer_of(got + rest_of(raw))[0] == 400


@pytest.mark.parametrize("said", ["content-length: 64000000", "transfer-encoding: chunked"])
def test_a_client_that_sends_too_large_a_body_gets_to_read_that_it_is(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvloom.server.limits.LINGER_S", PATIENCE_S)
    with (
        live(ScriptedBackend(), max_body_bytes=100_000) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as raw,
    ):
        raw.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{said}\r\n\r\n".encode())
        for _ in range(4):  # on its way before the answer is read, as of a client that sends first and reads then
            raw.sendall(b"f4240\r\n" + b"x" * 1_000_000 + b"\r\n")
        raw.shutdown(socket.SHUT_WR)
        status, error = answer_of(rest_of(raw))
        assert (status, error["code"]) == (413, "request_too_large")


def test_a_broken_body_ends_the_reply_that_was_being_made_and_says_so() -> None:
    head = b"HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"
    with live(ScriptedBackend()) as server:
        status, error = answer_of(exchanged(server, b"POST /v1/completions " + head))
        assert (status, error["code"]) == (400, "invalid_http")


def test_a_broken_request_of_a_head_alone_is_answered_with_a_head(caplog: pytest.LogCaptureFixture) -> None:
    head = b"HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"
    with live(ScriptedBackend()) as server:
        got = exchanged(server, b"HEAD /v1/completions " + head)
    assert got.startswith(b"HTTP/1.1 400 ")
    assert got.endswith(b"\r\n\r\n")
    assert not [record for record in caplog.records if record.exc_info]


def test_a_client_that_floods_is_not_read_for_long() -> None:
    with live(ScriptedBackend()) as server, socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.settimeout(PATIENCE_S)
        raw.sendall(b"GET /\r\n\r\n")
        began = time.monotonic()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            raw.sendall(b"x" * 50_000_000)
        assert time.monotonic() - began < PATIENCE_S


def test_a_client_that_sends_on_and_on_is_left_after_a_while() -> None:
    with live(ScriptedBackend()) as server, socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(b"GET /\r\n\r\n")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_for(raw, PATIENCE_S)


def test_a_connection_that_says_nothing_is_closed_and_one_that_is_answered_is_not() -> None:
    pace = threading.Semaphore(0)
    with live(ScriptedBackend(Script(pace=pace)), stalled_client_s=1.5) as server, server.send(chat()) as asked:
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as silent:
            assert rest_of(silent) == b""
        pace.release(3)
        assert b" 200 " in asked.recv(65536)  # it has waited for longer than a head may take


def test_a_connection_is_used_again_after_an_answer() -> None:
    asks = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with (
        live(ScriptedBackend()) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as raw,
    ):
        for _ in range(3):
            raw.sendall(asks)
            assert b" 200 " in read_until(raw, b"}")


def test_an_upgrade_that_is_not_offered_is_not_taken_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    asks = b"GET /health HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n"
    with live(ScriptedBackend()) as server:
        assert b" 200 " in exchanged(server, asks)
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]
