"""`GET /metrics`: counts and measurements of the whole server, for Prometheus.

Where there are keys, they are for whoever runs the server: a key of the tenant `local`.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from kvloom.server.auth import LOCAL_TENANT
from kvloom.server.errors import ApiError
from kvloom.server.measured import METRICS_PATH
from kvloom.server.metrics import CONTENT_TYPE
from kvloom.server.routes.base import ERRORS, caller_of, service_of

routes = APIRouter(tags=["health"], responses=ERRORS)


@routes.get(
    METRICS_PATH,
    response_class=Response,
    responses={200: {"description": "Prometheus' text format.", "content": {"text/plain": {"example": "# HELP …"}}}},
)
async def metrics(request: Request) -> Response:
    """Counts and measurements of the whole server, in every phase. With keys: one of the tenant `local` is needed."""
    if caller_of(request).tenant != LOCAL_TENANT:
        raise ApiError(
            HTTPStatus.FORBIDDEN,
            f"metrics tell of all tenants: they are for keys of the tenant `{LOCAL_TENANT}`"
            f" (`kvloom keys add NAME --tenant {LOCAL_TENANT}`)",
            code="not_allowed",
        )
    return Response(await asyncio.to_thread(service_of(request).metrics.text), media_type=CONTENT_TYPE)
