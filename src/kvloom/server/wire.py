"""How an error leaves as JSON, from a middleware and from a handler alike. Knows bytes, no route."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kvloom.server.errors import ApiError


def json_bytes(value: Any) -> bytes:
    """ASCII only: what a client sent and we repeat may hold what UTF-8 cannot say."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def error_response(error: ApiError) -> Response:
    return Response(json_bytes(error.body), error.status, dict(error.headers), "application/json")


async def send_error(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    await error_response(error)(scope, receive, send)
