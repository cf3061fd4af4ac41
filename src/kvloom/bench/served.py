"""`kvloom serve` as a child process for a benchmark: started on a free port, asked over loopback, ended with SIGTERM.

Knows a process and its first line, no endpoint.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvloom.bench.peer import LAST_WORDS, START_TIMEOUT_S, STOP_TIMEOUT_S, child_environment
from kvloom.config import Settings
from kvloom.errors import EngineError

SERVE = ("kvloom.cli.main", "serve", "--port", "0", "--json", "--home")
WITHOUT_MODEL = ("kvloom.server.fake",)
"""The same edge over the deterministic engine."""


def environment_of(settings: Settings) -> dict[str, str]:
    """What a child needs to serve the model of `settings` in the same window, with as many threads."""
    return {
        "KVLOOM_MODEL": settings.model,
        "KVLOOM_CONTEXT": str(settings.context),
        "KVLOOM_THREADS": str(settings.num_threads),
        "KVLOOM_GUARD__ENABLED": "false",
    }


class Served:
    """A running server. A context manager: the child is gone at the end, whatever happens."""

    def __init__(self, home: Path, environment: Mapping[str, str], command: Sequence[str] = SERVE) -> None:
        """`command`: a module and its arguments; the home follows."""
        line = [sys.executable, "-m", *command, str(home)]
        # Its log goes to a file: a full pipe that no one reads would stop it.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self._process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=self._log, env={**child_environment(), **environment}
        )
        try:
            self.about = self._first_line()
        except BaseException:
            self.close()
            raise
        self.url = str(self.about["url"]).removesuffix("/v1")
        self.model = str(self.about["model"])

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """End the child: asked first, then killed. Idempotent."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _first_line(self) -> dict[str, object]:
        """The JSON document that the server prints once it listens; it may take several lines."""
        assert self._process.stdout is not None
        deadline, pending = time.monotonic() + START_TIMEOUT_S, b""
        while True:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise EngineError(f"the server did not start within {START_TIMEOUT_S:.0f} s")
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                raise EngineError(f"the server ended before it listened: {self._last_words()}")
            pending += data
            try:
                found = json.loads(pending)
            except ValueError:
                continue
            assert isinstance(found, dict), "the server tells an object"
            return found

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")[-LAST_WORDS:].strip() or "it gave no reason"
