"""llama.cpp's own server as a peer: a child process with its own memory and threads, asked over loopback.

Knows token ids and times. The server comes from the wheel `xllamacpp`, a dependency of the benchmarks only.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kvloom.errors import EngineError, UsageError
from kvloom.types import KVType

START_TIMEOUT_S = 300.0
"""A large model on a slow disk takes minutes to load."""
STOP_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 1800.0
"""A full prefill of a long prompt on a small machine."""

LAST_WORDS = 600
"""Characters of the log that an error quotes."""

GGML_TYPES: Mapping[KVType, int] = {KVType.F16: 1, KVType.Q8_0: 8, KVType.Q4_0: 2}
"""ggml's numbers of the types that a KV cache may have."""


@dataclass(frozen=True)
class PeerSettings:
    """How the server is started. The rest stays at the server's own defaults (batch sizes, warm-up, prompt cache)."""

    model: str
    n_ctx: int
    threads: int
    threads_batch: int
    cache_type_k: int = GGML_TYPES[KVType.F16]
    cache_type_v: int = GGML_TYPES[KVType.F16]
    flash_attn: int = 1
    cache_reuse: int = 0
    cache_ram_mib: int = 8192
    slots: int = 1
    slot_save_path: str = ""
    embeddings: bool = False


@dataclass(frozen=True)
class PeerAnswer:
    """One completion. `ttft_s` is the client's time to the first streamed token, the rest is the server's own count."""

    ttft_s: float
    total_s: float
    tokens: tuple[int, ...]
    num_predicted: int
    computed_tokens: int
    cached_tokens: int
    server_prompt_s: float

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed behind the first token. The server holds back parts of characters, so it counts itself."""
        spent = self.total_s - self.ttft_s
        return (self.num_predicted - 1) / spent if spent > 0 else 0.0


def require_peer() -> None:
    """Raises UsageError where the peer's wheel is not installed."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise UsageError(
            "the benchmarks run beside llama.cpp's own server, and the package xllamacpp that carries it is not "
            "installed; `make bench` installs it, or pip install 'kvloom[bench]'"
        )


class Peer:
    """A running server. A context manager: the child is gone at the end, whatever happens."""

    def __init__(self, settings: PeerSettings) -> None:
        require_peer()
        self.settings = settings
        began = time.perf_counter()
        command = [sys.executable, "-m", "kvloom.bench.peer_server", json.dumps(asdict(settings))]
        # Its log goes to a file: a full pipe that no one reads would stop it.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=child_environment()
        )
        try:
            address = urlsplit(self._address())
            self._host, self._port = address.hostname or "127.0.0.1", address.port or 0
            self._wait_for_health()
        except BaseException:
            self.close()
            raise
        self.load_s = time.perf_counter() - began

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def complete(self, tokens: Sequence[int], num_predict: int = 1) -> PeerAnswer:
        """Greedy completion of exactly these token ids, with the server's prompt cache."""
        answer = self._complete(tokens, num_predict, None)
        assert answer is not None, "nothing was to be given up"
        return answer

    def complete_below(self, tokens: Sequence[int], num_tokens: int) -> PeerAnswer | None:
        """The first token of a completion, or None at once if the server says that it will have to compute at least
        `num_tokens`; what its slot holds then is undefined."""
        return self._complete(tokens, 1, num_tokens)

    def save_slot(self, filename: str) -> int:
        """Write the slot's state under `slot_save_path`; the tokens saved."""
        return int(self._post("/slots/0?action=save", {"filename": filename})["n_saved"])

    def restore_slot(self, filename: str) -> float:
        """Read a saved state back; seconds that the call took."""
        began = time.perf_counter()
        self._post("/slots/0?action=restore", {"filename": filename})
        return time.perf_counter() - began

    def close(self) -> None:
        """End the child: its standard input ends, then it is asked, then it is killed. Idempotent."""
        process = self._process
        if process.stdin is not None and not process.stdin.closed:
            process.stdin.close()
        for stop in (process.terminate, process.kill):
            try:
                process.wait(1.0)
                break
            except subprocess.TimeoutExpired:
                stop()
        process.wait(STOP_TIMEOUT_S)
        if process.stdout is not None:
            process.stdout.close()
        self._log.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _complete(self, tokens: Sequence[int], num_predict: int, give_up_at: int | None) -> PeerAnswer | None:
        body = {
            "prompt": list(tokens),
            "n_predict": num_predict,
            "cache_prompt": True,
            "stream": True,
            "return_tokens": True,
            "return_progress": give_up_at is not None,
            "temperature": 0.0,
            "id_slot": 0,
        }
        connection = self._connect()
        try:
            began = time.perf_counter()
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise EngineError(f"the peer answered {response.status}: {response.read()[:500]!r}")
            return _read_stream(response, began, give_up_at)
        finally:
            connection.close()

    def _address(self) -> str:
        """The address that the child prints once it listens."""
        assert self._process.stdout is not None
        # The server's own start-up lines may come first: ours is the JSON one.
        deadline = time.monotonic() + START_TIMEOUT_S
        pending = b""
        while True:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise EngineError(f"the peer did not start within {START_TIMEOUT_S:.0f} s")
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                code = self._process.wait(STOP_TIMEOUT_S)
                raise EngineError(
                    f"the peer ended with code {code} while it loaded {self.settings.model}: {self._last_words()}"
                )
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                if line.startswith(b'{"address"'):
                    return str(json.loads(line)["address"])

    def _wait_for_health(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                code = self._process.returncode
                raise EngineError(f"the peer ended with code {code} before it was ready: {self._last_words()}")
            try:
                connection = self._connect()
                connection.request("GET", "/health")
                status = connection.getresponse().status
                connection.close()
            except OSError:
                status = 0
            if status == http.client.OK:
                return
            time.sleep(0.05)  # polling another process
        raise EngineError(f"the peer was not ready within {START_TIMEOUT_S:.0f} s")

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")[-LAST_WORDS:].strip() or "it gave no reason"

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        connection = self._connect()
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise EngineError(f"the peer answered {response.status} to {path}: {text[:500]!r}")
        answer = json.loads(text)
        assert isinstance(answer, dict), "the server answers with an object"
        return answer

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, self._port, timeout=REQUEST_TIMEOUT_S)


def _read_stream(response: http.client.HTTPResponse, began: float, give_up_at: int | None) -> PeerAnswer | None:
    """The answer of a streamed completion; None where its progress says that `give_up_at` tokens will be computed."""
    first = 0.0
    ids: list[int] = []
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        event: dict[str, Any] = json.loads(line[len(b"data: ") :])
        now = time.perf_counter() - began
        progress = event.get("prompt_progress")
        if progress is not None:
            if give_up_at is not None and progress["total"] - progress["cache"] >= give_up_at:
                return None
            continue
        ids += event.get("tokens") or []
        if not first and (ids or event.get("stop")):
            first = now
        if event.get("stop"):
            timings = event.get("timings", {})
            return PeerAnswer(
                ttft_s=first,
                total_s=now,
                tokens=tuple(ids),
                num_predicted=int(event.get("tokens_predicted", len(ids))),
                computed_tokens=int(timings.get("prompt_n", 0)),
                cached_tokens=int(timings.get("cache_n", 0)),
                server_prompt_s=float(timings.get("prompt_ms", 0.0)) / 1000,
            )
    raise EngineError("the peer ended its stream early")


def child_environment() -> dict[str, str]:
    """The child finds this package however the parent found it."""
    source = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}
