"""A command-line client that people use, `llm`, against `kvloom serve`: configured by a base URL, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from kvloom.bench.served import Served

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(importlib.util.find_spec("llm") is None, reason="the command-line client llm is not installed"),
]

PATIENCE_S = 120.0
OPTIONS = ("-o", "temperature", "0", "-o", "max_tokens", "16")
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def served(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    environment = {"KVLOOM_MODEL": str(smollm2_path), "KVLOOM_CONTEXT": "1024", "KVLOOM_THREADS": "1"}
    with Served(tmp_path_factory.mktemp("home"), environment) as server:
        yield server


@pytest.fixture(scope="module")
def folder(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's own folder: one model, at our address."""
    made = tmp_path_factory.mktemp("llm")
    model = {"model_id": "here", "model_name": served.model, "api_base": f"{served.url}/v1", "supports_schema": True}
    (made / "extra-openai-models.yaml").write_text(yaml.safe_dump([model]))
    return made


def run(folder: Path, *arguments: str, given: str = "") -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "OPENAI_"))}
    ended = subprocess.run(
        [sys.executable, "-m", "llm", *arguments],
        env={**environment, "LLM_USER_PATH": str(folder), "NO_COLOR": "1"},
        input=given, capture_output=True, text=True, encoding="utf-8", check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def replied(served: Served, *messages: tuple[str, str], **more: Any) -> str:
    """The same asked over HTTP."""
    body = {
        "model": served.model, "messages": [{"role": role, "content": content} for role, content in messages],
        "temperature": 0, "max_tokens": 16, **more,
    }  # fmt: skip
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_it_lists_the_model_and_prints_the_reply_streamed_and_whole(served: Served, folder: Path) -> None:
    assert "here" in run(folder, "models")
    wanted = replied(served, ("user", "Name a colour."))
    assert wanted.strip()
    for how in ((), ("--no-stream",)):
        assert run(folder, "-m", "here", *OPTIONS, *how, "Name a colour.").strip() == wanted.strip()


def test_a_system_prompt_and_a_piped_text_and_a_second_turn_arrive(served: Served, folder: Path) -> None:
    first = run(folder, "-m", "here", *OPTIONS, "-s", "Answer in one word.", given="Is snow white?").strip()
    asked = (("system", "Answer in one word."), ("user", "Is snow white?"))
    assert first == replied(served, *asked).strip()
    second = run(folder, "-c", *OPTIONS, "Why?").strip()
    assert second == replied(served, *asked, ("assistant", first), ("user", "Why?")).strip()


def test_a_schema_is_kept_to(served: Served, folder: Path) -> None:
    text = run(folder, "-m", "here", *OPTIONS, "--schema", json.dumps(SCHEMA), "Which colour has the sky?")
    assert json.loads(text)["colour"] in ("red", "blue")
