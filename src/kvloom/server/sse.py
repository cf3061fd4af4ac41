"""Server-sent events as OpenAI's clients read them, to a client that may be slow or gone. Knows bytes, no shape.

FastAPI's own event encoding and response class are used; its generator endpoints are not: they send 200 before the
first event, and here one endpoint answers with JSON, with events, or with an error status that only the prompt shows.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Mapping

import msgspec
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


class EventTemplate:
    """An event of which one text changes and nothing else: written once by its model, and then around each text."""

    def __init__(self, write: Callable[[str], bytes]) -> None:
        """`write(text)`: the whole event with that text in it, once."""
        mark = uuid.uuid4().hex
        self._before, self._behind = write(mark).split(f'"{mark}"'.encode())

    def of(self, text: str) -> bytes:
        return self._before + msgspec.json.encode(text) + self._behind


def error_event(error: ApiError) -> bytes:
    """An error in mid-stream, where the status is long gone."""
    return event(json_bytes(error.body).decode("ascii"))


async def with_pings(events: AsyncIterator[bytes], every_s: float = PING_EVERY_S) -> AsyncIterator[bytes]:
    """The events, and a comment whenever none came for so long. Closes `events` when it is closed.

    One task reads them all: one for each event costs as much as writing the event.
    """
    ready: asyncio.Queue[bytes | None] = asyncio.Queue()
    clock = asyncio.get_running_loop()
    came = clock.time()

    async def read() -> None:
        nonlocal came
        try:
            async for item in events:
                came = clock.time()
                ready.put_nowait(item)
        finally:
            ready.put_nowait(None)

    def look() -> float:
        nonlocal came
        if clock.time() >= came + every_s:
            came = clock.time()
            ready.put_nowait(KEEPALIVE_COMMENT)
        return came + every_s

    reader = asyncio.create_task(read())
    watch = _Watch(look)
    try:
        while True:
            item = await ready.get()
            if item is None:
                await reader  # its error is the stream's
                return
            yield item
    finally:
        watch.end()
        reader.cancel()
        await asyncio.wait({reader})
        if not reader.cancelled():
            reader.exception()  # nobody reads any more whom it could be told
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


class _Watch:
    """Calls `look` at the time that it gave last (the loop's clock), until `end`.

    One timer for a stream: to set and cancel one for each event costs as much as writing the event.
    """

    def __init__(self, look: Callable[[], float]) -> None:
        self._look = look
        self._clock = asyncio.get_running_loop()
        self._timer: asyncio.Handle = self._clock.call_soon(self._run)

    def _run(self) -> None:
        self._timer = self._clock.call_at(self._look(), self._run)

    def end(self) -> None:
        self._timer.cancel()


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
        clock = asyncio.get_running_loop()
        sending: float | None = None

        async def watched(message: dict[str, object]) -> None:
            nonlocal sending
            sending = clock.time()
            await send(message)
            sending = None

        def look() -> float:
            # One stuck write is a client that reads nothing: the server's buffers before it are full.
            now = clock.time()
            since = now if sending is None else sending
            if now >= since + self._stalled_s:
                patience.reschedule(now)
            return max(since, now - self._stalled_s / 2) + self._stalled_s

        try:
            async with asyncio.timeout(None) as patience:
                watch = _Watch(look)
                try:
                    await super().stream_response(watched)  # type: ignore[arg-type]
                finally:
                    watch.end()
        except TimeoutError:
            log.warning("a client has read nothing for %g s; its reply is cancelled", self._stalled_s)
