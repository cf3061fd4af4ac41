"""`/v1/kvloom/sessions/{id}/turns`, `retry`, `compress`, `cancel`: where the model works for a session.

Counted, reserved, queued, cancelled and settled by the service, as a chat completion is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response

from kvloom.errors import CancelledError, UnknownSessionError
from kvloom.server import sse
from kvloom.server.errors import ApiError
from kvloom.server.limits import check_stops
from kvloom.server.replies import DeltaEvent as ReplyDelta
from kvloom.server.replies import Replies
from kvloom.server.reports import usage_of
from kvloom.server.routes.base import caller_of, event_answer, json_answer, notes, service_of
from kvloom.server.routes.kvloom_base import (
    ModelName,
    SessionPath,
    answer,
    edit,
    kvloom_router,
    loom_call,
    session_id,
    sessions_of,
)
from kvloom.server.routes.kvloom_sessions import SESSION
from kvloom.server.schema.kvloom_libraries import SourceView
from kvloom.server.schema.kvloom_sessions import (
    Cancelled,
    CompressionView,
    CompressRequest,
    DeltaEvent,
    DoneEvent,
    RetryRequest,
    TurnCost,
    TurnReply,
    TurnRequest,
)
from kvloom.server.schema.sampling import engine_seed
from kvloom.server.service import Call
from kvloom.server.sessions_open import unknown_session
from kvloom.server.turns import CompressWork, TurnLease, TurnWork, Work
from kvloom.session.requests import RawPrompt
from kvloom.session.requests import Request as Ask
from kvloom.session.session import Session
from kvloom.session.values import CompressionEstimate, CompressionResult
from kvloom.types import SessionId

routes = kvloom_router("turns")

_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The turn, or with `stream` its events: deltas, then one `done` that holds the turn.",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'data: {"type":"delta","text":"On"}\n\ndata: {"type":"done","turn":{…}}\n\ndata: [DONE]\n\n',
            }
        },
    }
}


@routes.post(f"{SESSION}/turns", response_model=TurnReply, responses=_EVENTS)
async def create_turn(session: SessionPath, body: TurnRequest, request: Request, model: ModelName = None) -> Response:
    """Ask a session. What fails, is cancelled, or whose client leaves, leaves the session as it was."""
    return await _turn(session, body.text, body, request, model)


@routes.post(f"{SESSION}/retry", response_model=TurnReply, responses=_EVENTS)
async def retry_turn(session: SessionPath, body: RetryRequest, request: Request, model: ModelName = None) -> Response:
    """Ask the last question again; the new reply takes the old one's place, undo brings the old one back."""
    return await _turn(session, None, body, request, model)


@routes.post(f"{SESSION}/cancel", response_model=Cancelled)
async def cancel_turn(session: SessionPath, request: Request, model: ModelName = None) -> Response:
    """End the turn that runs, within one step of the model. Its own request answers 409, or keeps what there is."""
    wanted = session_id(session)
    was_running = sessions_of(request).cancel(caller_of(request).tenant, wanted)
    if not was_running:
        async with loom_call(request, model) as call:
            try:
                await call.run(call.loom.session_info, wanted)
            except UnknownSessionError:
                raise unknown_session(wanted) from None
    return answer(Cancelled(cancelled=was_running))


@routes.post(f"{SESSION}/compress", response_model=CompressionView)
async def compress(session: SessionPath, body: CompressRequest, request: Request, model: ModelName = None) -> Response:
    """Old turns become a summary, or leave; the ledger lists them, undo brings them back."""
    if body.dry_run:
        estimate = await edit(request, session, model, partial(_estimate, body.strategy))
        return answer(_compression(estimate))
    work = CompressWork(body.strategy)
    async with _call(session, work, request, model) as call:
        replies = await _start(call, work, None)
        with _kept_or_cancelled():
            await replies.completions()
    return json_answer(_compression(work.result).to_json(), call.headers)


# --- running ---------------------------------------------------------------------------------------------------------


async def _turn(session: str, text: str | None, body: RetryRequest, request: Request, model: str | None) -> Response:
    check_stops(body.stops, service_of(request).settings)
    work = TurnWork(text, body.max_tokens, _options(body))
    async with _call(session, work, request, model) as call:
        call.notes.tell(stream=bool(body.stream))
        replies = await _start(call, work, body.max_tokens)
        if body.stream:
            with _kept_or_cancelled(work):
                return await event_answer(call, replies, _events(session, work, replies))
        with _kept_or_cancelled(work):
            await replies.completions()
    return json_answer(_reply(session, work, replies).to_json(), call.headers)


def _options(body: RetryRequest) -> dict[str, Any]:
    return {
        "temperature": body.temperature,
        "seed": engine_seed(body.seed, 0),
        "stop": body.stops,
        "top_k": body.top_k,
        "top_p": body.top_p,
        "min_p": body.min_p,
        "repeat_penalty": body.repeat_penalty,
        "keep_partial": bool(body.keep_partial),
    }


@asynccontextmanager
async def _call(session: str, work: Work, request: Request, model: str | None) -> AsyncIterator[Call]:
    """The session is this work's until it has ended, even where the client leaves before."""
    service, sessions, caller = service_of(request), sessions_of(request), caller_of(request)
    service.lifecycle.check()
    wanted: SessionId = session_id(session)
    opened = await sessions.begin(caller.tenant, wanted, model or "")
    lease = TurnLease(opened, work, lambda: sessions.answered(opened), lambda: sessions.end(opened))
    call = Call(service, lease, caller, notes(request, model=lease.info.id, session=wanted))
    try:
        # A cancel that comes before the queue does ends it there.
        opened.work = work
        yield call
    finally:
        if not call.is_started:
            lease.release()


async def _start(call: Call, work: Work, max_tokens: int | None) -> Replies:
    replies = await call.start([Ask(RawPrompt(), max_tokens)], [None])
    lease = call.lease
    assert isinstance(lease, TurnLease)
    lease.opened.work = replies
    if work.is_cancelled:
        replies.cancel()
    return replies


@contextmanager
def _kept_or_cancelled(work: TurnWork | None = None) -> Iterator[None]:
    """Raises ApiError (409) for a turn that somebody cancelled and that left nothing."""
    try:
        yield
    except CancelledError as exc:
        if work is None or not work.is_kept:
            message = "it was cancelled before it was whole; the session is as before"
            raise ApiError(HTTPStatus.CONFLICT, message, code="cancelled") from exc


async def _events(session: str, work: TurnWork, replies: Replies) -> AsyncIterator[bytes]:
    with _kept_or_cancelled(work):
        async for event in replies.events():
            if isinstance(event, ReplyDelta):
                kind = "reasoning" if event.delta.is_reasoning else "delta"
                yield sse.event(DeltaEvent.model_validate({"type": kind, "text": event.delta.text}).to_json())
    yield sse.event(DoneEvent(turn=_reply(session, work, replies)).to_json())


def _reply(session: str, work: TurnWork, replies: Replies) -> TurnReply:
    end, reply = work.end, work.end.reply
    return TurnReply.model_validate(
        {
            "session": session,
            "id": end.id,
            "number": end.number,
            "text": reply.text,
            "reasoning": reply.reasoning,
            "finish_reason": reply.finish_reason,
            "usage": usage_of([work.completion], 1, replies.num_reasoning_tokens),
            "kvloom": TurnCost.model_validate(reply.usage),
            "notices": reply.notices,
            "left": reply.left,
            "came_back": reply.came_back,
            "sources": [SourceView.model_validate(source) for source in reply.sources],
        }
    )


# --- compression -----------------------------------------------------------------------------------------------------


def _estimate(strategy: str | None, session: Session) -> CompressionEstimate:
    estimate = session.compress(strategy, dry_run=True)
    assert isinstance(estimate, CompressionEstimate)
    return estimate


def _compression(found: CompressionEstimate | CompressionResult) -> CompressionView:
    result = found if isinstance(found, CompressionResult) else None
    return CompressionView(
        is_dry_run=result is None,
        strategy=found.strategy,
        num_turns=found.num_turns,
        num_tokens_before=found.num_tokens_before,
        num_tokens_after=found.num_tokens_after,
        summary=result.summary if result is not None else "",
        is_fallback=result is not None and result.is_fallback,
        seconds=found.seconds,
    )
