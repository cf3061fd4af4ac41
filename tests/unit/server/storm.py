"""A storm of clients on a real `kvloom serve`: they ask, stream, leave, stall, send rubbish and too much.

Whatever they do, the server answers or refuses: no 500, no traceback, and behind them everything is as it was before.
"""

from __future__ import annotations

import json
import random
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.unit.server.test_serve_command import command

WINDOW = 512
SLOTS = 4
STALLED_S = 5
PATIENCE_S = 60.0
"""For an answer, and for the server to come to rest."""
WORDS = ("the", "harbour", "has", "two", "piers", "and", "a", "bell", "日本", "é", "<|im_end|>", "{}", "\n")
CHAT = "/v1/chat/completions"
ENVIRONMENT = {
    "KVLOOM_SERVER__SLOTS": str(SLOTS),
    "KVLOOM_SERVER__QUEUE_SIZE": "6",
    "KVLOOM_SERVER__STALLED_CLIENT_S": str(STALLED_S),
    "KVLOOM_SERVER__MAX_BODY_BYTES": "1MB",
    "KVLOOM_SERVER__SESSION_IDLE_S": "3",
    # Small tiers, so that they are full soon and memory is what it will be.
    "KVLOOM_RAM_BUDGET_BYTES": "8MB",
    "KVLOOM_DISK_BUDGET_BYTES": "32MB",
    "KVLOOM_GUARD__ENABLED": "false",
}


class Server:
    """The running command. Its log is a file: a pipe that nobody reads would stop it."""

    def __init__(self, home: Path, model: Path) -> None:
        line, environment = command(home, "serve", "-m", str(model), "-c", str(WINDOW), "--port", "0", "--json")
        home.mkdir(parents=True, exist_ok=True)
        self.log = home / "serve.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                line, env={**environment, **ENVIRONMENT}, stdout=subprocess.PIPE, stderr=log
            )
        assert self.process.stdout is not None
        told = b""
        while not told.rstrip().endswith(b"}"):
            read = self.process.stdout.readline()
            assert read, self.log.read_text()
            told += read
        about = json.loads(told)
        self.model: str = about["model"]
        self.url: str = about["url"].removesuffix("/v1")
        self.port = int(self.url.rpartition(":")[2])
        self._child = psutil.Process(self.process.pid)

    def rss_bytes(self) -> int:
        return int(self._child.memory_info().rss)

    def num_files(self) -> int:
        """Open files and connections."""
        return int(self._child.num_fds())

    def num_threads(self) -> int:
        return int(self._child.num_threads())

    def wait_for_rest(self) -> None:
        """Until no reply runs or waits."""
        until_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s:
            health = httpx.get(f"{self.url}/health", timeout=PATIENCE_S).json()
            if not health["running"] and not health["waiting"]:
                return
            time.sleep(0.05)
        raise AssertionError(f"after {PATIENCE_S:.0f} s it still works: {health}")

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def running(home: Path, model: Path) -> Iterator[Server]:
    server = Server(home, model)
    try:
        yield server
    finally:
        server.close()


@dataclass
class Seen:
    """What the clients saw. `wrong`: what must not be."""

    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, status: int, text: str = "") -> None:
        with self.lock:
            self.answers[f"{kind} {status}"] += 1
            is_full = status == 503 and '"code":"queue_full"' in text
            if status >= 500 and not is_full:
                self.wrong.append(f"{kind}: {status} {text[:400]}")

    def fail(self, text: str) -> None:
        with self.lock:
            self.wrong.append(text[:600])


class Client:
    """One client with a mood of its own."""

    def __init__(self, server: Server, seen: Seen, seed: int) -> None:
        self.server, self.seen = server, seen
        self.random = random.Random(seed)
        self.http = httpx.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False)
        self.left_open: list[socket.socket] = []
        self.moods: list[Callable[[], None]] = [
            self.asks, self.asks, self.streams, self.streams, self.leaves, self.leaves, self.sends_rubbish,
            self.sends_rubbish, self.asks_too_much, self.stops_often, self.wants_a_grammar, self.half_opens,
            self.reads_slowly, self.sends_a_huge_body, self.uses_a_chunk, self.has_a_session, self.embeds, self.looks,
        ]  # fmt: skip

    def run(self, until_s: float) -> None:
        try:
            while time.monotonic() < until_s:
                mood = self.random.choice(self.moods)
                try:
                    mood()
                except (httpx.HTTPError, OSError) as error:
                    self.seen.fail(f"{mood.__name__}: {error!r}")
        finally:
            for raw in self.left_open:
                raw.close()
            self.http.close()

    # -- who behaves ------------------------------------------------------------------------------------------------

    def asks(self) -> None:
        body = self.body()
        if self.random.random() < 0.2:
            body |= {"n": 3, "seed": 1}
        if self.random.random() < 0.2:
            body |= {"logprobs": True, "top_logprobs": 3}
        self.post("asks", CHAT, body)

    def streams(self) -> None:
        body = self.body() | {"stream": True, "stream_options": {"include_usage": True}}
        answer = self.post("streams", CHAT, body)
        if answer.status_code == 200:
            self.check_stream(answer.text)

    def stops_often(self) -> None:
        number = self.random.choice([1, 16, 17, 500])
        stops = [f"{self.random.choice(WORDS)}{i}" for i in range(number)]
        answer = self.post("stops", "/v1/completions", self.raw_body() | {"stop": stops})
        if number > 16 and answer.status_code != 400:
            self.seen.fail(f"{number} stops were answered {answer.status_code}")

    def wants_a_grammar(self) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}}
        strict = {"name": "s", "schema": schema, "strict": True}
        kind = self.random.choice(
            [{"type": "json_object"}, {"type": "json_schema", "json_schema": strict}, {"type": "grammar"}]
        )
        self.post("grammar", CHAT, self.body() | {"response_format": kind, "max_tokens": 24})

    def embeds(self) -> None:
        texts = [self.text(self.random.choice([1, 40])) for _ in range(self.random.choice([1, 5]))]
        self.post("embeds", "/v1/embeddings", {"model": self.server.model, "input": texts})

    def uses_a_chunk(self) -> None:
        name = f"note-{self.random.getrandbits(40)}.txt"
        made = self.post("uploads", "/v1/kvloom/chunks", {"name": name, "text": self.text(60)})
        if made.status_code not in (200, 201):
            return
        ref = made.json()["id"]
        content = [{"type": "kvloom_chunk", "id": ref}, {"type": "text", "text": "What is it?"}]
        fidelity = self.random.choice(["exact", "splice", "blend"])
        body = self.body() | {"messages": [{"role": "user", "content": content}], "kvloom": {"fidelity": fidelity}}
        self.post("asks about a chunk", CHAT, body)
        gone = self.http.delete(f"/v1/kvloom/chunks/{ref}", params={"purge": "true"})
        self.seen.note("purges", gone.status_code, gone.text)

    def has_a_session(self) -> None:
        made = self.post("opens a session", "/v1/kvloom/sessions", {"system": self.text(5)})
        if made.status_code not in (200, 201):
            return
        at = f"/v1/kvloom/sessions/{made.json()['id']}"
        turn = {"text": self.text(20), "max_tokens": 12}
        self.post("turn", f"{at}/turns", turn)
        self.post("streamed turn", f"{at}/turns", turn | {"stream": True})
        self.leave(f"{at}/turns", turn | {"stream": True, "max_tokens": 200})
        for verb in ("undo", "snapshots", "clear", "retry"):
            self.post(verb, f"{at}/{verb}", {})
        for looked in ("usage", "history", "ledger"):
            found = self.http.get(f"{at}/{looked}")
            self.seen.note(looked, found.status_code, found.text)
        # The turn that was left may still run for a step.
        for _ in range(100):
            gone = self.http.delete(at)
            if gone.status_code != 409:
                break
            time.sleep(0.05)
        self.seen.note("deletes a session", gone.status_code, gone.text)
        if gone.status_code not in (200, 204):
            self.seen.fail(f"a session cannot be deleted: {gone.status_code} {gone.text}")

    def looks(self) -> None:
        path = self.random.choice(
            [
                "/health",
                "/metrics",
                "/v1/models",
                "/v1/kvloom/status",
                "/openapi.json",
                "/v1/kvloom/sessions",
                "/nothing",
            ]
        )
        found = self.http.get(path)
        self.seen.note("looks", found.status_code, found.text)

    # -- who does not -------------------------------------------------------------------------------------------------

    def leaves(self) -> None:
        path = self.random.choice([CHAT, "/v1/completions", "/v1/embeddings"])
        body = self.body() if path == CHAT else self.raw_body()
        body = body | {"max_tokens": 300, "stream": self.random.random() < 0.7}
        if path == "/v1/embeddings":
            body = {"model": self.server.model, "input": [self.text(100)] * 20}
        self.leave(path, body)

    def sends_rubbish(self) -> None:
        body: bytes = self.random.choice(
            [
                self.random.randbytes(self.random.choice([0, 10, 3000])), b"{", b"[" * 5000, b'{"model": NaN}',
                b'{"model": "x", "messages": "\\ud800"}', b'{"a": ' + b"1" * 5000 + b"}", b"null", b'"\xff\xfe"',
                json.dumps(self.body() | {"messages": [{"role": "user", "content": 5}]}).encode(),
                json.dumps(self.body() | {"temperature": -1e308}).encode(),
                json.dumps(self.body() | {"max_tokens": -1}).encode(),
                json.dumps(self.body() | {"no_such_parameter": 1}).encode(),
                json.dumps(self.body() | {"model": "no-such-model"}).encode(),
                json.dumps(self.body() | {"tools": [{"type": "function"}]}).encode(),
            ]
        )  # fmt: skip
        path = self.random.choice([CHAT, "/v1/completions", "/v1/responses", "/v1/kvloom/chunks", "/v1/embeddings"])
        answer = self.http.post(path, content=body, headers={"content-type": "application/json"})
        self.seen.note("rubbish", answer.status_code, answer.text)
        if answer.status_code < 400:
            self.seen.fail(f"rubbish was taken by {path}: {body[:100]!r} gave {answer.text[:200]}")

    def asks_too_much(self) -> None:
        more: dict[str, Any] = self.random.choice(
            [
                {"max_tokens": 99_999}, {"messages": [{"role": "user", "content": self.text(WINDOW)}]},
                {"messages": [{"role": "user", "content": "x"}] * 10_000}, {"n": 1000},
                {"logit_bias": {str(i): 1 for i in range(2000)}},
            ]
        )  # fmt: skip
        answer = self.post("too much", CHAT, self.body() | more)
        if answer.status_code < 400:
            self.seen.fail(f"too much was taken: {str(more)[:100]}")

    def half_opens(self) -> None:
        """Part of a request, and then nothing; some are closed at once, some in the end."""
        raw = self.connect()
        data = self.request(CHAT, self.body())
        raw.sendall(data[: self.random.randrange(len(data))])
        self.seen.note("half open", 0)
        if self.random.random() < 0.5 or len(self.left_open) > 10:
            raw.close()
        else:
            self.left_open.append(raw)

    def reads_slowly(self) -> None:
        raw = self.connect()
        raw.sendall(self.request(CHAT, self.body() | {"stream": True, "max_tokens": 300}))
        self.seen.note("reads slowly", 0)
        for _ in range(self.random.randrange(4)):
            time.sleep(0.1)
            if not raw.recv(64):
                break
        raw.close()

    def sends_a_huge_body(self) -> None:
        raw = self.connect()
        size = 10 * 1024**2
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        raw.sendall(f"{head}content-length: {size}\r\n\r\n".encode())
        # It may answer and close before all of it is sent.
        with suppress(ConnectionError):
            for _ in range(size // 65536):
                raw.sendall(b"x" * 65536)
        with suppress(ConnectionError):
            got = raw.recv(65536)
            if not got:
                return
            status = int(got.split(b" ")[1])
            self.seen.note("huge body", status)
            if status != 413:
                self.seen.fail(f"a huge body was answered {status}")
        raw.close()

    # -- how -----------------------------------------------------------------------------------------------------------

    def text(self, num_words: int) -> str:
        return " ".join(self.random.choice(WORDS) for _ in range(num_words))

    def body(self) -> dict[str, Any]:
        content = self.text(self.random.choice([1, 10, 60]))
        body = {"model": self.server.model, "messages": [{"role": "user", "content": content}]}
        return body | {"max_tokens": self.random.choice([1, 8, 30]), "temperature": self.random.choice([0, 1])}

    def raw_body(self) -> dict[str, Any]:
        return {"model": self.server.model, "prompt": self.text(20), "max_tokens": 8}

    def post(self, kind: str, path: str, body: dict[str, Any]) -> httpx.Response:
        answer = self.http.post(path, json=body)
        self.seen.note(kind, answer.status_code, answer.text)
        return answer

    def check_stream(self, text: str) -> None:
        if text.endswith("data: [DONE]\n\n") and '"error"' not in text:
            return
        if '"code":"queue_' not in text:
            self.seen.fail(f"a stream ended so: {text[-300:]}")

    def leave(self, path: str, body: dict[str, Any]) -> None:
        raw = self.connect()
        raw.sendall(self.request(path, body))
        if self.random.random() < 0.5:
            raw.settimeout(self.random.random())
            with suppress(TimeoutError):
                raw.recv(self.random.choice([1, 500, 5000]))
        else:
            time.sleep(self.random.random() * 0.1)
        if self.random.random() < 0.5:  # with a reset instead of an end
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        raw.close()
        self.seen.note("leaves", 0)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE_S)

    @staticmethod
    def request(path: str, body: dict[str, Any]) -> bytes:
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


@dataclass(frozen=True)
class Rest:
    """The server between two storms, when nobody asks anything."""

    rss_bytes: int
    num_files: int
    num_threads: int
    used_cells: int


def storm(server: Server, seen: Seen, seconds: float, num_clients: int, seed: int) -> Rest:
    """Clients for so many seconds; then the server as they have left it."""
    until_s = time.monotonic() + seconds
    clients = [Client(server, seen, seed + number) for number in range(num_clients)]
    threads = [threading.Thread(target=client.run, args=(until_s,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.wait_for_rest()
    check_every_slot(server, seen)
    time.sleep(0.5)  # connections that were closed are seen by the event loop
    status = httpx.get(f"{server.url}/v1/kvloom/status", timeout=PATIENCE_S).json()
    return Rest(server.rss_bytes(), server.num_files(), server.num_threads(), status["server"]["used_cells"])


def check_every_slot(server: Server, seen: Seen) -> None:
    """As many replies at once as there are slots, each with a whole window: every slot and cell is there again."""
    prompt = "x" * (WINDOW * 3 // 4)
    body = {"model": server.model, "max_tokens": WINDOW - len(prompt) - 1, "temperature": 0}

    def ask(number: int) -> None:
        text = f"{number}{prompt[1:]}"
        answer = httpx.post(f"{server.url}/v1/completions", json=body | {"prompt": text}, timeout=PATIENCE_S)
        if answer.status_code != 200:
            seen.fail(f"a slot or its cells did not come back: {answer.status_code} {answer.text}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(SLOTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.wait_for_rest()


def check_log(server: Server) -> None:
    text = server.log.read_text(encoding="utf-8", errors="replace")
    for mark in ("status=500", "internal_error", "Exception in ASGI", "was never retrieved"):
        at = text.find(mark)
        assert at < 0, text[max(0, at - 1000) : at + 3000]
