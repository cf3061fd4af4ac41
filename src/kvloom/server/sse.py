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
    """The events, and a comment whenever none came for so long. Closes `events` when it is closed.

    One task reads them all: one for each event costs as much as writing the event.
    """
    ready: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for item in events:
                ready.put_nowait(item)
        finally:
            ready.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while True:
            try:
                async with asyncio.timeout(every_s):
                    item = await ready.get()
            except TimeoutError:
                yield KEEPALIVE_COMMENT
                continue
            if item is None:
                await reader  # its error is the stream's
                return
            yield item
    finally:
        reader.cancel()
        await asyncio.wait({reader})
        if not reader.cancelled():
            reader.exception()  # nobody reads any more whom it could be told
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
            async with asyncio.timeout(self._stalled_s):
                await send(message)

        try:
            await super().stream_response(patient)  # type: ignore[arg-type]
        except TimeoutError:
            log.warning("a client has read nothing for %g s; its reply is cancelled", self._stalled_s)
