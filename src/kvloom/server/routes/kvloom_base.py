"""What the routes of kvloom's own API share: the caller's loom, the open sessions, ids in paths. Knows no endpoint."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Query, Request, Response

from kvloom.errors import UnknownChunkError
from kvloom.server.auth import LOCAL_TENANT, Caller
from kvloom.server.errors import invalid_value
from kvloom.server.routes.base import caller_of, json_answer, notes, router, service_of
from kvloom.server.schema.kvloom import CHUNK_ID, View
from kvloom.server.schema.kvloom_sessions import SESSION_ID
from kvloom.server.sessions_open import OpenSession, OpenSessions, default_model, loom_of
from kvloom.session.loom import Loom
from kvloom.session.session import Session
from kvloom.types import ChunkId, SessionId

PREFIX = "/v1/kvloom"
MAX_PAGE = 1000

_CHUNK_ID = re.compile(r"[0-9a-f]{64}")
_SESSION_ID = re.compile(r"[0-9a-f]{16}")
_SNAPSHOT_ID = re.compile(r"[0-9a-f]{12}")

T = TypeVar("T")

ModelName = Annotated[
    str | None,
    Query(max_length=512, description="default: the session's own model, else the first one that is served"),
]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="most that are listed at once")]
After = Annotated[str | None, Query(max_length=64, description="list what follows the one of this id")]
ChunkPath = Annotated[str, Path(description="a chunk's id: 64 hex digits", examples=[CHUNK_ID])]
SessionPath = Annotated[str, Path(description="a session's id: 16 hex digits", examples=[SESSION_ID])]
SnapshotPath = Annotated[str, Path(description="a snapshot's id: 12 hex digits", examples=["5e884898da28"])]


def kvloom_router(tag: str) -> APIRouter:
    return router(f"kvloom {tag}")


def sessions_of(request: Request) -> OpenSessions:
    found = request.app.state.open_sessions
    assert isinstance(found, OpenSessions)
    return found


def answer(view: View) -> Response:
    return json_answer(view.to_json(), {})


# --- ids -------------------------------------------------------------------------------------------------------------


def session_id(text: str) -> SessionId:
    """Raises ApiError (400) for what can be no session's id."""
    if not _SESSION_ID.fullmatch(text):
        raise invalid_value("session_id", "a session's id has 16 hex digits; GET /v1/kvloom/sessions lists them")
    return SessionId(text)


def chunk_id(text: str) -> ChunkId:
    if not _CHUNK_ID.fullmatch(text):
        raise invalid_value("chunk_id", "a chunk's id has 64 hex digits; GET /v1/kvloom/chunks lists them")
    return ChunkId(text)


def snapshot_id(text: str) -> str:
    if not _SNAPSHOT_ID.fullmatch(text):
        raise invalid_value("snapshot_id", "a snapshot's id has 12 hex digits; GET …/snapshots lists them")
    return text


def page(items: Sequence[T], id_of: Callable[[T], str], limit: int, after: str | None) -> tuple[list[T], bool]:
    """A page of a list, and whether more follow. Raises ApiError for an `after` that is not there (any more)."""
    start = 0
    if after is not None:
        start = next((number for number, item in enumerate(items, 1) if id_of(item) == after), -1)
        if start < 0:
            raise invalid_value("after", "`after` is the id of nothing in this list; begin it anew without `after`")
    return list(items[start : start + limit]), len(items) > start + limit


# --- the caller's loom -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoomCall:
    """A caller's own loom, for the time of one request. Its methods block: they are called through `run`."""

    loom: Loom
    open_sessions: OpenSessions

    async def run(self, work: Callable[..., T], *args: Any, **options: Any) -> T:
        return await self.open_sessions.run(work, *args, **options)

    async def known(self, chunk: ChunkId, *, erased: bool = False) -> ChunkId:
        """Raises UnknownChunkError in the same words for what never was, what is erased, and what is another's."""
        try:
            record = await self.run(self.loom.catalog.get, chunk)
        except UnknownChunkError:
            record = None
        if record is None or (record.is_erased and not erased):
            raise UnknownChunkError(f"there is no chunk {chunk}; GET /v1/kvloom/chunks lists them")
        return chunk


@asynccontextmanager
async def loom_call(request: Request, model: str | None) -> AsyncIterator[LoomCall]:
    service = service_of(request)
    name = model or default_model(service.backend)
    async with service.call(name, caller_of(request), notes(request)) as call:
        yield LoomCall(loom_of(call.lease), sessions_of(request))


# --- sessions --------------------------------------------------------------------------------------------------------


def is_of_this_machine(caller: Caller) -> bool:
    """Whether the caller needed no key, so that nobody else's is told or taken."""
    return caller.tenant == LOCAL_TENANT and not caller.key_id


@asynccontextmanager
async def looking(request: Request, session: str, model: str | None) -> AsyncIterator[OpenSession]:
    """A session of the caller's, to look at."""
    wanted = session_id(session)
    notes(request, session=wanted)
    async with sessions_of(request).looking(caller_of(request).tenant, wanted, model or "") as opened:
        yield opened


async def look(request: Request, session: str, model: str | None, work: Callable[[Session], T]) -> T:
    """What `work` sees in a session."""
    async with looking(request, session, model) as opened:
        return await sessions_of(request).run(work, opened.session)


async def edit(request: Request, session: str, model: str | None, work: Callable[[Session], T]) -> T:
    """What `work` makes of a session, with nobody else editing it; it is done even where the client leaves."""
    wanted = session_id(session)
    notes(request, session=wanted)
    sessions, tenant = sessions_of(request), caller_of(request).tenant

    async def edited() -> T:
        async with sessions.editing(tenant, wanted, model or "") as opened:
            return await sessions.run(work, opened.session)

    return await sessions.whole(edited())
