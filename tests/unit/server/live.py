"""The server as it runs: uvicorn on a free port in a thread of its own, and clients over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI

from kvloom.config import ServerSettings
from kvloom.server.run import DrainingServer, listen, new_loop, uvicorn_config
from tests.unit.server.scripted import ScriptedBackend, app_over

PATIENCE_S = 20.0
"""No test waits this long where the server is right; a wrong one ends the test instead of the run."""


class Live:
    """A running server."""

    def __init__(self, app: FastAPI, settings: ServerSettings, bound: socket.socket) -> None:
        self.port: int = bound.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = app
        self._ready = threading.Event()
        self.server = DrainingServer(uvicorn_config(app, settings), app.state.service, self._ready.set)
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(bound,), daemon=True)

    def _run(self, bound: socket.socket) -> None:
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(self.server.serve_on(bound))
        finally:
            self.ended.set()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)

    def stop(self) -> None:
        """The first signal drains, the second ends."""
        self.server.stop()
        self.server.stop()
        assert self.ended.wait(PATIENCE_S)

    def send(self, body: dict[str, Any], path: str = "/v1/chat/completions") -> socket.socket:
        """A request over a socket that the test reads, or does not."""
        data = json.dumps(body).encode()
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        raw.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        return raw


@contextmanager
def live(backend: ScriptedBackend, **settings: Any) -> Iterator[Live]:
    app = app_over(backend, **settings)
    server = Live(app, ServerSettings(**settings), listen("127.0.0.1", 0))
    server.start()
    try:
        yield server
    finally:
        server.stop()


def read_until(raw: socket.socket, mark: bytes) -> bytes:
    """What comes up to and with the mark."""
    got = b""
    while mark not in got:
        more = raw.recv(65536)
        assert more, f"the connection ended before {mark!r}: {got[-200:]!r}"
        got += more
    return got
