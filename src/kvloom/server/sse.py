"""Server-sent events as OpenAI's clients read them, to a client that may be slow or gone. Knows bytes, no shape.

FastAPI's own event encoding and response class are used; its generator endpoints are not: they send 200 before the
first event, and here one endpoint answers with JSON, with events, or with an error status that only the prompt shows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from kvloom.server.errors import ApiError
from kvloom.server.wire import json_bytes

PING_EVERY_S = 15.0
"""A comment goes out when nothing else did for so long: proxies close silent connections, some after 30 s."""

DONE = format_sse_event(data_str="[DONE]")

_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""No proxy may hold events back."""

log = logging.getLogger(__name__)


def event(data: str, name: str | None = None) -> bytes:
    """One event; `data` is a JSON text without line feeds."""
    return format_sse_event(data_str=data, event=name)


def error_event(error: ApiError) -> bytes:
    """An error in mid-stream, where the status is long gone."""
    return event(json_bytes(error.body).decode("ascii"))


async def with_pings(events: AsyncIterator[bytes], every_s: float = PING_EVERY_S) -> AsyncIterator[bytes]:
    """The events, and a comment whenever none came for so long. Closes `events` when it is closed."""
    waiting: asyncio.Task[bytes] | None = None
    try:
        while True:
            if waiting is None:
                waiting = asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({waiting}, timeout=every_s)
            if not done:
                yield KEEPALIVE_COMMENT
                continue
            finished, waiting = waiting, None
            try:
                item = finished.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.wait({waiting})
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


class EventStream(EventSourceResponse):
    """Sends events until they end, the client leaves, or it reads nothing for `stalled_s`; then calls `ended`."""

    def __init__(
        self, events: AsyncIterator[bytes], headers: Mapping[str, str], stalled_s: float, ended: Callable[[], None]
    ) -> None:
        self._events = with_pings(events)
        self._stalled_s = stalled_s
        self._ended = ended
        super().__init__(self._events, headers={**_HEADERS, **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Events that nobody began to read have no `finally` of their own.
            self._ended()

    async def stream_response(self, send: Send) -> None:
        async def patient(message: dict[str, object]) -> None:
            # One stuck write is a client that reads nothing: the server's buffers before it are full.
            await asyncio.wait_for(send(message), self._stalled_s)

        try:
            await super().stream_response(patient)  # type: ignore[arg-type]
        except TimeoutError:
            log.warning("a client has read nothing for %g s; its reply is cancelled", self._stalled_s)
