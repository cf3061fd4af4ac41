"""A server and the two models behind it; looms over them in a home of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kvloom
from kvloom.config import load_settings
from kvloom.session.loom import Loom
from tests.unit.remote.models import MODEL, OpenAIModel, RecordedOllama
from tests.unit.remote.server import Server

Opened = Callable[..., Loom]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def openai(server: Server) -> OpenAIModel:
    return OpenAIModel(server)


@pytest.fixture
def ollama(server: Server, monkeypatch: pytest.MonkeyPatch) -> RecordedOllama:
    monkeypatch.setenv("OLLAMA_HOST", server.address)
    return RecordedOllama(server)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Opens looms by a model's name and settings; all are closed at the end."""
    looms: list[Loom] = []

    def open_one(model: str = f"ollama:{MODEL}", **values: object) -> Loom:
        settings = load_settings({"system": "Answer.", "reserve_tokens": 64, **values})
        looms.append(kvloom.open(model=model, home=tmp_path / "home", settings=settings))
        return looms[-1]

    yield open_one
    for loom in looms:
        loom.close()
