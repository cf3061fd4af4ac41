"""`/v1/kvloom/sessions`: conversations over chunks: created, listed, changed, forked, deleted, and what they hold.

Turns stand in `kvloom_turns`, snapshots and the ledger in `kvloom_states`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fastapi import Request, Response

from kvloom.errors import UsageError
from kvloom.server.errors import ApiError
from kvloom.server.routes.base import caller_of, service_of
from kvloom.server.routes.kvloom_base import (
    PREFIX,
    After,
    Limit,
    ModelName,
    SessionPath,
    answer,
    edit,
    is_of_this_machine,
    kvloom_router,
    look,
    loom_call,
    page,
    session_id,
    sessions_of,
)
from kvloom.server.schema.kvloom import Deleted
from kvloom.server.schema.kvloom_sessions import (
    ChunkMove,
    ChunkRef,
    ChunkRefs,
    ClearRequest,
    HistoryView,
    MessageList,
    MessageView,
    PinRef,
    PromptView,
    RecomputedView,
    ResizedView,
    ResizeRequest,
    SessionChange,
    SessionCreate,
    SessionFork,
    SessionPage,
    SessionView,
    TurnView,
    UsageView,
)
from kvloom.session.loom import Loom
from kvloom.session.session import Session
from kvloom.session.values import SessionInfo, Turn

routes = kvloom_router("sessions")

SESSIONS = f"{PREFIX}/sessions"
SESSION = f"{SESSIONS}/{{session}}"


# --- which there are -------------------------------------------------------------------------------------------------


@routes.post(SESSIONS, response_model=SessionView)
async def create_session(body: SessionCreate, request: Request) -> Response:
    """A new session. It is stored from here on, whoever restarts the server."""
    service_of(request).lifecycle.check()
    tenant = caller_of(request).tenant
    opened = await sessions_of(request).create(tenant, body.model or "", partial(_make, body))
    info = await sessions_of(request).run(opened.session.loom.session_info, opened.session.id)
    return answer(SessionView.model_validate(info))


@routes.get(SESSIONS, response_model=SessionPage)
async def list_sessions(request: Request, limit: Limit = 100, after: After = None, model: ModelName = None) -> Response:
    """The caller's sessions, the last used first."""
    async with loom_call(request, model) as call:
        found: list[SessionInfo] = await call.run(call.loom.sessions)
    shown, has_more = page(found, lambda info: info.id, limit, after)
    return answer(SessionPage(data=[SessionView.model_validate(info) for info in shown], has_more=has_more))


@routes.get(SESSION, response_model=SessionView)
async def show_session(session: SessionPath, request: Request, model: ModelName = None) -> Response:
    """What is told of one session; `usage` says what stands in its window."""
    return answer(SessionView.model_validate(await look(request, session, model, _info)))


@routes.patch(SESSION, response_model=SessionView)
async def change_session(
    session: SessionPath, body: SessionChange, request: Request, model: ModelName = None
) -> Response:
    """Another name, system prompt, fidelity or policy."""
    return answer(SessionView.model_validate(await edit(request, session, model, partial(_changed, body))))


@routes.delete(SESSION, response_model=Deleted)
async def delete_session(session: SessionPath, request: Request, model: ModelName = None) -> Response:
    """A session and its log, gone for good. Its chunks stay."""
    wanted = session_id(session)
    await sessions_of(request).delete(caller_of(request).tenant, wanted, model or "")
    return answer(Deleted(id=wanted))


@routes.post(f"{SESSION}/fork", response_model=SessionView)
async def fork_session(session: SessionPath, body: SessionFork, request: Request, model: ModelName = None) -> Response:
    """Another session that goes on from here, or from a snapshot; this one stays as it is. KV is shared."""
    sessions, tenant = sessions_of(request), caller_of(request).tenant
    async with sessions.editing(tenant, session_id(session), model or "") as opened:
        source = opened.session
        forked = await sessions.create(
            tenant, opened.lease.info.id, lambda _: source.fork(body.snapshot, body.name or "")
        )
    return answer(SessionView.model_validate(await sessions.run(_info, forked.session)))


def _make(body: SessionCreate, loom: Loom) -> Session:
    """The caller holds off others that create: a name is looked for first, since by a known one a session resumes."""
    if body.name and any(info.name == body.name for info in loom.sessions()):
        raise ApiError(409, f"a session is already called {body.name!r}: choose another name", code="name_taken",
                       param="name")  # fmt: skip
    chunks = [loom.resolve(ref) for ref in body.chunks or ()]
    session = loom.session(body.system, name=body.name, fidelity=body.fidelity)
    try:
        if body.policy is not None:
            session.policy = body.policy
        if chunks:
            session.activate(*chunks)
    except BaseException:
        # Half a session is of no use to anyone.
        loom.delete_session(session.id)
        raise
    return session


def _changed(body: SessionChange, session: Session) -> SessionInfo:
    if body.name is not None:
        session.rename(body.name)
    if body.system is not None:
        session.set_system(body.system)
    if body.fidelity is not None:
        session.set_fidelity(body.fidelity)
    if body.policy is not None:
        session.policy = body.policy
    return _info(session)


def _info(session: Session) -> SessionInfo:
    return session.loom.session_info(session.id)


# --- what the window holds -------------------------------------------------------------------------------------------


@routes.get(f"{SESSION}/usage", response_model=UsageView)
async def session_usage(session: SessionPath, request: Request, model: ModelName = None) -> Response:
    """What the window holds, by segment, with tier and cost. Looking costs no context."""
    return answer(await look(request, session, model, usage_of))


@routes.get(f"{SESSION}/history", response_model=HistoryView)
async def session_history(session: SessionPath, request: Request, model: ModelName = None) -> Response:
    """The turns of the context, in order, and whose traces they carry."""
    turns: list[Turn] = await look(request, session, model, Session.history)
    return answer(HistoryView(data=[TurnView.model_validate(turn) for turn in turns]))


@routes.get(f"{SESSION}/messages", response_model=MessageList)
async def session_messages(session: SessionPath, request: Request, model: ModelName = None) -> Response:
    """The conversation as messages, the system prompt first."""
    messages = await look(request, session, model, Session.messages)
    return answer(MessageList(data=[MessageView.model_validate(message) for message in messages]))


@routes.get(f"{SESSION}/prompt", response_model=PromptView)
async def session_prompt(session: SessionPath, request: Request, model: ModelName = None) -> Response:
    """What the model sees, exactly: the text with special tokens spelled out, and the token ids."""
    return answer(await look(request, session, model, _prompt))


@routes.post(f"{SESSION}/activate", response_model=UsageView)
async def activate_chunks(session: SessionPath, body: ChunkRefs, request: Request, model: ModelName = None) -> Response:
    """Chunks on. One that is not in the context comes to the end of the block. All of them, or none."""
    return answer(await _edited(request, session, model, lambda it: it.activate(*body.chunks)))


@routes.post(f"{SESSION}/deactivate", response_model=UsageView)
async def deactivate_chunks(
    session: SessionPath, body: ChunkRefs, request: Request, model: ModelName = None
) -> Response:
    """Chunks off: out of the attention, their places kept."""
    return answer(await _edited(request, session, model, lambda it: it.deactivate(*body.chunks)))


@routes.post(f"{SESSION}/move", response_model=UsageView)
async def move_chunk(session: SessionPath, body: ChunkMove, request: Request, model: ModelName = None) -> Response:
    """A chunk to another place in the block."""
    return answer(await _edited(request, session, model, lambda it: it.move(body.chunk, body.index)))


@routes.post(f"{SESSION}/pin", response_model=UsageView)
async def pin(session: SessionPath, body: PinRef, request: Request, model: ModelName = None) -> Response:
    """Keep a chunk or a turn in the context, whatever a policy says."""
    return answer(await _edited(request, session, model, lambda it: it.pin(body.ref)))


@routes.post(f"{SESSION}/unpin", response_model=UsageView)
async def unpin(session: SessionPath, body: PinRef, request: Request, model: ModelName = None) -> Response:
    return answer(await _edited(request, session, model, lambda it: it.pin(body.ref, pinned=False)))


@routes.post(f"{SESSION}/remove", response_model=UsageView)
async def remove_chunk(session: SessionPath, body: ChunkRef, request: Request, model: ModelName = None) -> Response:
    """A chunk out of this context; it stays known."""
    return answer(await _edited(request, session, model, lambda it: it.remove(body.chunk)))


@routes.post(f"{SESSION}/erase", response_model=UsageView)
async def erase_from_session(
    session: SessionPath, body: ChunkRef, request: Request, model: ModelName = None
) -> Response:
    """A chunk out of this context and out of the known ones; undo brings both back."""
    return answer(await _edited(request, session, model, lambda it: it.erase(body.chunk)))


@routes.post(f"{SESSION}/clear", response_model=UsageView)
async def clear(session: SessionPath, body: ClearRequest, request: Request, model: ModelName = None) -> Response:
    """Chunks and turns out of the context, or only some turns. The ledger lists them, undo brings them back."""
    return answer(await _edited(request, session, model, lambda it: it.clear(body.turns)))


@routes.post(f"{SESSION}/recompute", response_model=RecomputedView)
async def recompute(session: SessionPath, request: Request, model: ModelName = None) -> Response:
    """Have turns that carry the trace of a chunk that is off computed again, with the next reply."""
    return answer(RecomputedView(num_turns=await edit(request, session, model, Session.recompute)))


@routes.post(f"{SESSION}/resize", response_model=ResizedView)
async def resize(session: SessionPath, body: ResizeRequest, request: Request, model: ModelName = None) -> Response:
    """A window of another size. More than the server's own is given on this machine only: it takes memory of all."""
    is_free = is_of_this_machine(caller_of(request))

    def resized(it: Session) -> int:
        most = it.loom.pool.window
        if not is_free and (body.window or 0) > most:
            raise UsageError(f"a window of {body.window} tokens is more than the {most} that this server gives")
        return it.resize(body.window if body.window is not None or is_free else most)

    return answer(ResizedView(window=await edit(request, session, model, resized)))


def usage_of(session: Session) -> UsageView:
    return UsageView.model_validate(session.usage())


async def _edited(request: Request, session: str, model: str | None, work: Callable[[Session], object]) -> UsageView:
    """Do it, and tell what the window holds then."""

    def done(it: Session) -> UsageView:
        work(it)
        return usage_of(it)

    return await edit(request, session, model, done)


def _prompt(session: Session) -> PromptView:
    tokens = session.tokens()
    return PromptView(num_tokens=len(tokens), prompt=session.prompt(), tokens=tokens)
