"""What the routes share: strict JSON in, the client's leaving noticed, the service found. Knows no endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from kvloom.server import sse
from kvloom.server.auth import Caller
from kvloom.server.errors import CLIENT_CLOSED, ApiError, to_api_error
from kvloom.server.limits import parse_json
from kvloom.server.logs import RequestNotes, log_failure, notes_of
from kvloom.server.replies import Replies
from kvloom.server.reports import dropped_header
from kvloom.server.schema.base import ErrorBody
from kvloom.server.service import Call, Service

LARGE_BODY_BYTES = 64 * 1024
"""Parsing more than this is kept off the event loop: 10 MB take tens of milliseconds."""

HEADERS_AFTER_S = 10.0
"""An answer's status waits so long for its first event: what fails before it gets its own status, and a client that
waits for headers is not kept longer."""

EVENT_STREAM = {"text/event-stream": {"schema": {"type": "string"}, "example": 'data: {"choices": […]}\n\n'}}

ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {
        "model": ErrorBody,
        "description": "What went wrong: 400 the request, or it does not fit the window; 401 the key; 404 the model or"
        " a chunk; 413, 415, 431 the body or the headers; 429 a quota; 503 loading, draining, or the queue is full"
        " (Retry-After says when to ask again).",
    },
}


def service_of(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def caller_of(request: Request) -> Caller:
    caller = request.state.caller
    assert isinstance(caller, Caller)
    return caller


class _StrictRequest(Request):
    """A request whose JSON was parsed by our rules."""

    parsed: Any = None

    async def json(self) -> Any:
        return self.parsed


class StrictRoute(APIRoute):
    """Parses the body strictly and only while the server serves; ends the work when the client has left."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            service = service_of(request)
            service.lifecycle.check()
            strict = _StrictRequest(request.scope, request.receive)
            try:
                body = await strict.body()
            except ClientDisconnect:
                return Response(status_code=CLIENT_CLOSED)
            if self.body_field is not None:
                _check_content_type(request)
                depth = service.settings.max_json_depth
                large = len(body) > LARGE_BODY_BYTES
                strict.parsed = await service.aside(parse_json, body, depth) if large else parse_json(body, depth)
            return await _while_there(strict, handle(strict))

        return handler


def router(tag: str) -> APIRouter:
    return APIRouter(route_class=StrictRoute, tags=[tag], responses=ERRORS)


def _check_content_type(request: Request) -> None:
    said = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if said != "application/json":
        message = "the body must be JSON, sent with the header content-type: application/json"
        raise ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message, code="unsupported_media_type")


async def _while_there(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The work's answer; where the client leaves before it, the work is cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return Response(status_code=CLIENT_CLOSED)
    finally:
        unfinished = {one for one in (task, gone) if not one.done()}
        for one in unfinished:
            one.cancel()
        if unfinished:
            await asyncio.wait(unfinished)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# --- answers ---------------------------------------------------------------------------------------------------------


def json_answer(text: str, headers: dict[str, str]) -> Response:
    return Response(text, headers=headers, media_type="application/json")


async def event_answer(
    call: Call, replies: Replies, events: AsyncIterator[bytes], *, ends_with_done: bool = True
) -> Response:
    """Streams `events`, which read `replies`. What fails before the first event is raised, later it is an event."""
    try:
        await replies.began(HEADERS_AFTER_S)
    except BaseException:
        replies.cancel()
        raise
    headers = {**call.headers, **dropped_header(replies.dropped)}
    service = call.service
    whole = _ended(events, call, ends_with_done)
    return sse.EventStream(whole, headers, service.settings.stalled_client_s, replies.cancel)


async def _ended(events: AsyncIterator[bytes], call: Call, ends_with_done: bool) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            yield event
    except Exception as error:  # noqa: BLE001 - the HTTP edge: the status is out, the error becomes an event
        answer = to_api_error(error)
        log_failure(answer, error, call.notes)
        yield sse.error_event(answer)
    if ends_with_done:
        yield sse.DONE


def notes(request: Request, **fields: object) -> RequestNotes:
    """The request's notes, with more told."""
    found = notes_of(request)
    found.tell(**fields)
    return found
