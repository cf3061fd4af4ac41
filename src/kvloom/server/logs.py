"""The outermost layer of the edge: a request id, one log line per request without content, no traceback to a client.

Knows no route; what a route wants to stand in the line it tells `RequestNotes`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvloom.errors import CancelledError, MemoryPressureError
from kvloom.server.errors import CLIENT_CLOSED, ApiError, internal
from kvloom.server.wire import send_error

REQUEST_ID_HEADER = "x-request-id"
LOGGER = "kvloom.server"

_USABLE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""Another id of a client's is replaced: it would stand in our log."""

MAX_PATH_CHARS = 256
"""A line shows no more of a path: ours are shorter, and a client may send any."""

LAST_NOTES_S = 5.0
"""A reply ends within one step of the engine after its reader has left; the line does not wait longer for it."""

QUIET_PATHS = frozenset(("/health",))
"""Asked every few seconds by whoever watches the server."""

_MEANT = (ApiError, CancelledError, MemoryPressureError)
"""What the server does on purpose: refuses, ends a reply in a drain, takes no work while memory is short."""

_NOTES = "notes"
_log = logging.getLogger(f"{LOGGER}.requests")


class RequestNotes:
    """What the log line of one request says. `work`: what else has something to tell, after the answer has ended."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.fields: dict[str, object] = {}
        self.work: asyncio.Task[None] | None = None

    def tell(self, **fields: object) -> None:
        """Facts, never content."""
        self.fields.update({name: value for name, value in fields.items() if value is not None})


def notes_of(request: Request) -> RequestNotes:
    """The notes of a request; new ones where no middleware has made them."""
    found = request.scope.setdefault("state", {}).setdefault(_NOTES, RequestNotes(uuid.uuid4().hex))
    assert isinstance(found, RequestNotes)
    return found


def log_failure(answer: ApiError, error: BaseException, notes: RequestNotes) -> None:
    """Remember what a client was answered with; a failure of ours goes to the log with its traceback."""
    notes.tell(error=answer.code)
    if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, _MEANT):
        _log.error("request %s failed", notes.request_id, exc_info=error)


class RequestLogMiddleware:
    """Gives every request an id, catches what nothing else has caught, and writes one line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        notes = RequestNotes(given if _USABLE_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}")
        scope.setdefault("state", {})[_NOTES] = notes
        status = 0

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = notes.request_id
            await send(message)

        started_s = time.monotonic()
        try:
            await self._app(scope, receive, marked)
        except Exception:  # noqa: BLE001 - the HTTP edge: a client never sees a traceback
            _log.exception("request %s failed", notes.request_id)
            notes.tell(is_broken=True)
            if not status:
                await send_error(internal(), scope, receive, marked)
        finally:
            duration_s = time.monotonic() - started_s
            if notes.work is not None:
                await asyncio.wait({notes.work}, timeout=LAST_NOTES_S)
            _write_line(scope, notes, status or CLIENT_CLOSED, duration_s)


def _write_line(scope: Scope, notes: RequestNotes, status: int, duration_s: float) -> None:
    caller, path = scope["state"].get("caller"), scope["path"]
    fields = {
        "request_id": notes.request_id,
        "method": scope["method"],
        "path": path if len(path) <= MAX_PATH_CHARS else path[:MAX_PATH_CHARS] + "…",
        "status": status,
        "duration_s": round(duration_s, 4),
        "tenant": caller.tenant if caller else None,
        "key": (caller.key_id or None) if caller else None,
        **notes.fields,
    }
    level = logging.INFO
    if scope["path"] in QUIET_PATHS:
        level = logging.DEBUG
    elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        # A server that is full or draining is no broken one.
        level = logging.WARNING if status == HTTPStatus.SERVICE_UNAVAILABLE else logging.ERROR
    _log.log(level, "request", extra={"fields": {name: value for name, value in fields.items() if value is not None}})


class JsonLines(logging.Formatter):
    """One JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


class TextLines(logging.Formatter):
    """One line a person can read; values are quoted where a client chose them."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        told = " ".join(f"{name}={json.dumps(value, default=str)}" for name, value in fields.items())
        return f"{super().format(record)} {told}" if told else super().format(record)


LEVELS = {LOGGER: logging.INFO, "kvloom": logging.WARNING, "uvicorn": logging.WARNING, "asyncio": logging.WARNING}
"""Who else writes while a server runs, and from which level on: one form for all, or no program could read the log."""


def set_up_logging(log_format: str) -> None:
    """Sends the server's log to stderr. Idempotent."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    for name, level in LEVELS.items():
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level)
