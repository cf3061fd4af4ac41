"""`GET /health`: whether work is taken now. Needs no key, and is answered in every phase."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from kvloom.server.lifecycle import LOADING_RETRY_S, Phase
from kvloom.server.routes.base import service_of
from kvloom.server.schema.lists import Health

routes = APIRouter(tags=["health"])


@routes.head("/health", include_in_schema=False)  # of watchers that want no body
@routes.get("/health", response_model=Health, responses={503: {"model": Health, "description": "Loading, draining."}})
async def health(request: Request) -> Response:
    """200 while requests are taken, 503 while the server loads or drains."""
    service = service_of(request)
    phase = service.lifecycle.phase
    body = Health(
        status=phase.value,
        running=service.admission.num_running,
        waiting=service.admission.num_waiting,
        slots=service.admission.num_slots,
    )
    if phase is Phase.SERVING:
        return Response(body.to_json(), media_type="application/json")
    headers = {"retry-after": str(LOADING_RETRY_S)}
    return Response(body.to_json(), HTTPStatus.SERVICE_UNAVAILABLE, headers, "application/json")
