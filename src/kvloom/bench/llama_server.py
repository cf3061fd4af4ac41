"""A `llama-server` binary as a child process: the peer that was built like our own llama.cpp. Knows its flags only."""

from __future__ import annotations

import http.client
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from kvloom.bench.peer import GGML_TYPES, LAST_WORDS, START_TIMEOUT_S, STOP_TIMEOUT_S, PeerSettings
from kvloom.errors import EngineError, UsageError


class LlamaServer:
    """A running server. A context manager: the child is gone at the end, whatever happens."""

    def __init__(self, binary: Path, settings: PeerSettings) -> None:
        if not binary.is_file():
            raise UsageError(f"there is no llama-server at {binary}")
        names = {number: kind.value for kind, number in GGML_TYPES.items()}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        command = [
            str(binary), "--model", settings.model, "--ctx-size", str(settings.n_ctx),
            "--parallel", str(settings.slots),
            "--threads", str(settings.threads), "--threads-batch", str(settings.threads_batch),
            "--cache-type-k", names[settings.cache_type_k], "--cache-type-v", names[settings.cache_type_v],
            "--flash-attn", "on" if settings.flash_attn else "off", "--cache-ram", str(settings.cache_ram_mib),
            "--host", "127.0.0.1", "--port", str(self._port), "--log-disable",
        ]  # fmt: skip
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        try:
            self._wait_for_health()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def close(self) -> None:
        """End the child: asked first, then killed. Idempotent."""
        for stop in (self._process.terminate, self._process.kill):
            if self._process.poll() is not None:
                break
            stop()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                continue
        self._log.close()

    def __enter__(self) -> LlamaServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _wait_for_health(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                self._log.seek(0)
                said = self._log.read().decode("utf-8", "replace")[-LAST_WORDS:].strip()
                raise EngineError(f"llama-server ended with code {self._process.returncode}: {said}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
                connection.request("GET", "/health")
                status = connection.getresponse().status
                connection.close()
            except OSError:
                status = 0
            if status == http.client.OK:
                return
            time.sleep(0.05)  # polling another process
        raise EngineError(f"llama-server was not ready within {START_TIMEOUT_S:.0f} s")
