"""The layer that counts answers, by their routes' templates. Knows no endpoint but that of the metrics."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvloom.server.errors import CLIENT_CLOSED
from kvloom.server.logs import notes_of
from kvloom.server.metrics import Metrics

METRICS_PATH = "/metrics"


class MeasureMiddleware:
    """Counts every answer by its route's template. The fetching of metrics itself is not counted."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == METRICS_PATH:
            await self._app(scope, receive, send)
            return
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started_s = time.monotonic()
        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "")
            code = notes_of(Request(scope)).fields.get("error", "")
            duration_s = time.monotonic() - started_s
            self._metrics.answered(scope["method"], route, status or CLIENT_CLOSED, duration_s, str(code))
