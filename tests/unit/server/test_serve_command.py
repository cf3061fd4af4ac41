"""`kvloom serve` as a person runs it: a process, a tiny model, a client, a signal."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvloom.cli.commands import serve as serve_command
from tests.tiny_gguf import TinyModel, write_tiny

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel())


def command(home: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    environment = {
        **os.environ,
        "KVLOOM_HOME": str(home),
        "KVLOOM_THREADS": "1",
        "COLUMNS": "120",
        "KVLOOM_GUARD__ENABLED": "false",
    }
    return [sys.executable, "-m", "kvloom.cli.main", *arguments], environment


@contextmanager
def serving(home: Path, model: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The running command and what it printed."""
    line, environment = command(home, "serve", "-m", str(model), "-c", "512", "--port", "0", "--json", *arguments)
    process = subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    assert process.stdout is not None
    try:
        told = ""
        while not told.rstrip().endswith("}"):
            read = process.stdout.readline()
            assert read, process.communicate()[1]
            told += read
        yield process, json.loads(told)
    finally:
        process.kill()
        process.communicate()


def test_it_serves_with_no_configuration_and_ends_with_0_on_a_signal(tmp_path: Path, model: Path) -> None:
    with serving(tmp_path, model) as (process, told):
        assert told["model"] == "tiny"
        assert (told["window"], told["slots"], told["needs_key"]) == (512, 8, False)
        body = {"model": told["model"], "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        answer = httpx.post(f"{told['url']}/chat/completions", json=body, timeout=PATIENCE_S)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] <= 4
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, log
        assert "status=200" in log and "Traceback" not in log


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line, environment = command(home, *arguments)
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S)


def test_a_port_in_use_and_an_open_address_are_told_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        busy = run(tmp_path, "serve", "-m", "/no/model.gguf", "--port", port)
    assert busy.returncode == 1
    assert f"port {port}" in busy.stderr and "--port" in busy.stderr
    exposed = run(tmp_path, "serve", "-m", "/no/model.gguf", "--host", "0.0.0.0", "--port", "0")
    assert exposed.returncode == 1
    assert "kvloom keys add" in exposed.stderr


def test_a_model_that_cannot_be_loaded_ends_it_with_1(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    ended = run(tmp_path / "home", "serve", "-m", str(broken), "--port", "0")
    assert ended.returncode == 1
    assert "broken.gguf" in ended.stderr and "Traceback" not in ended.stderr


def test_more_slots_than_sequences_are_refused(tmp_path: Path) -> None:
    ended = run(tmp_path, "serve", "--slots", "100", "--port", "0")
    assert ended.returncode == 1
    assert "max_sequences" in ended.stderr


def test_the_address_that_is_shown_can_be_asked_from_here() -> None:
    assert serve_command._url(("0.0.0.0", 9632)) == "http://127.0.0.1:9632/v1"
    assert serve_command._url(("::", 9632)) == "http://[::1]:9632/v1"
    assert serve_command._url(("192.168.1.5", 80)) == "http://192.168.1.5:80/v1"
