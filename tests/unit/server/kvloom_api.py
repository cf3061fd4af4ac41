"""kvloom's own API over a real loom with the deterministic engine, and what its tests say to it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from kvloom.config import ServerSettings
from kvloom.engine.base import Run
from kvloom.engine.fake import FakeEngine
from kvloom.server.app import create_app
from kvloom.server.auth import KeyCheck, Quota
from kvloom.server.local import LocalBackend
from kvloom.server.sessions_open import OpenSessions
from kvloom.session.loom import Loom
from kvloom.types import F32Array
from tests.unit.server.scripted import client_of
from tests.unit.session.fakes import fake_loom

SECRET = "the secret word is xylophone"
PLAIN = "the weather is fine today"
CHUNKS, SESSIONS, PROFILES = "/v1/kvloom/chunks", "/v1/kvloom/sessions", "/v1/kvloom/profiles"
GREEDY = {"temperature": 0, "max_tokens": 6}


class PacedEngine(FakeEngine):
    """Each step of a reply takes one permit, where a test gives them; `stepped` counts those that began."""

    def __init__(self, num_cells: int = 4096) -> None:
        super().__init__(num_cells)
        self.pace: threading.Semaphore | None = None
        self.stepped = threading.Semaphore(0)

    def decode(self, runs: Sequence[Run]) -> list[F32Array | None]:
        pace = self.pace
        if pace is not None and all(len(run.tokens) == 1 for run in runs):
            self.stepped.release()
            pace.acquire()
        return super().decode(runs)


@dataclass(frozen=True)
class Api:
    """A client of one server."""

    client: httpx.AsyncClient
    app: FastAPI
    loom: Loom

    @property
    def open_sessions(self) -> OpenSessions:
        found = self.app.state.open_sessions
        assert isinstance(found, OpenSessions)
        return found

    async def do(self, method: str, path: str, body: Any = None, *, status: int = 200, key: str = "") -> Any:
        """The body of the answer, which has to have this status."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        answer = await self.client.request(method, path, json=body, headers=headers)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    async def refused(self, method: str, path: str, body: Any = None, *, key: str = "") -> tuple[int, str]:
        """Status and code of an answer that is an error in OpenAI's shape."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        answer = await self.client.request(method, path, json=body, headers=headers)
        error = answer.json()["error"]
        assert error["message"] and set(error) >= {"message", "type", "param", "code"}
        assert answer.status_code < 500 or answer.headers.get("retry-after"), answer.text
        return answer.status_code, error["code"]

    async def chunk(self, text: str, name: str, *, key: str = "") -> str:
        """Upload; the id."""
        return str((await self.do("POST", CHUNKS, {"name": name, "text": text}, key=key))["id"])

    async def session(self, *, key: str = "", **fields: Any) -> str:
        """The path of a new session."""
        return f"{SESSIONS}/{(await self.do('POST', SESSIONS, fields, key=key))['id']}"

    async def ask(self, session: str, text: str = "What is it?", *, key: str = "", **fields: Any) -> Any:
        return await self.do("POST", f"{session}/turns", {"text": text, **GREEDY, **fields}, key=key)


def app_of(
    home: Path,
    engine: FakeEngine | None = None,
    keys: KeyCheck | None = None,
    quota: Quota | None = None,
    loom: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[FastAPI, LocalBackend]:
    """`loom`: settings of it; the others are the server's."""
    backend = LocalBackend(lambda: fake_loom(home, engine, **(loom or {})), "fake")
    return create_app(backend, ServerSettings(**settings), keys=keys, quota=quota), backend


@asynccontextmanager
async def serving(home: Path, **options: Any) -> AsyncIterator[Api]:
    app, backend = app_of(home, **options)
    async with client_of(app) as client:
        yield Api(client, app, backend.loom)


def names(usage: Any, *, active: bool = True) -> list[str]:
    """The chunks and turns that stand in a window."""
    return [one["name"] for one in usage["segments"] if one["kind"] != "head" and one["is_active"] is active]
