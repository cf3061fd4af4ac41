"""The Ollama probe against a server that gives recorded answers: the example of docs.ollama.com/api/ps, and others."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from kvloom.memory.ollama import TIMEOUT_S, OllamaProbe
from kvloom.memory.probe import read_memory
from kvloom.memory.reading import ServedModel

GEMMA = {
    "name": "gemma3", "model": "gemma3", "size": 6591830464,
    "digest": "a2af6cc3eb7fa8be8504abaf9b04e88f17a119ec3f04a3addf55f92841195f5a",
    "details": {
        "parent_model": "", "format": "gguf", "family": "gemma3", "families": ["gemma3"], "parameter_size": "4.3B",
        "quantization_level": "Q4_K_M",
    },
    "expires_at": "2025-10-17T16:47:07.93355-07:00", "size_vram": 5333539264, "context_length": 4096,
}  # fmt: skip
ON_CPU = {key: value for key, value in GEMMA.items() if key != "size_vram"} | {"name": "tiny:latest", "size": 70_000}


class Server:
    """Answers every request with `status` and `body`; with `is_stuck`, not at all until it is closed."""

    def __init__(self) -> None:
        self.status, self.body, self.is_stuck = 200, b"{}", False
        self.asked: list[str] = []
        self.release = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                if server.is_stuck:
                    server.release.wait(10)
                    return
                self.send_response(server.status)
                self.send_header("Content-Length", str(len(server.body)))
                self.end_headers()
                self.wfile.write(server.body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.address = f"127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        self.release.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("kvloom.memory.ollama.TIMEOUT_S", 20.0)  # it answers from a thread of this process
    server = Server()
    yield server
    server.close()


def test_loaded_models_are_told_with_what_they_hold_where(server: Server) -> None:
    server.body = json.dumps({"models": [GEMMA, ON_CPU]}).encode()
    picture = read_memory([OllamaProbe(server.address)])
    assert picture.served == (
        ServedModel("ollama", "gemma3", 5333539264, 6591830464 - 5333539264),
        ServedModel("ollama", "tiny:latest", 0, 70_000),
    )
    assert picture.failures == ()
    assert server.asked == ["/api/ps"]


@pytest.mark.parametrize("body", [b'{"models":[]}', b'{"models":null}'])
def test_a_server_at_rest_holds_nothing_and_is_no_failure(server: Server, body: bytes) -> None:
    server.body = body
    picture = read_memory([OllamaProbe(server.address)])
    assert not picture.served
    assert not picture.failures


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (500, b"oops", "status 500"),
        (404, b"404 page not found", "status 404"),
        (200, b"<html>", "no JSON"),
        (200, b"[]", "without a list"),
        (200, b'{"error": "busy"}', "without a list"),
        (200, b'{"models":[{"name":"x","size":5,"size_vram":6}]}', "claims 5 bytes, 6"),
        (200, b'{"models":[{"name":"x"}]}', "claims None"),
        (200, b'{"models":["x"]}', "claims None"),
    ],
)
def test_an_answer_that_cannot_be_is_a_failure_with_its_reason(
    server: Server, status: int, body: bytes, says: str
) -> None:
    server.status, server.body = status, body
    picture = read_memory([OllamaProbe(server.address)])
    assert picture.served == ()
    [failure] = picture.failures
    assert says in failure.reason


def test_a_wrong_model_leaves_the_others_told(server: Server) -> None:
    server.body = json.dumps({"models": [GEMMA, {"name": "x", "size": -1}]}).encode()
    picture = read_memory([OllamaProbe(server.address)])
    assert [model.name for model in picture.served] == ["gemma3"]
    assert len(picture.failures) == 1


def test_a_server_that_hangs_is_given_up_soon(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvloom.memory.ollama.TIMEOUT_S", TIMEOUT_S)
    server.is_stuck = True
    picture = read_memory([OllamaProbe(server.address)])
    assert TIMEOUT_S <= 1
    assert "timed out" in picture.failures[0].reason


def test_no_server_is_no_failure(server: Server) -> None:
    address = server.address
    server.close()
    server.close = lambda: None  # type: ignore[method-assign]
    picture = read_memory([OllamaProbe(address)])
    assert not picture.served
    assert not picture.failures


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", ("http", "127.0.0.1", 11434)),
        ("0.0.0.0", ("http", "127.0.0.1", 11434)),
        ("0.0.0.0:8080", ("http", "127.0.0.1", 8080)),
        (":8080", ("http", "127.0.0.1", 8080)),
        ("localhost", ("http", "localhost", 11434)),
        ("http://localhost", ("http", "localhost", 80)),
        ("https://localhost:8443/", ("https", "localhost", 8443)),
        ("[::1]:9000", ("http", "::1", 9000)),
        ("[::]", ("http", "127.0.0.1", 11434)),
        ("localhost:many", ("http", "127.0.0.1", 11434)),
    ],
)
def test_the_address_is_read_as_ollama_reads_it(given: str, expected: tuple[str, str, int]) -> None:
    probe = OllamaProbe(given)
    assert (probe._scheme, probe._host, probe._port) == expected
    assert probe.absence() == ""


@pytest.mark.parametrize("given", ["gpu-box:11434", "http://192.168.1.5", "ollama.example.org"])
def test_a_server_on_another_machine_takes_no_memory_here_and_is_not_asked(given: str) -> None:
    assert "another machine" in OllamaProbe(given).absence()


def test_the_variable_names_the_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.body = json.dumps({"models": [GEMMA]}).encode()
    monkeypatch.setenv("OLLAMA_HOST", f"http://{server.address}")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert len(read_memory([OllamaProbe()]).served) == 1
