"""How much a request may be: bytes as they come, headers, depth of JSON, counts of parts. Knows no meaning of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sized
from contextlib import suppress
from http import HTTPStatus
from itertools import islice
from typing import Any

from pydantic_core import from_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvloom.config import ServerSettings
from kvloom.server.connection import LINGER_S
from kvloom.server.errors import ApiError, invalid_value
from kvloom.server.wire import send_error

MIN_BYTES_PER_S = 1024
"""Of a body, on average, behind the first seconds of patience: any line is faster."""


class LimitMiddleware:
    """Refuses large headers at once, and a body as soon as it has grown too large: Content-Length may lie."""

    def __init__(self, app: ASGIApp, limits: ServerSettings) -> None:
        self._app = app
        self._max_body_bytes = int(limits.max_body_bytes)
        self._max_header_bytes = int(limits.max_header_bytes)
        self._patience_s = limits.stalled_client_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_headers(scope)
        except ApiError as error:
            await _refuse(error, scope, receive, send)
            return
        limit = _Body(receive, self._max_body_bytes, self._patience_s)
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, limit.receive, watched)
        except BodyRefusedError as error:
            if started:
                raise
            await _refuse(error.answer, scope, receive, send, body_is_whole=limit.is_whole)

    def _check_headers(self, scope: Scope) -> None:
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"]) + len(scope.get("raw_path") or b"")
        if size > self._max_header_bytes:
            message = (
                f"the headers take {size:,} bytes; at most {self._max_header_bytes:,} are read (setting"
                " server.max_header_bytes)"
            )
            raise ApiError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message, code="headers_too_large")
        packed = next((value for name, value in scope["headers"] if name == b"content-encoding"), b"identity")
        if packed.strip().lower() not in (b"identity", b""):
            message = "a body with a content-encoding is not read: send it as it is"
            raise ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message, code="unsupported_media_type")
        said = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if said.isdigit() and int(said[:20]) > self._max_body_bytes:
            raise too_large(self._max_body_bytes)


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send, *, body_is_whole: bool = False) -> None:
    """Answer, then end the reply when the body has come or the client has left: it is to read the answer first."""

    async def send_late(message: Message) -> None:
        if message["type"] != "http.response.body" or message.get("more_body", False):
            await send(message)
            return
        await send({**message, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while (await receive()).get("more_body", False):
                    pass
        await send({"type": "http.response.body", "body": b""})

    await send_error(error, scope, receive, send if body_is_whole else send_late)


class BodyRefusedError(Exception):
    """Raised out of `receive`: nothing that reads the body may take it for the client's leaving."""

    def __init__(self, answer: ApiError) -> None:
        super().__init__(str(answer))
        self.answer = answer


class _Body:
    def __init__(self, receive: Receive, max_bytes: int, patience_s: float) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._patience_s = patience_s
        self._num_bytes = 0
        self.is_whole = False
        self._began_s = time.monotonic()

    async def receive(self) -> Message:
        if self.is_whole:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._patience_s)
        except TimeoutError:
            raise BodyRefusedError(too_slow(self._patience_s)) from None
        if message["type"] == "http.request":
            self._check_rate()
            self.is_whole = not message.get("more_body", False)
            self._num_bytes += len(message.get("body", b""))
            if self._num_bytes > self._max_bytes:
                raise BodyRefusedError(too_large(self._max_bytes))
        return message

    def _check_rate(self) -> None:
        """A byte now and then is no body that comes: it would hold a connection for days."""
        elapsed_s = time.monotonic() - self._began_s
        if elapsed_s > self._patience_s + self._num_bytes / MIN_BYTES_PER_S:
            message = f"{self._num_bytes:,} bytes of the body came in {elapsed_s:.0f} s; send it faster"
            raise BodyRefusedError(_timed_out(message))


def too_slow(patience_s: float) -> ApiError:
    return _timed_out(f"nothing of the body came for {patience_s:g} s")


def _timed_out(message: str) -> ApiError:
    return ApiError(HTTPStatus.REQUEST_TIMEOUT, message, code="request_timeout", headers={"connection": "close"})


def too_large(max_bytes: int) -> ApiError:
    message = f"the body is larger than {max_bytes:,} bytes, the most that is read (setting server.max_body_bytes)"
    # The rest of the body is not read, so the connection cannot be used again.
    headers = {"connection": "close"}
    return ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, code="request_too_large", headers=headers)


MAX_OBJECT_KEYS = 4096
"""Names in one object: each that is wrong costs an error. `logit_bias` and the largest schemas have fewer."""

MAX_CONTAINERS = 20_000
"""Objects and lists in a body: the longest conversations have some thousands, and checking more takes long."""


def parse_json(body: bytes, max_depth: int) -> Any:
    """A body as plain values. Raises ApiError for what is no JSON, and for JSON that is nested too deep.

    Strict where Python's own parser is not: no NaN, no lone surrogates, no bytes that are not UTF-8.
    """
    try:
        value = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        text = f"the body is not valid JSON: {error}"
        raise ApiError(HTTPStatus.BAD_REQUEST, text, code="invalid_json") from error
    level = [value] if isinstance(value, (dict, list)) else []
    num_containers = 0
    for _ in range(max_depth):
        num_containers += len(level)
        if num_containers > MAX_CONTAINERS:
            raise _too_much(f"the body has more than {MAX_CONTAINERS:,} objects and lists")
        if any(isinstance(node, dict) and len(node) > MAX_OBJECT_KEYS for node in level):
            raise _too_much(f"an object of the body has more than {MAX_OBJECT_KEYS:,} names")
        children = (
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        )
        level = list(islice(children, MAX_CONTAINERS + 1))
        if not level:
            return value
    raise _too_much(f"the body is nested deeper than {max_depth} levels (setting server.max_json_depth)")


def _too_much(message: str) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, message, code="invalid_json")


def check_count(param: str, parts: Sized | None, most: int, setting: str) -> None:
    """Raises ApiError where a list or mapping has more parts than are taken. `setting` says how many that are."""
    if parts is not None and len(parts) > most:
        message = f"`{param}` has {len(parts):,} parts; at most {most:,} are taken (setting server.{setting})"
        raise invalid_value(param, message)


def check_stops(stops: tuple[str, ...], limits: ServerSettings) -> None:
    check_count("stop", stops, limits.max_stops, "max_stops")
    for stop in stops:
        if not stop:
            raise invalid_value("stop", "`stop` holds an empty text, which would end every reply at once")
        if len(stop) > limits.max_stop_chars:
            message = f"a stop text has {len(stop):,} characters; at most {limits.max_stop_chars:,} are taken"
            raise invalid_value("stop", f"{message} (setting server.max_stop_chars)")
